"""Time series as ops: normalisation, and overlapping patches of several series through a small convolution.

Next: kernels/tessera_kernels/reference_series.py
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from tessera_kernels import cuda, reference_series
from tessera_kernels.reference_series import num_patches, series_windows
from tessera_kernels.transfer import on_device

__all__ = ["SeriesBatch", "normalise_series", "num_patches", "series_patches", "series_windows"]


@dataclass(frozen=True)
class SeriesBatch:
    """Series of one stride, back to back.

    Args:
        samples: flat, (length, channels) of each series.
        table: int64 (k, 4): first patch, first sample, length, channels of each. Patches of all channels are counted,
            the channels of a patch side by side.
        stride: samples between the beginnings of two patches; a patch is twice as long.
        patches: of all series and channels.
    """

    samples: torch.Tensor
    table: torch.Tensor
    stride: int
    patches: int

    @classmethod
    def of(cls, series: Sequence[torch.Tensor], stride: int) -> "SeriesBatch":
        """Put series together: (length, channels) each, of one type on one device, one at least."""
        table = torch.empty(len(series), 4, dtype=torch.int64)
        patches = start = 0
        for index, part in enumerate(series):
            table[index] = torch.tensor((patches, start, *part.shape))
            patches += num_patches(part.shape[0], stride) * part.shape[1]
            start += part.numel()
        samples = torch.cat([part.flatten() for part in series])
        return cls(samples, on_device(table, samples.device), stride, patches)


def series_patches(
    batch: SeriesBatch,
    first: int,
    patches: int,
    kernel: torch.Tensor,
    bias: torch.Tensor,
    positions: torch.Tensor,
) -> torch.Tensor:
    """Embed each sample of some patches: convolution inside the patch, ReLU, and the sample's position in it.

    Args:
        batch: samples of the weights' type; what a patch lacks at the end of its series is zero.
        first: first patch.
        patches: how many, of those that there are.
        kernel: (width, 5), what a sample and its two neighbours on either side contribute; beyond the patch lie zeros.
        bias: (width,).
        positions: (2 * stride or more, width).

    Returns:
        (patches * 2 * stride, width).
    """
    parts = batch.samples, batch.table, first, patches, batch.stride, kernel, bias, positions
    if cuda.serves(batch.samples):
        return cuda.ops().series_patches(*parts)
    return reference_series.series_patches(*parts)


def normalise_series(samples: torch.Tensor, used: int, spread: float, dtype: torch.dtype) -> torch.Tensor:
    """Return the first samples of a series, each channel less its mean, divided by its deviation.

    Args:
        samples: float (length, channels); mean and deviation are those of all samples.
        used: samples of each channel that are returned.
        spread: added to a deviation, so that a constant channel becomes zeros.
        dtype: of the result.

    Returns:
        (used, channels).
    """
    if cuda.runs_on(samples.device, dtype):
        return cuda.ops().normalise_series(samples.float().contiguous(), used, spread, dtype)
    return reference_series.normalise_series(samples, used, spread, dtype)


def batches_series(x: torch.Tensor) -> bool:
    """Tell whether patches of several series are embedded by one op (`ops.series_patches`), never cut out of them."""
    return cuda.serves(x)
