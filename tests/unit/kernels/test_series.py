"""Time series on the CPU: patches of several series at once against each by itself, and normalisation."""

import pytest
import torch
import torch.nn.functional as F

from tessera_kernels import ops

STRIDE = 3
SIZES = [(7, 1), (20, 2), (12, 3)]


def test_patches() -> None:
    """Patches overlap by half, the last is padded with zeros, and each is convolved by itself."""
    generator = torch.Generator().manual_seed(0)
    series = [torch.randn(size, generator=generator) for size in SIZES]
    kernel, bias, positions = (torch.randn(shape, generator=generator) for shape in ((8, 5), 8, (9, 8)))
    batch = ops.SeriesBatch.of(series, STRIDE)
    assert batch.patches == sum(ops.num_patches(length, STRIDE) * channels for length, channels in SIZES)
    expected = []
    for part in series:
        padded = F.pad(part, (0, 0, 0, 2 * STRIDE))
        for first in range(0, ops.num_patches(len(part), STRIDE) * STRIDE, STRIDE):
            seen = padded[first : first + 2 * STRIDE].t()[:, None]  # (channels, 1, patch)
            convolved = F.conv1d(seen, kernel[:, None], bias, padding=2).relu().transpose(1, 2)
            expected.append((convolved + positions[: 2 * STRIDE]).flatten(0, 1))
    whole = ops.series_patches(batch, 0, batch.patches, kernel, bias, positions)
    assert torch.allclose(whole, torch.cat(expected), atol=1e-5)
    part = ops.series_patches(batch, 4, 5, kernel, bias, positions)
    assert torch.allclose(part, whole[4 * 2 * STRIDE : 9 * 2 * STRIDE], atol=1e-6)


@pytest.mark.parametrize(
    ("length", "stride", "patches"), [(1, 2, 1), (4, 2, 1), (5, 2, 2), (6, 2, 2), (7, 2, 3), (321, 160, 2)]
)
def test_number_of_patches(length: int, stride: int, patches: int) -> None:
    """A patch is two strides long, and each begins one stride after the last; every sample is in one."""
    assert ops.num_patches(length, stride) == patches
    assert ops.series_windows(torch.zeros(length, 2), stride).shape == (patches, 2, 2 * stride)


def test_normalise() -> None:
    """Samples that are not used count in mean and deviation."""
    samples = torch.tensor([[1.0, 5.0], [3.0, 5.0], [8.0, 5.0]])
    ours = ops.normalise_series(samples, 2, 1e-8, torch.float32)
    deviation = (26 / 3) ** 0.5
    assert torch.allclose(ours, torch.tensor([[-3 / deviation, 0], [-1 / deviation, 0]]))
