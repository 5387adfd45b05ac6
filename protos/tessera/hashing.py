"""The content hash: 256 bits over all that an encoder's output depends on.

Next: items.py.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping, Sequence

from numpy.typing import NDArray

VERSION = b"tessera-item-1"
HASH_BYTES = 32


def content_hash(
    modality: str,
    payload_kind: str,
    dtype: str,
    array: NDArray,
    grid_thw: Sequence[int] | None = None,
    *,
    side_arrays: Mapping[str, tuple[str, NDArray]] | None = None,
    sampling_rate_hz: float = 0.0,
) -> bytes:
    """Return the SHA-256 that names an item.

    Timestamps, ranges and cache salts are not in it: they do not change what the encoder returns.

    Args:
        modality: "image", "video", "time_series".
        payload_kind: "pixels_u8", "patches", "samples", "embeddings".
        dtype: safetensors spelling.
        array: the payload, C order.
        grid_thw: patches along time, height, width; None for a series.
        side_arrays: name to (dtype, array).
        sampling_rate_hz: of a series.

    Returns:
        32 bytes.
    """
    digest = hashlib.sha256()
    _add(digest, VERSION)
    _add(digest, modality.encode())
    _add(digest, payload_kind.encode())
    _add(digest, struct.pack(f"<{len(grid_thw)}q", *grid_thw) if grid_thw else b"")
    _add(digest, struct.pack("<d", sampling_rate_hz))
    _add_array(digest, dtype, array)
    for name in sorted(side_arrays or {}):
        _add(digest, name.encode())
        _add_array(digest, *(side_arrays or {})[name])
    return digest.digest()


def _add_array(digest: hashlib._Hash, dtype: str, array: NDArray) -> None:
    _add(digest, dtype.encode())
    _add(digest, struct.pack(f"<{array.ndim}q", *array.shape))
    if not array.flags.c_contiguous:
        array = array.copy(order="C")
    _add(digest, memoryview(array).cast("B"))  # type: ignore[arg-type]


def _add(digest: hashlib._Hash, part: bytes | memoryview) -> None:
    # Each part goes in with its length, so that no two lists of parts run together alike.
    digest.update(struct.pack("<Q", len(part)))
    digest.update(part)
