"""Time series on CUDA against float64: normalisation, and patches through the convolution.

Next: kernels/csrc/series.cu
"""

from collections.abc import Sequence

import pytest
import torch

from tessera_kernels import reference_series
from tessera_kernels.series import SeriesBatch, series_patches
from tests.cuda_ops import Target, check_error, check_guards, check_op

SPREAD = 1e-8
TAPS = 5
# (length, channels): two patches, whole and unfinished ones, many channels, a length that no stride divides
SERIES = [(13, 1), (24, 3), (97, 2), (30, 40)]


def batch_of(target: Target, sizes: Sequence[tuple[int, int]], stride: int, dtype: torch.dtype) -> SeriesBatch:
    """Noisy series back to back, guarded."""
    parts = [target.randn(*size, dtype=dtype, seed=index).cpu() for index, size in enumerate(sizes)]
    batch = SeriesBatch.of(parts, stride)
    return SeriesBatch(target.guarded(batch.samples), target.guarded(batch.table), stride, batch.patches)


def exact_rows(batch: SeriesBatch, *weights: torch.Tensor) -> torch.Tensor:
    """All embedded rows in float64: windows first, then the convolution as torch has it."""
    kernel, bias, positions = (x.cpu().double() for x in weights)
    windows = []
    for _, start, length, channels in batch.table.tolist():
        part = batch.samples[start : start + length * channels].view(length, channels).cpu().double()
        windows.append(reference_series.series_windows(part, batch.stride).flatten(0, 1))
    seen = torch.cat(windows)[:, None]
    convolved = torch.nn.functional.conv1d(seen, kernel[:, None], bias, padding=TAPS // 2).relu()
    return (convolved.transpose(1, 2) + positions[: 2 * batch.stride]).flatten(0, 1)


def weights_of(target: Target, width: int, length: int, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """Kernel, bias, positions."""
    shapes = (width, TAPS), (width,), (length, width)
    return tuple(target.randn(*shape, dtype=dtype, seed=7 + index) for index, shape in enumerate(shapes))


@pytest.mark.parametrize("stride", [2, 3, 7, 40])
@pytest.mark.parametrize("width", [1, 63, 128])
def test_patches(target: Target, dtype: torch.dtype, stride: int, width: int) -> None:
    """Series of one stride are cut, convolved and placed in one launch, each patch of each channel by itself."""
    sizes = [size for size in SERIES if size[0] > 2 * stride]
    batch, weights = batch_of(target, sizes, stride, dtype), weights_of(target, width, 2 * stride + 3, dtype)
    ours = target.ops.series_patches(batch.samples, batch.table, 0, batch.patches, stride, *weights)
    check_error("series_patches", ours, exact_rows(batch, *weights))
    check_guards(batch.samples, batch.table, *weights)


@pytest.mark.parametrize("width", [300, 2056])
def test_wide_patches(target: Target, dtype: torch.dtype, width: int) -> None:
    """Rows may be wider than a block has threads."""
    batch, weights = batch_of(target, SERIES[:1], 2, dtype), weights_of(target, width, 4, dtype)
    ours = target.ops.series_patches(batch.samples, batch.table, 0, batch.patches, 2, *weights)
    check_error("series_patches", ours, exact_rows(batch, *weights))


def test_some_of_the_patches(target: Target) -> None:
    """A part of the patches, wherever it begins, is the same as in the whole, bit for bit; none is no launch."""
    batch, weights = batch_of(target, SERIES, 5, torch.bfloat16), weights_of(target, 24, 10, torch.bfloat16)
    whole = series_patches(batch, 0, batch.patches, *weights).view(batch.patches, 10, 24)
    for first in (0, 1, 37, batch.patches - 1, batch.patches):
        for count in {0, 1, min(40, batch.patches - first), batch.patches - first}:
            if first + count <= batch.patches:
                part = series_patches(batch, first, count, *weights)
                assert torch.equal(part.view(count, 10, 24), whole[first : first + count])


def test_many_series(target: Target) -> None:
    """More series than a warp has lanes are told apart."""
    sizes = [(9 + index % 5, 1 + index % 3) for index in range(40)]
    batch, weights = batch_of(target, sizes, 4, torch.float32), weights_of(target, 8, 8, torch.float32)
    ours = target.ops.series_patches(batch.samples, batch.table, 0, batch.patches, 4, *weights)
    check_error("series_patches", ours, exact_rows(batch, *weights))


def test_the_longest_stride(target: Target) -> None:
    """Patches of 320 samples, the longest that are served."""
    batch, weights = batch_of(target, [(700, 1)], 160, torch.bfloat16), weights_of(target, 32, 320, torch.bfloat16)
    ours = target.ops.series_patches(batch.samples, batch.table, 0, batch.patches, 160, *weights)
    check_error("series_patches", ours, exact_rows(batch, *weights))


@pytest.mark.parametrize(("length", "channels", "used"), [(1, 1, 1), (63, 1, 40), (9000, 1, 8000), (300, 3, 300)])
@pytest.mark.parametrize("shift", [0.0, 1e5])
def test_normalise(target: Target, dtype: torch.dtype, length: int, channels: int, used: int, shift: float) -> None:
    """Mean and deviation are those of the whole series, and a mean far from zero costs no digits."""
    samples = target.guarded(target.randn(length, channels).cpu() + shift)
    wide = samples.cpu().double()
    exact = (wide - wide.mean(0)) / (wide.std(0, correction=0) + SPREAD)
    ours = target.ops.normalise_series(samples, used, SPREAD, dtype)
    assert ours.dtype is dtype
    check_error("normalise_series", ours, exact[:used])
    check_guards(samples)


def test_normalise_many_channels(target: Target) -> None:
    """Channels beyond those of a block, each on a scale of its own; a constant one becomes zeros."""
    samples = target.randn(50, 70).cpu() * torch.logspace(-3, 3, 70) + torch.linspace(-50, 50, 70)
    samples[:, 69] = 0.1
    wide = samples.double()
    exact = (wide - wide.mean(0)) / (wide.std(0, correction=0) + SPREAD)
    ours = target.ops.normalise_series(target.guarded(samples), 50, SPREAD, torch.float32)
    check_error("normalise_series", ours[:, :69], exact[:, :69])
    assert not ours[:, 69].any()


def test_normalise_nothing(target: Target) -> None:
    """No channels and no samples are no launch."""
    for shape, used in (((5, 0), 5), ((5, 2), 0), ((0, 3), 0)):
        assert target.ops.normalise_series(target.randn(*shape), used, SPREAD, torch.bfloat16).shape == (used, shape[1])


def test_bad_arguments_are_refused(target: Target) -> None:
    """A wrong shape, type or size is an error that names the argument."""
    batch, (kernel, bias, positions) = (
        batch_of(target, SERIES[:1], 2, torch.float32),
        weights_of(target, 8, 4, torch.float32),
    )
    op, parts = target.ops.series_patches, (batch.samples, batch.table, 0, 1, 2)
    with pytest.raises(RuntimeError, match="kernel must have five columns"):
        op(*parts, kernel[:, :3].contiguous(), bias, positions)
    with pytest.raises(RuntimeError, match="bias has another shape"):
        op(*parts, kernel, bias[:4], positions)
    with pytest.raises(RuntimeError, match="positions must have a row"):
        op(*parts, kernel, bias, positions[:3])
    with pytest.raises(RuntimeError, match="kernel has another dtype"):
        op(*parts, kernel.bfloat16(), bias, positions)
    with pytest.raises(RuntimeError, match="series must have four columns"):
        op(batch.samples, batch.table[:, :3].contiguous(), 0, 1, 2, kernel, bias, positions)
    with pytest.raises(RuntimeError, match="stride must be"):
        op(batch.samples, batch.table, 0, 1, 0, kernel, bias, positions)
    with pytest.raises(RuntimeError, match="samples has another dtype"):
        target.ops.normalise_series(batch.samples.view(-1, 1).double(), 1, SPREAD, torch.float32)
    with pytest.raises(RuntimeError, match="used must be"):
        target.ops.normalise_series(batch.samples.view(-1, 1), 14, SPREAD, torch.float32)


def test_ops_trace(target: Target, dtype: torch.dtype) -> None:
    """Schemas, fakes and tracing hold up to torch's own checks."""
    with torch.inference_mode(False):
        batch = SeriesBatch.of([torch.randn(9, 2, device=target.device).to(dtype)], 2)
        weights = tuple(torch.randn(shape, device=target.device).to(dtype) for shape in ((8, TAPS), 8, (4, 8)))
        check_op(target.ops.series_patches, (batch.samples, batch.table, 1, 3, 2, *weights))
        check_op(target.ops.normalise_series, (torch.randn(9, 2, device=target.device), 7, SPREAD, dtype))
