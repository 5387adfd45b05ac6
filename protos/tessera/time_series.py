"""What a time series may be, and how many tokens it owns: one rule for client, gateway and worker.

A series is cut into overlapping patches whose stride grows with the sampling rate, from 2 samples at the slowest to
160 at audio rates. The encoder drops an odd last patch, joins patches in pairs, and halves their number once more.

Next: items.py.
"""

from __future__ import annotations

import math

from tessera.errors import InvalidArgument, ResourceExhausted

MAX_LENGTH = 240_000
"""Samples that the encoder looks at; mean and deviation are those of the whole series."""
MAX_CHANNELS = 1024
"""Far above any instrument, and low enough that a transposed array is refused rather than encoded."""
MAX_USED_SAMPLES = 1 << 21
"""Samples that the encoder looks at, those of all channels together: eight channels of full length. What a series costs
grows with them, while its tokens do not, so that no other budget bounds it."""
MAX_STRIDE = 160
MIN_PATCHES = 2


def used_length(length: int) -> int:
    """Return the samples of a series that the encoder looks at: the first `MAX_LENGTH`."""
    return min(length, MAX_LENGTH)


def effective_rate(length: int, sampling_rate_hz: float) -> float:
    """Return the rate that the stride follows.

    Args:
        length: samples of the whole series.
        sampling_rate_hz: samples a second; 0 or less = unknown: then a quarter of the used samples, at least 1.

    Raises:
        InvalidArgument: the rate is NaN or infinite; field "sampling_rate_hz".
    """
    if not math.isfinite(sampling_rate_hz):
        raise InvalidArgument("A sampling rate is finite.", reason="SAMPLING_RATE", field="sampling_rate_hz")
    if sampling_rate_hz > 0:
        return sampling_rate_hz
    return max(used_length(length) / 4, 1.0)


def series_stride(length: int, sampling_rate_hz: float) -> int:
    """Return the samples from the beginning of one patch to that of the next, in [2, 160].

    Args:
        length: samples of the whole series; it decides the rate where that is unknown.
        sampling_rate_hz: samples a second; 0 or less = unknown.

    Raises:
        InvalidArgument: the rate is NaN or infinite; field "sampling_rate_hz".
        Source: InternS1-Pro's processor (released remote code): floor(160 / (1 + exp(-rate / 100))**6).
    """
    return math.floor(MAX_STRIDE / (1 + math.exp(-effective_rate(length, sampling_rate_hz) / 100)) ** 6)


def series_patch(length: int, sampling_rate_hz: float) -> int:
    """Return the samples of a patch, twice its stride; see series_stride."""
    return 2 * series_stride(length, sampling_rate_hz)


def num_series_patches(length: int, sampling_rate_hz: float) -> int:
    """Return the patches of a series, the last one padded with zeros.

    Args:
        length: samples of the whole series.
        sampling_rate_hz: samples a second; 0 or less = unknown.

    Raises:
        InvalidArgument: fewer than two patches (field "tensor.shape"), or a rate that is not finite
            (field "sampling_rate_hz").
    """
    patch, stride = series_patch(length, sampling_rate_hz), series_stride(length, sampling_rate_hz)
    patches = -(-(used_length(length) - patch) // stride) + 1
    if patches < MIN_PATCHES:
        rate = effective_rate(length, sampling_rate_hz)
        raise InvalidArgument(
            f"A series of {length} samples is too short: at {rate:g} Hz it has more than {patch}.",
            reason="SERIES_TOO_SHORT",
            field="tensor.shape",
        )
    return patches


def num_series_tokens(length: int, sampling_rate_hz: float) -> int:
    """Return the tokens that stand for a series, whatever its channels.

    Args:
        length: samples of the whole series.
        sampling_rate_hz: samples a second; 0 or less = unknown.

    Raises:
        InvalidArgument: SERIES_TOO_SHORT (field "tensor.shape") or SAMPLING_RATE (field "sampling_rate_hz").
    """
    return (num_series_patches(length, sampling_rate_hz) // 2 + 1) // 2


def check_series(length: int, channels: int, sampling_rate_hz: float) -> int:
    """Return the tokens of a series whose size and rate can be served.

    Args:
        length: samples in each channel.
        channels: of the series.
        sampling_rate_hz: samples a second; 0 or less = unknown.

    Raises:
        InvalidArgument: SERIES_CHANNELS or SERIES_TOO_SHORT (field "tensor.shape"), SAMPLING_RATE (field
            "sampling_rate_hz").
        ResourceExhausted: SERIES_TOO_LARGE (field "tensor.shape"): many channels of a great length.
    """
    if not 1 <= channels <= MAX_CHANNELS:
        hint = " Is it transposed? Rows are samples, columns are channels." if channels > length else ""
        raise InvalidArgument(
            f"A series has 1 to {MAX_CHANNELS} channels, not {channels}.{hint}",
            reason="SERIES_CHANNELS",
            field="tensor.shape",
        )
    used = used_length(length) * channels
    if used > MAX_USED_SAMPLES:
        raise ResourceExhausted(
            f"A series of {channels} channels has {used} samples to encode; at most {MAX_USED_SAMPLES} are taken.",
            reason="SERIES_TOO_LARGE",
            field="tensor.shape",
            retry_after_s=None,
        )
    return num_series_tokens(length, sampling_rate_hz)
