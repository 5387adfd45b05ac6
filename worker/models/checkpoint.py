"""Reading a checkpoint: tensors by canonical name, mapped from their files and never copied whole.

Files written by different releases spell names differently; here they are `model.language_model.*`, `model.visual.*`
and `lm_head.*`. Each tensor that the files hold must be taken, and each that is asked for must be there.

Next: worker/models/loader.py
"""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

Progress = Callable[[float], None]
"""Called with the share of bytes read so far, 0 to 1."""

_RESPELLED = (  # older prefix -> canonical one; the first that fits counts
    ("model.language_model.", "model.language_model."),
    ("model.visual.", "model.visual."),
    ("language_model.model.", "model.language_model."),
    ("language_model.lm_head.", "lm_head."),
    ("lm_head.", "lm_head."),
    ("visual.", "model.visual."),
    ("model.", "model.language_model."),
)
_RECOMPUTED_SUFFIXES = ("rotary_emb.inv_freq",)  # buffers that some releases stored


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


def canonical_name(name: str) -> str:
    """Return a stored name as this worker spells it."""
    for old, new in _RESPELLED:
        if name.startswith(old):
            return new + name[len(old) :]
    return name


class Checkpoint:
    """The safetensors of a directory; a `WeightSource` through `under`.

    Args:
        model_dir: directory with model.safetensors, or shards and model.safetensors.index.json.
        dtype: storage type of the model.
        device: device of the model.
        progress: told how far loading is.

    Raises:
        CheckpointError: no weights, a shard missing or broken.
    """

    def __init__(
        self, model_dir: Path, dtype: torch.dtype, device: torch.device, progress: Progress | None = None
    ) -> None:
        self.dtype = dtype
        self.device = device
        self._progress = progress
        self._files = {file: self._open(file) for file in _weight_files(model_dir)}
        self._stored: dict[str, tuple[Path, str]] = {}
        for file, handle in self._files.items():
            for name in handle.keys():  # noqa: SIM118 - safe_open is no mapping
                if not name.endswith(_RECOMPUTED_SUFFIXES):
                    self._stored[canonical_name(name)] = (file, name)
        self._unread = set(self._stored)
        self._total = len(self._unread)

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

    def mapped(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        """Take a tensor as it lies in the file; see `WeightSource`."""
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
