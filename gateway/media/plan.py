"""The sampling plan: which frames of a clip are used, at which times. One function decides it.

Without options the family's rule of transformers 5.23 holds (Qwen: fps 2, 4 to 768 frames, rounded linspace).

Next: gateway/media/decode.py
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from gateway.media.options import ServerLimits, VideoOptions
from gateway.media.problem import MediaProblem
from gateway.media.rules import MediaRules

DEFAULT_SOURCE_FPS = 24.0
MAX_FPS = 100_000.0


@dataclass(frozen=True)
class SamplingPlan:
    """Which frames are used; echoed to the caller.

    Attributes:
        total_frames: Frames of the source.
        source_fps: Frames a second of the source; 0 where only times are known.
        duration_s: Seconds of the source.
        frame_indices: Frames to use, in order; a clip of one frame names it twice.
        timestamps: Their times in seconds, one each.
        rule: What chose them: "default", "fps", "num_frames", "num_frames+fps", "frame_indices", "timestamps".
        dropped_frames: Frames that were planned but could not be read.
    """

    total_frames: int
    source_fps: float
    duration_s: float
    frame_indices: tuple[int, ...]
    timestamps: tuple[float, ...]
    rule: str
    dropped_frames: int = 0

    def keep(self, readable: Sequence[bool]) -> "SamplingPlan":
        """The plan without the frames that could not be read and without their times; one frame is doubled.

        Args:
            readable: One for each of frame_indices.

        Raises:
            MediaProblem: VIDEO_UNREADABLE where none is left.
        """
        kept = [i for i, ok in enumerate(readable) if ok]
        if not kept:
            raise MediaProblem("No frame of the video can be read.", reason="VIDEO_UNREADABLE", field="media")
        kept = kept * 2 if len(kept) == 1 else kept
        planned = len(set(self.frame_indices))
        indices = tuple(self.frame_indices[i] for i in kept)
        return replace(
            self,
            frame_indices=indices,
            timestamps=tuple(self.timestamps[i] for i in kept),
            dropped_frames=self.dropped_frames + planned - len(set(indices)),
        )


def resolve_sampling(
    total_frames: int,
    source_fps: float | None,
    options: VideoOptions,
    rules: MediaRules,
    limits: ServerLimits,
    timestamps: Sequence[float] | None = None,
) -> SamplingPlan:
    """Decide which frames of a clip are used.

    Args:
        total_frames: Frames that the clip has.
        source_fps: Frames a second; None, zero or not finite = unknown, taken as 24.
        options: What the caller asks.
        rules: The family's rule.
        limits: The server's caps.
        timestamps: Seconds, one for each frame of a list: then every frame is used.

    Returns:
        The plan; at least two frames.

    Raises:
        MediaProblem: SAMPLING_INVALID for a value out of its range, SAMPLING_CONTRADICTION for options that cannot
            hold together, VIDEO_TOO_LONG for more source frames than the server takes.
    """
    check_sampling(options, limits)
    if total_frames < 1:
        raise MediaProblem("The video has no frames.", reason="VIDEO_UNREADABLE", field="media")
    if total_frames > limits.max_source_frames:
        message = f"The video has {total_frames} frames; at most {limits.max_source_frames} are taken."
        raise MediaProblem(message, reason="VIDEO_TOO_LONG", field="media")
    if timestamps is not None:
        return _doubled(_use_all(total_frames, timestamps, options, limits))
    fps = DEFAULT_SOURCE_FPS if source_fps is None or not math.isfinite(source_fps) or source_fps <= 0 else source_fps
    if fps > MAX_FPS:
        raise _invalid(f"The video claims {fps:g} frames a second; at most {MAX_FPS:g} are taken.", "media")
    if options.frame_indices:
        indices, rule = _checked_indices(total_frames, fps, options, limits), "frame_indices"
    else:
        indices, rule = _spread(total_frames, fps, options, rules, limits)
    times = tuple(index / fps for index in indices)
    return _doubled(SamplingPlan(total_frames, fps, total_frames / fps, indices, times, rule))


def check_sampling(options: VideoOptions, limits: ServerLimits) -> None:
    """Check what needs no clip to be seen: each option's range, and options that exclude each other.

    Raises:
        MediaProblem: SAMPLING_INVALID or SAMPLING_CONTRADICTION.
    """
    for name in options.sampling_knobs:
        value = getattr(options, name)
        if not math.isfinite(value) or value <= 0:
            raise _invalid(f"{name} must be above 0 and finite.", f"options.{name}")
    if options.fps is not None and options.fps > MAX_FPS:
        raise _invalid(f"fps must be at most {MAX_FPS:g}.", "options.fps")
    if options.frame_indices and options.sampling_knobs:
        names = ", ".join(options.sampling_knobs)
        raise _contradiction(f"frame_indices stands alone, not beside {names}.", "options.frame_indices")
    if options.min_frames is not None and options.max_frames is not None and options.min_frames > options.max_frames:
        raise _contradiction(
            f"min_frames ({options.min_frames}) is above max_frames ({options.max_frames}).", "options.min_frames"
        )
    for name, count in (("num_frames", options.num_frames or 0), ("frame_indices", len(options.frame_indices))):
        if count > limits.max_frames:
            message = f"{name} asks for {count} frames; at most {limits.max_frames} are taken."
            raise _invalid(message, f"options.{name}")


def _use_all(total: int, timestamps: Sequence[float], options: VideoOptions, limits: ServerLimits) -> SamplingPlan:
    field = "media.frames.timestamps"
    if options.sampling_knobs or options.frame_indices:
        name = next(iter(options.sampling_knobs), "frame_indices")
        raise _contradiction(f"Frames with timestamps are used whole; {name} does not apply.", f"options.{name}")
    if len(timestamps) != total:
        raise _invalid(f"{len(timestamps)} timestamps for {total} frames.", field)
    ascending = all(a <= b for a, b in pairwise(timestamps))
    if not all(math.isfinite(t) and t >= 0 for t in timestamps) or not ascending:
        raise _invalid("Timestamps must be finite, not negative and ascending.", field)
    if total > limits.max_frames:
        raise _invalid(f"{total} frames with timestamps; at most {limits.max_frames} are taken.", "media.frames")
    times = tuple(float(t) for t in timestamps)
    return SamplingPlan(total, 0.0, times[-1], tuple(range(total)), times, "timestamps")


def _checked_indices(total: int, fps: float, options: VideoOptions, limits: ServerLimits) -> tuple[int, ...]:
    indices, field = options.frame_indices, "options.frame_indices"
    usable = _usable_frames(total, fps, limits.max_duration_s)
    if indices[0] < 0 or max(indices) >= usable:
        raise _invalid(f"frame_indices must be in [0, {usable}).", field)
    if any(a >= b for a, b in pairwise(indices)):
        raise _invalid("frame_indices must be ascending.", field)
    return indices


def _spread(
    total: int, fps: float, options: VideoOptions, rules: MediaRules, limits: ServerLimits
) -> tuple[tuple[int, ...], str]:
    """Evenly spread frames: how many is the rule's, which is `round(linspace)`."""
    seconds = min(options.max_duration_s or limits.max_duration_s, limits.max_duration_s)
    usable = _usable_frames(total, fps, seconds)
    wanted = rules.num_frames if options.num_frames is None and options.fps is None else options.num_frames
    if wanted is None:
        count = _count_by_fps(usable, fps, options, rules, limits)
    elif options.fps is not None:
        count = min(wanted, _count_by_fps(usable, fps, options, rules, limits))
    else:
        count = wanted
    most = min(limits.max_frames, options.max_frames or limits.max_frames)
    rule = "+".join(name for name in ("num_frames", "fps") if getattr(options, name) is not None) or "default"
    indices = np.linspace(0, usable - 1, min(count, most)).round().astype(int)
    return tuple(int(index) for index in indices), rule


