"""Pictures against transformers' Qwen-VL image processor on its torchvision backend: same grids, same pixels.

Oracle: transformers 5.23.0. Tolerance: none.

Next: tests/parity/test_media_video.py
"""

import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers.image_utils import load_image
from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor, smart_resize

from gateway.media.decode import ImageWork, Pixels, process_image
from gateway.media.options import ImageOptions, ServerLimits
from gateway.media.problem import MediaProblem
from gateway.media.resize import load_resizer
from gateway.media.rules import MediaRules, image_size

RESIZE = load_resizer()
native = pytest.mark.skipif(RESIZE.name != "native", reason="libtessera_resize.so is not built: make kernels")
SIZE = {"shortest_edge": 64 * 64, "longest_edge": 384 * 384}
CONFIG = {"patch_size": 16, "merge_size": 2, "size": SIZE, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}


def patchify(array: np.ndarray, rules: MediaRules) -> torch.Tensor:
    """Normalised rows (patches, 1536) of (frames, height, width, 3) uint8, in the oracle's order."""
    frames = torch.from_numpy(array.copy()).permute(0, 3, 1, 2).to(torch.float32)
    mean = torch.tensor(rules.image_mean).view(-1, 1, 1) * 255.0
    std = torch.tensor(rules.image_std).view(-1, 1, 1) * 255.0
    frames = frames.sub_(mean).div_(std)
    if len(frames) % 2:
        frames = torch.cat([frames, frames[-1:]])
    count, channels, height, width = frames.shape
    p = rules.patch_size
    x = frames.view(count // 2, 2, channels, height // p // 2, 2, p, width // p // 2, 2, p)
    return x.permute(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(-1, channels * 2 * p * p)


def ours(data: bytes, options: ImageOptions = ImageOptions()) -> tuple[Pixels, MediaRules]:  # noqa: B008  (frozen)
    """Our result for an encoded picture."""
    rules = MediaRules.from_checkpoint(CONFIG, CONFIG)
    limits = ServerLimits(max_image_pixels=1 << 24)
    return process_image(data, ImageWork(options, rules, limits), RESIZE, lambda s: np.empty(s, np.uint8)), rules


def oracle(image: Image.Image, **size: int) -> dict[str, torch.Tensor]:
    """transformers' result."""
    return Qwen2VLImageProcessor(**CONFIG)(image, size=SIZE | size, return_tensors="pt")


def encode(image: Image.Image, format_name: str = "PNG", **arguments: object) -> bytes:
    """A picture as a file."""
    buffer = io.BytesIO()
    image.save(buffer, format_name, **arguments)
    return buffer.getvalue()


def photo(height: int, width: int, seed: int = 0) -> Image.Image:
    """A picture with edges and noise."""
    rng = np.random.default_rng(seed)
    blocks = np.kron(rng.integers(0, 256, (-(-height // 8), -(-width // 8), 3)), np.ones((8, 8, 1)))[:height, :width]
    return Image.fromarray(np.clip(blocks + rng.integers(-20, 20, blocks.shape), 0, 255).astype(np.uint8))


def assert_equal(result: Pixels, rules: MediaRules, expected: dict[str, torch.Tensor]) -> None:
    """Same grid, same rows."""
    assert list(result.grid_thw) == expected["image_grid_thw"][0].tolist()
    assert torch.equal(patchify(result.array, rules), expected["pixel_values"])


@native
@pytest.mark.parametrize(
    "size", [(64, 64), (100, 170), (170, 100), (480, 640), (31, 500), (7, 7), (1, 200), (333, 257), (384, 384)]
)
def test_pixels_and_grids_are_the_oracle_s(size: tuple[int, int]) -> None:
    """Larger, smaller, inside the budget, and tiny."""
    image = photo(*size)
    assert_equal(*ours(encode(image)), oracle(image))


@native
@pytest.mark.parametrize("mode", ["L", "P", "1", "RGBA", "LA", "CMYK"])
def test_colour_modes_are_the_oracle_s(mode: str) -> None:
    """Gray, palette, transparency on white, print colours."""
    image = photo(90, 130).convert(mode)
    if mode == "RGBA":
        image.putalpha(Image.fromarray(np.asarray(photo(90, 130, 1))[:, :, 0]))
    data = encode(image, "TIFF" if mode == "CMYK" else "PNG")
    assert_equal(*ours(data), oracle(Image.open(io.BytesIO(data))))


@native
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_load_image_s(orientation: int, tmp_path: object) -> None:
    """EXIF orientation is applied, as transformers' load_image does."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(photo(60, 140), "JPEG", exif=exif)
    import base64

    expected = oracle(load_image("data:image/jpeg;base64," + base64.b64encode(data).decode()))
    assert_equal(*ours(data), expected)


@native
@pytest.mark.parametrize(
    ("options", "size"),
    [
        (ImageOptions(max_pixels=96 * 96), {"longest_edge": 96 * 96}),
        (ImageOptions(min_pixels=256 * 256), {"shortest_edge": 256 * 256}),
        (
            ImageOptions(min_pixels=40_000, max_pixels=50_000),
            {"shortest_edge": 40_000, "longest_edge": 50_000},
        ),
        (ImageOptions(max_pixels=1 << 20), {"longest_edge": 1 << 20}),
    ],
)
def test_budget_overrides_are_the_oracle_s_size(options: ImageOptions, size: dict[str, int]) -> None:
    """min_pixels and max_pixels are the oracle's shortest and longest edge."""
    image = photo(180, 260)
    assert_equal(*ours(encode(image), options), oracle(image, **size))


@settings(max_examples=400, deadline=None)
@given(
    height=st.integers(1, 5000),
    width=st.integers(1, 5000),
    factor=st.sampled_from([(16, 2), (14, 2), (8, 1)]),
    low=st.integers(1, 1 << 20),
    high=st.integers(1, 1 << 24),
)
def test_sizes_are_smart_resize_s(height: int, width: int, factor: tuple[int, int], low: int, high: int) -> None:
    """The same two sides for every budget; refused exactly where the oracle refuses."""
    rules = MediaRules(patch_size=factor[0], merge_size=factor[1])
    try:
        expected = smart_resize(height, width, rules.factor, low, high)
    except ValueError:
        with pytest.raises(MediaProblem):
            image_size(height, width, rules, low, high)
        return
    assert image_size(height, width, rules, low, high) == expected
