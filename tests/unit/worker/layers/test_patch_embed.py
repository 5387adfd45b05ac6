"""Patch embedding of raw pixels equals the convolution of normalised ones.

Next: tests/unit/worker/layers/test_kv_cache.py
"""

from dataclasses import dataclass

import pytest
import torch

from tessera_kernels import reference
from worker.layers.patch_embed import PatchEmbed


@dataclass(frozen=True)
class Shape:
    """Sizes of the test's embedding."""

    hidden_size: int = 10
    in_channels: int = 3
    patch_size: int = 4
    temporal_patch_size: int = 2
    merge_size: int = 2


@dataclass(frozen=True)
class Statistics:
    """Mean and deviation of each channel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


class Source:
    """A `WeightSource` over two tensors."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor, dtype: torch.dtype) -> None:
        self.tensors = {"proj.weight": weight, "proj.bias": bias}
        self.dtype, self.device = dtype, torch.device("cpu")

    def mapped(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        """Return the tensor, checked."""
        assert tuple(self.tensors[name].shape) == shape
        return self.tensors[name]


IMAGE = Statistics((0.48, 0.46, 0.41), (0.27, 0.26, 0.28))
VIDEO = Statistics((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def make(dtype: torch.dtype = torch.float32) -> tuple[PatchEmbed, torch.Tensor, torch.Tensor]:
    """The layer, and its convolution's weight and bias."""
    generator = torch.Generator().manual_seed(2)
    weight, bias = (torch.randn(shape, generator=generator) for shape in ((10, 3, 2, 4, 4), (10,)))
    return PatchEmbed(Source(weight, bias, dtype), Shape(), IMAGE, VIDEO), weight, bias  # type: ignore[arg-type]


def pixels(frames: int) -> torch.Tensor:
    """Random frames of 8 x 16."""
    return torch.randint(0, 256, (frames, 8, 16, 3), generator=torch.Generator().manual_seed(frames), dtype=torch.uint8)


def normalised_rows(frames: torch.Tensor, statistics: Statistics) -> torch.Tensor:
    """What a Hugging Face processor makes of frames, in float64."""
    values = (frames.double() / 255 - torch.tensor(statistics.mean)) / torch.tensor(statistics.std)
    return reference.patchify(values, 4, 2, 2)


@pytest.mark.parametrize(("frames", "padded"), [(1, [0, 0]), (2, [0, 1]), (3, [0, 1, 2, 2]), (4, [0, 1, 2, 3])])
def test_pixels_equal_the_convolution(frames: int, padded: list[int]) -> None:
    """Folded weights give W((x / 255 - mean) / std) + b; a still counts twice, an odd clip repeats its last frame."""
    layer, weight, bias = make()
    raw = pixels(frames)
    rows = normalised_rows(raw[padded], IMAGE if frames == 1 else VIDEO)
    exact = rows @ weight.flatten(1).double().t() + bias.double()
    assert (layer.pixels(raw, still=frames == 1) - exact).abs().max() < 1e-4


def test_ready_patches_equal_the_convolution() -> None:
    """Normalised float patches go through the same weights."""
    layer, weight, bias = make()
    rows = normalised_rows(pixels(2), IMAGE).float()
    exact = rows.double() @ weight.flatten(1).double().t() + bias.double()
    assert (layer.patches(rows) - exact).abs().max() < 1e-4


def test_bf16_pixels_are_exact_before_the_product() -> None:
    """Centred pixels fit into bf16, so the only rounding is that of weights and result."""
    layer, weight, bias = make(torch.bfloat16)
    exact = normalised_rows(pixels(2), VIDEO) @ weight.flatten(1).double().t() + bias.double()
    assert (layer.pixels(pixels(2), still=False).double() - exact).abs().max() < 0.02 * exact.abs().max()