def _count_by_fps(
    usable: int, source_fps: float, options: VideoOptions, rules: MediaRules, limits: ServerLimits
) -> int:
    most = min(options.max_frames or rules.max_frames, limits.max_frames)
    if options.min_frames is not None and options.min_frames > most:
        message = f"min_frames is {options.min_frames}; at most {most} frames are taken."
        raise _contradiction(message, "options.min_frames")
    least = options.min_frames or rules.min_frames
    fps = options.fps or rules.fps
    if fps is None:
        return min(max(usable, least), most)
    # The order of operations is transformers': it decides the truncation.
    return min(max(int(usable / source_fps * fps), least), most, usable)


def _usable_frames(total: int, fps: float, seconds: float) -> int:
    """Frames that begin within the first `seconds`."""
    return min(total, max(1, math.ceil(seconds * fps)))


def _doubled(plan: SamplingPlan) -> SamplingPlan:
    if len(plan.frame_indices) > 1:
        return plan
    return replace(plan, frame_indices=plan.frame_indices * 2, timestamps=plan.timestamps * 2)


def _invalid(message: str, field: str) -> MediaProblem:
    return MediaProblem(message, reason="SAMPLING_INVALID", field=field)


def _contradiction(message: str, field: str) -> MediaProblem:
    return MediaProblem(message, reason="SAMPLING_CONTRADICTION", field=field)
