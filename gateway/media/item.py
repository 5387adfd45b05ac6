"""What the pool gives back: an item of pixels or samples, and what was decided on the way.

A pool process works on hostile bytes, so its answer is checked like any other input.

Next: gateway/processor/cache.py
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gateway.media.plan import SamplingPlan
from tessera.errors import ServeError
from tessera.items import MultimodalItem
from tessera.modality import Modality, PayloadKind
from tessera.tensors import all_finite
from tessera.time_series import check_series


@dataclass(frozen=True)
class ProcessedItem:
    """One processed medium.

    Attributes:
        item: PIXELS_U8 (frames, height, width, 3) with grid and times, or SAMPLES fp32 (length, channels) with rate;
            with hash, without ranges.
        source_size: (height, width) as decoded, EXIF orientation applied; (0, 0) for a series.
        effective_min_pixels, effective_max_pixels: The budget that held; 0 for a series.
        plan: The frames that were used; None for a picture or series.
    """

    item: MultimodalItem
    source_size: tuple[int, int] = (0, 0)
    effective_min_pixels: int = 0
    effective_max_pixels: int = 0
    plan: SamplingPlan | None = None

    @property
    def modality(self) -> Modality:
        """What it is."""
        return self.item.modality

    @property
    def size_bytes(self) -> int:
        """Bytes of its pixels or samples."""
        return 0 if self.item.array is None else self.item.array.nbytes


def result_place(pixels: dict[str, Any], region_bytes: int) -> tuple[int, tuple[int, int, int, int]]:
    """Where a process says that its result is: (offset, shape), inside the shared memory.

    Raises:
        ValueError: It cannot be.
    """
    offset, shape = pixels["array"]["offset"], tuple(pixels["array"]["shape"])
    whole = all(type(n) is int and n > 0 for n in shape) and type(offset) is int and offset >= 0
    if not whole or len(shape) != 4 or shape[3] != 3 or offset + math.prod(shape) > region_bytes:
        raise ValueError("a result outside of the shared memory")
    return offset, shape


def series_place(samples: dict[str, Any], region_bytes: int) -> tuple[int, tuple[int, int]]:
    """Where a process says that its series is: (offset, (length, channels)), inside the shared memory.

    Raises:
        ValueError: It cannot be.
    """
    offset, (length, channels) = samples["array"]["offset"], samples["array"]["shape"]
    whole = all(type(n) is int and n > 0 for n in (length, channels)) and type(offset) is int and offset >= 0
    if not whole or offset + length * channels * 4 > region_bytes:
        raise ValueError("a result outside of the shared memory")
    return offset, (length, channels)


def build_series(samples: dict[str, Any], array: NDArray[np.float32]) -> ProcessedItem:
    """Make the item of a process's answer to a series.

    Args:
        samples: The answer's numbers.
        array: (length, channels) fp32, a copy that the process cannot change.

    Raises:
        ValueError: The numbers cannot be.
        InvalidArgument, ResourceExhausted: what check_series raises; field relative to the media part.
    """
    rate = samples["sampling_rate_hz"]
    if type(rate) not in (int, float) or not 0 <= rate < math.inf or not all_finite(array, "F32"):
        raise ValueError("a result with wrong values")
    length, channels = array.shape
    try:
        check_series(length, channels, float(rate))
    except ServeError as error:
        raise type(error)(error.message, reason=error.reason, field="media", retry_after_s=None) from None
    item = MultimodalItem(
        modality=Modality.TIME_SERIES,
        payload_kind=PayloadKind.SAMPLES,
        content_hash=_hash(samples["content_hash"]),
        dtype="F32",
        array=array,
        sampling_rate_hz=float(rate),
        channels=channels,
    )
    return ProcessedItem(item)


def build_item(modality: Modality, pixels: dict[str, Any], array: NDArray[np.uint8]) -> ProcessedItem:
    """Make the item of a process's answer.

    Args:
        modality: Of the job.
        pixels: The answer's numbers.
        array: (frames, height, width, 3) uint8, a copy that the process cannot change.

    Raises:
        ValueError: The numbers do not fit together.
    """
    grid, plan = _ints(pixels["grid_thw"], 3), pixels["plan"]
    sampling = None if plan is None else _plan(plan, len(array))
    if (sampling is None) != (modality is Modality.IMAGE) or not grid[0] <= len(array):
        raise ValueError("a result of another modality")
    item = MultimodalItem(
        modality=modality,
        payload_kind=PayloadKind.PIXELS_U8,
        content_hash=_hash(pixels["content_hash"]),
        dtype="U8",
        array=array,
        grid_thw=(grid[0], grid[1], grid[2]),
        timestamps=() if sampling is None else sampling.timestamps,
    )
    height, width = _ints(pixels["source_size"], 2)
    low, high = _ints([pixels["min_pixels"], pixels["max_pixels"]], 2)
    return ProcessedItem(item, (height, width), low, high, sampling)


def _ints(values: Any, count: int) -> tuple[int, ...]:
    if len(values) != count or not all(type(v) is int and v > 0 for v in values):
        raise ValueError("a result with wrong sizes")
    return tuple(values)


def _hash(text: str) -> bytes:
    digest = bytes.fromhex(text)
    if len(digest) != 32:
        raise ValueError("a result with a wrong hash")
    return digest


def _plan(plan: dict[str, Any], frames: int) -> SamplingPlan:
    indices, times = tuple(plan["frame_indices"]), tuple(float(t) for t in plan["timestamps"])
    numbers = (*times, plan["source_fps"], plan["duration_s"])
    if len(indices) != frames or len(times) != frames or not all(math.isfinite(n) for n in numbers):
        raise ValueError("a result with a wrong plan")
    return SamplingPlan(
        int(plan["total_frames"]),
        float(plan["source_fps"]),
        float(plan["duration_s"]),
        tuple(int(index) for index in indices),
        times,
        str(plan["rule"]),
        int(plan["dropped_frames"]),
    )
