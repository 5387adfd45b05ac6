"""Reading a checkpoint: tensors by canonical name, mapped from their files and never copied whole.

Names are those of worker/models/names.py, whichever release wrote the files. FP8 matrices come dequantised. Each tensor
that the files hold must be taken, and each that is asked for must be there.

Next: worker/models/loader.py
"""

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from worker.models.fp8 import FP8_TYPES, SCALE_SUFFIX, dequantised, read_block
from worker.models.names import canonical_name

Progress = Callable[[float], None]
"""Called with the share of bytes read so far, 0 to 1."""

# buffers that some releases stored, and scales of activations, which here stay as they are
_UNUSED_SUFFIXES = ("rotary_emb.inv_freq", "pos_encoder.pe", ".activation_scale", ".input_scale")


class CheckpointError(Exception):
    """A checkpoint that cannot be served as it is; the text names the file, key or field."""


def read_json(file: Path) -> dict[str, Any]:
    """Return a JSON file's object, empty where there is no such file.

    Raises:
        CheckpointError: it is not JSON, or not an object.
    """
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text())
    except ValueError as error:
        raise CheckpointError(f"{file} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{file} does not hold a JSON object")
    return content


class Checkpoint:
    """The safetensors of a directory; a `WeightSource` through `under`.

    Args:
        model_dir: directory with model.safetensors, or shards and model.safetensors.index.json.
        dtype: storage type of the model.
        device: device of the model.
        progress: told how far loading is.

    Raises:
        CheckpointError: no weights, a shard missing or broken, one tensor in two spellings, weights quantised in a way
            that is not served.
    """

    def __init__(
        self, model_dir: Path, dtype: torch.dtype, device: torch.device, progress: Progress | None = None
    ) -> None:
        self.dtype = dtype
        self.device = device
        self._progress = progress
        try:
            self._block = read_block(read_json(model_dir / "config.json"))
        except ValueError as error:
            raise CheckpointError(str(error)) from error
        self._files = {file: self._open(file) for file in _weight_files(model_dir)}
        self._stored: dict[str, tuple[Path, str]] = {}
        for file, handle in self._files.items():
            for name in handle.keys():  # noqa: SIM118 - safe_open is no mapping
                if not name.endswith(_UNUSED_SUFFIXES):
                    self._store(file, name)
        self._unread = set(self._stored)
        self._total = len(self._unread)

    def _store(self, file: Path, name: str) -> None:
        known = self._stored.setdefault(canonical_name(name), (file, name))
        if known != (file, name):
            raise CheckpointError(f"{known[1]} in {known[0].name} and {name} in {file.name} are the same tensor")

    @staticmethod
    def _open(file: Path) -> Any:
        try:
            return safe_open(file, framework="pt", device="cpu")
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{file} is not a readable safetensors file: {error}") from error

    def __contains__(self, name: str) -> bool:
        return name in self._stored

    def under(self, prefix: str) -> "Scope":
        """Return the source of the names below `prefix`."""
        return Scope(self, prefix + ".")

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Return a tensor's shape; see `WeightSource`."""
        if name not in self._stored:
            return None
        file, stored_name = self._stored[name]
        return tuple(self._files[file].get_slice(stored_name).get_shape())

    def mapped(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        """Take a tensor as it lies in the file; see `WeightSource`."""
        tensor = self._read(name, shape)
        if tensor.dtype not in FP8_TYPES:
            return tensor
        return self._dequantised(name, tensor, self._scale(name))

    def slices(self, name: str, shape: tuple[int, ...]) -> Iterator[torch.Tensor]:
        """Take a stack of matrices one by one; see `WeightSource`."""
        stack = self._read(name, shape)
        scales = self._scale(name) if stack.dtype in FP8_TYPES else None
        for index, matrix in enumerate(stack):
            yield matrix if scales is None else self._dequantised(name, matrix, scales[index])

    def _read(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        if name not in self._stored:
            raise CheckpointError(f"the checkpoint lacks {name}")
        file, stored_name = self._stored[name]
        tensor = self._files[file].get_tensor(stored_name)
        if tuple(tensor.shape) != shape:
            raise CheckpointError(f"{stored_name} in {file.name} is {list(tensor.shape)}, not {list(shape)}")
        if not tensor.is_floating_point():
            raise CheckpointError(f"{stored_name} in {file.name} is {tensor.dtype}: quantised weights are not served")
        self._mark_read([name])
        return tensor

    def _scale(self, name: str) -> torch.Tensor:
        scale_name = name + SCALE_SUFFIX
        if scale_name not in self._stored:
            raise CheckpointError(f"{name} is FP8, but the checkpoint lacks {scale_name}")
        file, stored_name = self._stored[scale_name]
        self._mark_read([scale_name])
        return self._files[file].get_tensor(stored_name)

    def _dequantised(self, name: str, matrix: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        try:
            return dequantised(matrix, scale, self._block)
        except ValueError as error:
            raise CheckpointError(f"{name}: {error}") from error

    def tensor(self, name: str, shape: tuple[int, ...], dtype: torch.dtype | None = None) -> torch.Tensor:
        """Take a tensor into memory; see `WeightSource`."""
        return torch.empty(shape, dtype=dtype or self.dtype, device=self.device).copy_(self.mapped(name, shape))

    def skip(self, prefix: str) -> None:
        """Leave every tensor whose name begins so unread, as the weights of a disabled encoder are."""
        self._mark_read([name for name in self._unread if name.startswith(prefix)])

    def finish(self) -> None:
        """Check that every stored tensor was taken.

        Raises:
            CheckpointError: naming those that were not.
        """
        if self._unread:
            names = sorted(self._stored[name][1] for name in self._unread)
            shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
            raise CheckpointError(f"the model does not use these tensors of the checkpoint: {shown}")
        self.close()

    def close(self) -> None:
        """Let go of the files; tensors that were mapped stay valid."""
        self._files.clear()

    def _mark_read(self, names: Iterable[str]) -> None:
        self._unread.difference_update(names)
        if self._progress:
            self._progress(1 - len(self._unread) / max(self._total, 1))


class Scope:
    """A `WeightSource`: the tensors of a checkpoint below a prefix."""

    def __init__(self, checkpoint: Checkpoint, prefix: str) -> None:
        self.dtype = checkpoint.dtype
        self.device = checkpoint.device
        self._checkpoint = checkpoint
        self._prefix = prefix

    def under(self, prefix: str) -> "Scope":
        """Return the source of the names below `prefix`."""
        return Scope(self._checkpoint, f"{self._prefix}{prefix}.")

    def mapped(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        """Take a tensor as it lies in the file; see `WeightSource`."""
        return self._checkpoint.mapped(self._prefix + name, shape)

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Return a tensor's shape; see `WeightSource`."""
        return self._checkpoint.shape(self._prefix + name)

    def slices(self, name: str, shape: tuple[int, ...]) -> Iterator[torch.Tensor]:
        """Take a stack of matrices one by one; see `WeightSource`."""
        return self._checkpoint.slices(self._prefix + name, shape)

    def tensor(self, name: str, shape: tuple[int, ...], dtype: torch.dtype | None = None) -> torch.Tensor:
        """Take a tensor into memory; see `WeightSource`."""
        return self._checkpoint.tensor(self._prefix + name, shape, dtype)


def _weight_files(model_dir: Path) -> list[Path]:
    index = model_dir / "model.safetensors.index.json"
    if index.is_file():
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise CheckpointError(f"{index} has no weight_map")
        files = sorted({model_dir / str(name) for name in weight_map.values()})
    else:
        files = [model_dir / "model.safetensors"]
    for file in files:
        if not file.is_file():
            raise CheckpointError(f"{file} is missing")
    return files
