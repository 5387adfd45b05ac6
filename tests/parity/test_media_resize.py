"""The resize library against torch's own, byte for byte.

Oracle: torch.nn.functional.interpolate on uint8, bicubic, antialias. Tolerance: none.

Next: tests/parity/test_media_image.py
"""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from gateway.media.resize import load_resizer

RESIZE = load_resizer()
pytestmark = pytest.mark.skipif(RESIZE.name != "native", reason="libtessera_resize.so is not built: make kernels")


def oracle(frames: NDArray[np.uint8], height: int, width: int, channels_last: bool = False) -> NDArray[np.uint8]:
    """torch's result for (frames, h, w, 3), from either memory layout."""
    x = torch.from_numpy(frames).permute(0, 3, 1, 2)
    x = x if channels_last else x.contiguous()
    out = torch.nn.functional.interpolate(x, size=(height, width), mode="bicubic", antialias=True, align_corners=False)
    return np.ascontiguousarray(out.permute(0, 2, 3, 1).numpy())


def ours(frames: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Our result."""
    out = np.empty((len(frames), height, width, 3), np.uint8)
    RESIZE(frames, out)
    return out


def content(kind: str, shape: tuple[int, ...], seed: int) -> NDArray[np.uint8]:
    """Noise, a ramp, or black and white blocks, which overshoot."""
    rng = np.random.default_rng(seed)
    if kind == "noise":
        return rng.integers(0, 256, shape, dtype=np.uint8)
    if kind == "blocks":
        return (rng.integers(0, 2, shape) * 255).astype(np.uint8)
    ramp = np.add.outer(np.arange(shape[1]) * 2, np.arange(shape[2]))[None, :, :, None]
    return ((ramp + rng.integers(0, 9, (shape[0], 1, 1, 3))) % 256).astype(np.uint8)


SIZES = [
    ((480, 640), (448, 608)),
    ((480, 640), (256, 320)),
    ((100, 170), (96, 160)),
    ((96, 64), (160, 128)),
    ((37, 53), (64, 96)),
    ((512, 512), (512, 480)),
    ((512, 512), (480, 512)),
    ((64, 64), (64, 64)),
    ((3, 700), (32, 1024)),
    ((1500, 2), (992, 32)),
    ((1, 200), (32, 192)),
    ((700, 500), (32, 32)),
    ((33, 31), (32, 32)),
    ((2, 2), (320, 256)),
]


@pytest.mark.parametrize("kind", ["noise", "ramp", "blocks"])
@pytest.mark.parametrize(("source", "target"), SIZES)
def test_the_resize_is_torch_s(kind: str, source: tuple[int, int], target: tuple[int, int]) -> None:
    """Up, down, odd, extreme, one axis alone, and no change at all."""
    frames = content(kind, (2, *source, 3), seed=source[0])
    np.testing.assert_array_equal(ours(frames, *target), oracle(frames, *target))


@pytest.mark.slow
@pytest.mark.parametrize(("source", "target"), [((1080, 1920), (1088, 1920)), ((1080, 1920), (544, 960))])
def test_the_resize_of_large_pictures_is_torch_s(source: tuple[int, int], target: tuple[int, int]) -> None:
    """From planar and from interleaved tensors alike."""
    frames = content("noise", (1, *source, 3), seed=1)
    np.testing.assert_array_equal(ours(frames, *target), oracle(frames, *target))
    np.testing.assert_array_equal(ours(frames, *target), oracle(frames, *target, channels_last=True))


@settings(max_examples=150, deadline=None)
@given(
    sizes=st.tuples(*[st.integers(1, 130)] * 4),
    frames=st.integers(1, 3),
    kind=st.sampled_from(["noise", "ramp", "blocks"]),
    seed=st.integers(0, 1 << 20),
)
def test_any_size_is_torch_s(sizes: tuple[int, int, int, int], frames: int, kind: str, seed: int) -> None:
    """Whatever goes in and out; torch itself fails where a picture or result is a single pixel."""
    height, width, out_height, out_width = sizes
    if height * width == 1 or out_height * out_width == 1:
        return
    source = content(kind, (frames, height, width, 3), seed)
    expected = np.concatenate([oracle(frame[None], out_height, out_width) for frame in source])
    np.testing.assert_array_equal(ours(source, out_height, out_width), expected)
