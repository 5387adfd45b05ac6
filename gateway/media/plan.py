"""The sampling plan: which frames of a clip are used, at which times. One function decides it.

Without options the family's rule of transformers 5.23 holds (Qwen: fps 2, 4 to 768 frames, rounded linspace; GLM:
sampling.py).

Next: gateway/media/decode.py
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from gateway.media.options import ServerLimits, VideoOptions
from gateway.media.problem import MediaProblem
from gateway.media.rules import MediaRules
from gateway.media.sampling import sample_by_time

DEFAULT_SOURCE_FPS = 24.0
MIN_FPS, MAX_FPS = 1e-6, 100_000.0


@dataclass(frozen=True)
class SamplingPlan:
    """Which frames are used; echoed to the caller.

    Attributes:
        total_frames: Frames of the source.
        source_fps: Frames a second of the source; 0 where only times are known.
        duration_s: Seconds of the source.
        frame_indices: Frames to use, in order; a clip of one frame names it twice.
        timestamps: Their times in seconds, one each: index / source_fps, or the file's own where its rate is variable.
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

    def at(self, times: Mapping[int, float]) -> "SamplingPlan":
        """The plan with the frames' own times, where the file's rate is variable; else the plan itself.

        At a steady rate the times stay index / rate, as in transformers: a container's clock rounds them.

        Args:
            times: Seconds from the clip's first frame, by index; empty = unknown.
        """
        if not times or not all(index in times for index in self.frame_indices):
            return self
        own = tuple(times[index] for index in self.frame_indices)
        off = max(abs(time - index / self.source_fps) for index, time in zip(self.frame_indices, own, strict=True))
        is_clock = all(math.isfinite(time) and time >= 0 for time in own) and all(a <= b for a, b in pairwise(own))
        return replace(self, timestamps=own) if is_clock and off > 0.5 / self.source_fps else self


def resolve_sampling(
    total_frames: int,
    source_fps: float | None,
    options: VideoOptions,
    rules: MediaRules,
    limits: ServerLimits,
    timestamps: Sequence[float] | None = None,
    duration_s: float | None = None,
) -> SamplingPlan:
    """Decide which frames of a clip are used.

    Args:
        total_frames: Frames that the clip has.
        source_fps: Frames a second; None, not finite or below MIN_FPS = unknown, taken as 24 (GLM's own rule needs it).
        options: What the caller asks.
        rules: The family's rule.
        limits: The server's caps.
        timestamps: Seconds, one for each frame of a list: then every frame is used.
        duration_s: Seconds of a file; None = of a list of frames. GLM's rule counts the two differently.

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
    rate = _known_rate(source_fps)
    by_time = rules.family != "qwen" and (options.num_frames is None or options.fps is not None)
    if rate is None and by_time and not options.frame_indices:
        message = "This model samples by time and the clip has no frame rate: ask for num_frames, or give times."
        raise _invalid(message, "media")
    fps = DEFAULT_SOURCE_FPS if rate is None else rate
    if fps > MAX_FPS:
        raise _invalid(f"The video claims {fps:g} frames a second; at most {MAX_FPS:g} are taken.", "media")
    if options.frame_indices:
        indices, rule = _checked_indices(total_frames, fps, options, limits), "frame_indices"
    elif by_time:
        indices, rule = _by_time(total_frames, fps, options, rules, limits, duration_s), _rule_name(options)
    else:
        indices, rule = _spread(total_frames, fps, options, rules, limits), _rule_name(options)
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


def _known_rate(source_fps: float | None) -> float | None:
    return source_fps if source_fps is not None and math.isfinite(source_fps) and source_fps >= MIN_FPS else None


def _rule_name(options: VideoOptions) -> str:
    return "+".join(name for name in ("num_frames", "fps") if getattr(options, name) is not None) or "default"


def _by_time(
    total: int, fps: float, options: VideoOptions, rules: MediaRules, limits: ServerLimits, duration_s: float | None
) -> tuple[int, ...]:
    """The frames of GLM's rule, thinned evenly where they are more than asked for, spread anew where fewer."""
    seconds = _seconds(options, limits)
    usable = _usable_frames(total, fps, seconds)
    duration_s = None if duration_s is None else min(duration_s, seconds)
    most = _most(options, limits.max_frames, limits)
    indices = sample_by_time(usable, fps, duration_s, rules, options.fps)
    least = min(options.min_frames or 1, usable)
    if len(set(indices)) < least:
        indices = _even(usable, least)
    most = min(options.num_frames or most, most)
    return tuple(indices[place] for place in _even(len(indices), most)) if len(indices) > most else indices


def _spread(total: int, fps: float, options: VideoOptions, rules: MediaRules, limits: ServerLimits) -> tuple[int, ...]:
    """Evenly spread frames: how many is the rule's, which is `round(linspace)`."""
    usable = _usable_frames(total, fps, _seconds(options, limits))
    wanted = rules.num_frames if options.num_frames is None and options.fps is None else options.num_frames
    if wanted is None:
        count = _count_by_fps(usable, fps, options, rules, limits)
    elif options.fps is not None:
        count = min(wanted, _count_by_fps(usable, fps, options, rules, limits))
    else:
        count = wanted if rules.family == "qwen" else min(wanted, usable)  # Qwen's rule repeats frames
    return _even(usable, min(count, limits.max_frames, options.max_frames or limits.max_frames))


def _count_by_fps(
    usable: int, source_fps: float, options: VideoOptions, rules: MediaRules, limits: ServerLimits
) -> int:
    most = _most(options, rules.max_frames, limits)
    least = options.min_frames or rules.min_frames
    fps = options.fps or rules.fps
    if fps is None:
        return min(max(usable, least), most)
    # The order of operations is transformers': it decides the truncation.
    return min(max(int(usable / source_fps * fps), least), most, usable)


def _most(options: VideoOptions, default: int, limits: ServerLimits) -> int:
    """The most frames of a rule by rate, which a request's min_frames must not exceed."""
    most = min(options.max_frames or default, limits.max_frames)
    if options.min_frames is not None and options.min_frames > most:
        message = f"min_frames is {options.min_frames}; at most {most} frames are taken."
        raise _contradiction(message, "options.min_frames")
    return most


def _even(total: int, count: int) -> tuple[int, ...]:
    """`count` places from the first to the last of `total`."""
    return tuple(int(place) for place in np.linspace(0, total - 1, count).round().astype(int))


def _seconds(options: VideoOptions, limits: ServerLimits) -> float:
    """Seconds of the clip that may be used."""
    return min(options.max_duration_s or limits.max_duration_s, limits.max_duration_s)


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
