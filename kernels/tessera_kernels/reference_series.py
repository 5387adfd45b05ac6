"""Time series in plain torch: normalisation, and overlapping patches through a small convolution.

Next: kernels/tessera_kernels/series.py
"""

import torch
import torch.nn.functional as F

from tessera_kernels import invariance


def normalise_series(samples: torch.Tensor, used: int, spread: float, dtype: torch.dtype) -> torch.Tensor:
    """Return the first samples of each channel, less its mean, by its deviation; see `series.normalise_series`."""
    wide = samples.double()
    with invariance.one_thread():
        mean, deviation = wide.mean(0, keepdim=True), wide.std(0, correction=0, keepdim=True)
    return ((wide[:used] - mean) / (deviation + spread)).to(dtype)


def num_patches(length: int, stride: int) -> int:
    """Return the patches of a series, the last one padded."""
    return max(0, -(-(length - 2 * stride) // stride)) + 1


def series_windows(series: torch.Tensor, stride: int) -> torch.Tensor:
    """Cut (length, channels) into overlapping patches, the last padded with zeros: (patches, channels, 2 * stride)."""
    length, patch = series.shape[0], 2 * stride
    missing = (num_patches(length, stride) - 1) * stride + patch - length
    return F.pad(series, (0, 0, 0, missing)).unfold(0, patch, stride)


def series_patches(
    samples: torch.Tensor,
    series: torch.Tensor,
    first: int,
    patches: int,
    stride: int,
    kernel: torch.Tensor,
    bias: torch.Tensor,
    positions: torch.Tensor,
) -> torch.Tensor:
    """Return embedded patches; see `series.series_patches`."""
    windows = [samples.new_empty(0, 2 * stride)]
    for _, start, length, channels in series.tolist():
        part = samples[start : start + length * channels].view(length, channels)
        windows.append(series_windows(part, stride).flatten(0, 1))
    seen = F.pad(torch.cat(windows)[first : first + patches].float(), (kernel.shape[1] // 2,) * 2)
    embedded = F.relu(F.linear(seen.unfold(1, kernel.shape[1], 1), kernel.float(), bias.float()))
    return (embedded + positions[: 2 * stride].float()).flatten(0, 1).to(samples.dtype)
