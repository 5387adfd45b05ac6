"""What every format gives: an array, a rate, and the same errors.

Next: gateway/media/series/npy.py
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gateway.media.options import ServerLimits
from gateway.media.problem import MediaProblem


@dataclass(frozen=True)
class RawSeries:
    """A series as its file has it.

    Attributes:
        array: (length, channels), any integer or float type and layout; values are not checked yet.
        sampling_rate_hz: 0 = the file does not say.
    """

    array: NDArray[Any]
    sampling_rate_hz: float = 0.0


def check_size(length: int, channels: int, limits: ServerLimits) -> None:
    """Check a series' size, before memory is spent on it.

    Raises:
        MediaProblem: SERIES_SHAPE: no sample or no channel; SERIES_CHANNELS: too many; SERIES_TOO_LARGE.
    """
    if length < 1 or channels < 1:
        raise MediaProblem("The series has no samples.", reason="SERIES_SHAPE", field="media")
    if channels > limits.max_series_channels:
        hint = " Is it transposed? Rows are samples, columns are channels." if channels > length else ""
        message = f"The series has {channels} channels; at most {limits.max_series_channels} are taken.{hint}"
        raise MediaProblem(message, reason="SERIES_CHANNELS", field="media")
    if length * channels > limits.max_series_samples:
        raise too_large(limits)


def fill(out: NDArray[np.float32], series: RawSeries) -> None:
    """Copy a series into its place as float32, and check that every value is finite there.

    Args:
        out: (length, channels) fp32, C order.
        series: of that shape.

    Raises:
        MediaProblem: SERIES_VALUE, naming the first value that is not.
    """
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is refused
        np.copyto(out, series.array, casting="unsafe")
    finite = np.isfinite(out)
    if not finite.all():
        sample, channel = np.unravel_index(int(finite.argmin()), finite.shape)
        value = float(series.array[sample, channel])
        message = f"Sample {sample}, channel {channel} of the series is {value:g}, not a finite float32."
        raise MediaProblem(message, reason="SERIES_VALUE", field="media")


def too_large(limits: ServerLimits) -> MediaProblem:
    """The error of a series with more samples than the server takes."""
    message = f"The series has more than {limits.max_series_samples} samples, all channels together."
    return MediaProblem(message, reason="SERIES_TOO_LARGE", field="media", code="RESOURCE_EXHAUSTED")


def unreadable(why: str) -> MediaProblem:
    """The error of a file that is damaged; `why` is a sentence."""
    return MediaProblem(f"The series cannot be read: {why}", reason="SERIES_UNREADABLE", field="media")
