"""Precomputed embeddings from npy and safetensors files, as Items; nothing is unpickled.

    load_embeddings("cat.safetensors")                                   # the file says what it holds
    load_embeddings("cat.npy", modality="image", grid_thw=(1, 16, 16))   # an npy file cannot

A safetensors file has the tensor "embeddings" (tokens, hidden); its other float tensors are side tensors by their
names, such as "deepstack" (layers, tokens, hidden). "grid_thw" (3,) and "timestamps" may be tensors, or stand as JSON
in the file's metadata beside "modality".

Next: from_processor.py.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tessera_client.errors import InvalidArgument
from tessera_client.items import Item
from tessera_client.tensors import SIZES, Tensor

MAX_HEADER_BYTES = 1 << 20
PAYLOAD = "embeddings"
_ABOUT = ("modality", "grid_thw", "timestamps", "sampling_rate_hz")


def load_embeddings(
    path: str | os.PathLike[str],
    *,
    modality: str | None = None,
    grid_thw: Sequence[int] | None = None,
    timestamps: Sequence[float] | None = None,
    side_arrays: Mapping[str, Any] | None = None,
) -> Item:
    """Return the item of a file.

    Args:
        path: .npy or .safetensors.
        modality: "image", "video" or "time_series", where the file does not say it; None = an image.
        grid_thw: patches along time, height, width; of images and clips, where the file does not say it.
        timestamps: seconds of each sampled frame of a clip, where the file does not say them.
        side_arrays: further tensors by name; they win over the file's.

    Raises:
        InvalidArgument: EMBEDDINGS_FILE: it is no such file, or does not say what is needed.
        OSError: it cannot be read.
    """
    data = Path(path).expanduser().read_bytes()
    is_npy = data.startswith(b"\x93NUMPY")
    tensors, about = ({PAYLOAD: _read_npy(data)}, {}) if is_npy else read_safetensors(data)
    found: dict[str, Any] = {name: _numbers(tensors.pop(name)) for name in _ABOUT if name in tensors}
    found |= {name: _from_metadata(name, about[name]) for name in _ABOUT if name in about}
    payload = tensors.pop(PAYLOAD, None)
    if payload is None and len(tensors) == 1:
        payload = tensors.popitem()[1]
    if payload is None:
        raise _wrong(f'The file has no tensor "{PAYLOAD}", but {_listed(tensors)}.')
    kind = found.get("modality") or modality or "image"
    grid = found.get("grid_thw", grid_thw)
    if grid is None and kind != "time_series":
        raise _wrong("The file does not say its grid: give grid_thw=(t, h, w).", "grid_thw")
    return Item(
        modality=kind,
        payload_kind="embeddings",
        array=payload,
        grid_thw=None if grid is None else _grid(grid),
        timestamps=tuple(float(time) for time in found.get("timestamps", timestamps) or ()),
        side_arrays={**tensors, **(side_arrays or {})},
    )


def save_embeddings(path: str | os.PathLike[str], item: Item) -> None:
    """Write an item of embeddings as a safetensors file that load_embeddings reads.

    Raises:
        InvalidArgument: an array is none that the contract takes.
        OSError: the file cannot be written.
    """
    tensors = {PAYLOAD: Tensor.from_array(item.array, item.dtype)}
    for name, side in item.side_arrays.items():
        tensors[name] = Tensor.from_array(side, "BF16" if str(getattr(side, "dtype", "")) == "uint16" else None)
    about = {"modality": item.modality}
    if item.grid_thw is not None:
        about["grid_thw"] = json.dumps(list(item.grid_thw))
    if item.timestamps:
        about["timestamps"] = json.dumps(list(item.timestamps))
    Path(path).expanduser().write_bytes(write_safetensors(tensors, about))


def read_safetensors(data: bytes) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors and the metadata of a safetensors file.

    Raises:
        InvalidArgument: EMBEDDINGS_FILE.

    Source: the format's README, safetensors 0.8: 8 bytes of length, a JSON header, then the tensors.
    """
    size = int.from_bytes(data[:8], "little")
    if len(data) < 8 or not 2 <= size <= min(MAX_HEADER_BYTES, len(data) - 8):
        raise _wrong("It is neither an npy nor a safetensors file.")
    try:
        header = json.loads(data[8 : 8 + size])
        about = header.pop("__metadata__", {})
        entries = [(name, e["dtype"], tuple(e["shape"]), *e["data_offsets"]) for name, e in header.items()]
    except (ValueError, TypeError, KeyError, AttributeError):
        raise _wrong("Its safetensors header is malformed.") from None
    body = memoryview(data)[8 + size :]
    return {name: _tensor(name, dtype, shape, body, at, end) for name, dtype, shape, at, end in entries}, about


def write_safetensors(tensors: Mapping[str, Tensor], about: Mapping[str, str]) -> bytes:
    """Return a safetensors file of these tensors and this metadata."""
    header: dict[str, Any] = {"__metadata__": dict(about)}
    at = 0
    for name, tensor in tensors.items():
        header[name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [at, at + len(tensor.data)]}
        at += len(tensor.data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the tensors begin aligned
    return len(text).to_bytes(8, "little") + text + b"".join(tensor.data for tensor in tensors.values())


def _tensor(name: str, dtype: Any, shape: tuple[Any, ...], body: memoryview, at: Any, end: Any) -> Tensor:
    if dtype not in SIZES:
        raise _wrong(f'Tensor "{name}" is of dtype {dtype}, which is not taken; use one of {", ".join(SIZES)}.')
    whole = all(type(number) is int and number >= 0 for number in (*shape, at, end))
    if not whole or end > len(body) or end - at != math.prod(shape) * SIZES[dtype]:
        raise _wrong(f'Tensor "{name}" does not lie inside of the file as its header says.')
    return Tensor(dtype, shape, bytes(body[at:end]))


def _read_npy(data: bytes) -> Any:
    import io

    import numpy as np

    try:
        return Tensor.from_array(np.load(io.BytesIO(data), allow_pickle=False))
    except (ValueError, EOFError) as error:
        raise _wrong(f"Not an npy file of numbers: {error}.") from None


def _numbers(tensor: Tensor) -> list[float]:
    return [number.item() for number in tensor.to_array().reshape(-1)]


def _from_metadata(name: str, text: Any) -> Any:
    if name == "modality":
        return text
    try:
        return json.loads(text)
    except (TypeError, ValueError):
        raise _wrong(f'Its metadata "{name}" is not JSON: {text!r}.', name) from None


def _grid(values: Any) -> tuple[int, int, int]:
    try:
        t, h, w = (int(value) for value in values)
    except (TypeError, ValueError):
        raise _wrong(f"A grid is (t, h, w), not {values!r}.", "grid_thw") from None
    return t, h, w


def _listed(tensors: Mapping[str, Tensor]) -> str:
    return ", ".join(f'"{name}"' for name in tensors) or "none at all"


def _wrong(message: str, field: str | None = None) -> InvalidArgument:
    return InvalidArgument(message, reason="EMBEDDINGS_FILE", field=field)
