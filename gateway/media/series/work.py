"""What a pool process does with one series: bytes to float32 samples with rate and hash, in place.

Next: gateway/media/child.py
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gateway.media.options import ServerLimits, TimeSeriesOptions
from gateway.media.series.formats import read_series
from gateway.media.series.samples import check_size, fill
from tessera.hashing import content_hash


@dataclass(frozen=True)
class SeriesWork:
    """One series to process."""

    options: TimeSeriesOptions
    limits: ServerLimits

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> "SeriesWork":
        """The work that `dataclasses.asdict` and JSON turned into `fields`."""
        return cls(TimeSeriesOptions(**fields["options"]), ServerLimits(**fields["limits"]))


@dataclass(frozen=True)
class Samples:
    """A processed series.

    Attributes:
        array: (length, channels) fp32, finite.
        sampling_rate_hz: The option's, else the file's; 0 = unknown.
        content_hash: 32 bytes.
    """

    array: NDArray[np.float32]
    sampling_rate_hz: float
    content_hash: bytes

    def to_json(self, offset: int) -> dict[str, Any]:
        """What a process says of it; the samples lie at `offset` of the shared memory."""
        return {
            "array": {"offset": offset, "shape": self.array.shape},
            "sampling_rate_hz": self.sampling_rate_hz,
            "content_hash": self.content_hash.hex(),
        }


def process_series(
    data: memoryview, work: SeriesWork, allocate: Callable[[tuple[int, ...]], NDArray[np.uint8]]
) -> Samples:
    """Read one series and put it into place.

    Args:
        data: An encoded file.
        work: Options and limits.
        allocate: Gives bytes for the result, by shape.

    Raises:
        MediaProblem: The series cannot be served.
        MemoryError: It needs more than the process may have.
    """
    given = work.options.sampling_rate_hz
    series = read_series(data, work.limits, given is not None)
    length, channels = series.array.shape
    check_size(length, channels, work.limits)
    out = allocate((length, channels, 4)).view(np.float32).reshape(length, channels)
    fill(out, series)
    rate = series.sampling_rate_hz if given is None else given
    return Samples(out, rate, content_hash("time_series", "samples", "F32", out, sampling_rate_hz=rate))
