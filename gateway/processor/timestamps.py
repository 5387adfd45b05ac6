"""The times that a prompt prints for a clip.

Next: qwen3_vl.py, glm4v.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from tessera.errors import InvalidArgument

MAX_TIMESTAMP_S = 1e9  # a printed time stays short


def patch_times(timestamps: Sequence[float], num_patches: int, span: int) -> list[float]:
    """Return the time of each temporal patch: the mean of its first and its last frame's.

    Args:
        timestamps: seconds, one for each frame before padding; the last frame stands in for missing ones.
        num_patches: temporal patches of the clip's grid.
        span: frames of a temporal patch.

    Raises:
        InvalidArgument: no times, another number than the grid says, or one that cannot be printed; field "timestamps".

    Source: transformers 5.23 `processing_qwen3_vl.py`, `_calculate_timestamps`.
    """
    _check(timestamps, num_patches, span)
    times = [*timestamps, *[timestamps[-1]] * (-len(timestamps) % span)]
    return [(times[i] + times[i + span - 1]) / 2 for i in range(0, len(times), span)]


def first_times(timestamps: Sequence[float], num_patches: int, span: int) -> list[float]:
    """Return the time of each temporal patch: its first frame's; arguments and errors are those of `patch_times`.

    Source: transformers 5.23 `processing_glm4v.py`, `replace_video_token`.
    """
    _check(timestamps, num_patches, span)
    return list(timestamps[::span])


def _check(timestamps: Sequence[float], num_patches: int, span: int) -> None:
    if not timestamps:
        raise _invalid("A clip needs the times of its frames.", "TIMESTAMPS_REQUIRED")
    if -(-len(timestamps) // span) != num_patches:
        raise _invalid(
            f"{len(timestamps)} timestamps do not make {num_patches} temporal patches of {span} frames.",
            "TIMESTAMPS_MISMATCH",
        )
    if not all(math.isfinite(time) and 0 <= time <= MAX_TIMESTAMP_S for time in timestamps):
        raise _invalid(f"Timestamps are in [0, {MAX_TIMESTAMP_S:.0f}] seconds.", "TIMESTAMPS_INVALID")


def _invalid(message: str, reason: str) -> InvalidArgument:
    return InvalidArgument(message, reason=reason, field="timestamps")
