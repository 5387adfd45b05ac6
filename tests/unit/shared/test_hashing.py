"""Tests of protos/tessera/hashing.py."""

from typing import Any

import numpy as np
import pytest

from tessera.hashing import HASH_BYTES, content_hash

PIXELS = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)
BASE: dict[str, Any] = {
    "modality": "video",
    "payload_kind": "pixels_u8",
    "dtype": "U8",
    "array": PIXELS,
    "grid_thw": (1, 2, 2),
}


def test_a_hash_is_32_bytes_and_repeats() -> None:
    """The same item has the same 256-bit name, in every process."""
    assert content_hash(**BASE) == content_hash(**BASE)
    assert len(content_hash(**BASE)) == HASH_BYTES == 32


def test_known_value() -> None:
    """The hash of a fixed item never changes without a new version string: stored names stay true."""
    assert content_hash(**BASE).hex() == "0deeeefe9c9eca65f41619cb9ce8371b642efe45b82d7bbdcfaa4eb0f162f0f5"


@pytest.mark.parametrize(
    "change",
    [
        {"modality": "image"},
        {"payload_kind": "patches"},
        {"dtype": "I8"},
        {"array": PIXELS.reshape(1, 8, 4, 3)},
        {"array": PIXELS.reshape(-1)},
        {"array": PIXELS + 1},
        {"grid_thw": (2, 2, 1)},
        {"grid_thw": (1, 4, 1)},
        {"grid_thw": None},
        {"side_arrays": {"deepstack": ("F32", np.zeros((1, 1, 1), np.float32))}},
        {"sampling_rate_hz": 1.0},
    ],
    ids=lambda change: "-".join(change),
)
def test_everything_that_changes_the_encoders_output_changes_the_name(change: dict[str, Any]) -> None:
    """Same bytes under another modality, kind, dtype, shape or grid are another item."""
    assert content_hash(**BASE | change) != content_hash(**BASE)


def test_side_arrays_count_by_name_dtype_shape_and_bytes() -> None:
    """A side tensor's name, dtype, shape and bytes all enter; their order does not."""
    zeros, ones = np.zeros((2, 2), np.float32), np.ones((2, 2), np.float32)
    variants = [
        {"a": ("F32", zeros)},
        {"b": ("F32", zeros)},
        {"a": ("F32", ones)},
        {"a": ("I32", zeros)},
        {"a": ("F32", zeros.reshape(4, 1))},
        {"a": ("F32", zeros), "b": ("F32", ones)},
        {"a": ("F32", ones), "b": ("F32", zeros)},
    ]
    assert len({content_hash(**BASE, side_arrays=sides) for sides in variants}) == len(variants)
    swapped = {"b": ("F32", ones), "a": ("F32", zeros)}
    assert content_hash(**BASE, side_arrays=swapped) == content_hash(**BASE, side_arrays=variants[5])


def test_parts_cannot_run_together() -> None:
    """Moving a byte from one part to its neighbour gives another name: each part is framed by its length."""
    one = content_hash("image", "pixels_u8", "U8", np.zeros(1, np.uint8))
    other = content_hash("imagep", "ixels_u8", "U8", np.zeros(1, np.uint8))
    assert one != other


def test_memory_layout_does_not_count() -> None:
    """Two arrays with equal elements have one name, however they lie in memory."""
    assert content_hash(**BASE | {"array": np.asfortranarray(PIXELS)}) == content_hash(**BASE)
    strided = np.repeat(PIXELS, 2, axis=1)[:, ::2]
    assert content_hash(**BASE | {"array": strided}) == content_hash(**BASE)
