"""The sampling rules of GLM: by the clock, not by a count that is spread.

Frames are looked up at even times, so that the whole seconds which a prompt prints fall on frames of those seconds;
what is looked up twice is used once, and the last frame is repeated where the count is odd.

Next: gateway/media/plan.py
"""

import math

import numpy as np

from gateway.media.rules import MediaRules

_CHUNK = 1 << 16  # samples looked up at once
_MAX_46V_S, _MAX_46V_FRAMES = 2400, 640
_PAIRS_46V = ((30, 3.0), (300, 1.0), (_MAX_46V_S, 0.5))  # clips up to so many seconds: pairs of frames a second


def sample_by_time(
    total_frames: int, source_fps: float, duration_s: float | None, rules: MediaRules, fps: float | None = None
) -> tuple[int, ...]:
    """The frames that GLM's own rule uses.

    Args:
        total_frames: Frames that may be used.
        source_fps: Frames a second of the clip.
        duration_s: Seconds of the clip; None or 0 = unknown, as of a list of frames.
        rules: The checkpoint's; `family` "glm4v" or "glm46v".
        fps: Frames to use for each second; None = the rule's own. GLM-4.6V's has none, and then takes GLM-4V's rule.

    Returns:
        Ascending indices, at least one; each once, but for the last where the count would be odd.

    Source: transformers 5.23 `Glm4vVideoProcessor.sample_frames`, `Glm46VVideoProcessor.sample_frames`.
    """
    duration = duration_s or round((total_frames - 1) / source_fps) + 1
    if fps is None and rules.family == "glm46v":
        indices = _glm_46v(total_frames, source_fps, duration, rules.temporal_patch_size)
    else:
        wanted = fps or rules.fps
        assert wanted is not None, "GLM-4V's rule has a rate"
        indices = _glm_4v(total_frames, source_fps, duration, wanted, rules.fps_rule_s)
    used = list(dict.fromkeys(indices)) or [0]
    return tuple(used + used[-1:] if len(used) % 2 else used)


def _glm_4v(total: int, source_fps: float, duration: float, wanted: float, fps_rule_s: float) -> list[int]:
    last = total - 1
    if duration <= fps_rule_s:
        return _at_rate(max(math.floor(duration * wanted), 1), source_fps, wanted, last)
    count = int(fps_rule_s * wanted)
    if count >= total:
        return list(range(total))
    seconds = np.linspace(0, duration, max(count, 1), endpoint=True)
    return [min(last, math.ceil(second * source_fps)) for second in seconds]


def _at_rate(count: int, source_fps: float, wanted: float, last: int) -> list[int]:
    """The frames at `count` times; in chunks, as a caller may ask for a rate that finds each frame very often."""
    found: list[int] = []
    for start in range(0, count, _CHUNK):
        # The order of operations is transformers': it decides the rounding.
        times = np.arange(start, min(start + _CHUNK, count)) * source_fps / wanted
        found += np.unique(np.minimum(np.ceil(times), last).astype(int)).tolist()
        if found[-1] == last:
            break
    return found


def _glm_46v(total: int, source_fps: float, duration: float, span: int) -> list[int]:
    seconds = min(duration, _MAX_46V_S)
    rate = next(pairs for most, pairs in _PAIRS_46V if seconds <= most) * span
    count = min(int(seconds * rate), _MAX_46V_FRAMES)
    if total < count:
        indices = np.linspace(0, total - 1, count, dtype=int).tolist()
    else:
        indices = _each_step(total, 1 / source_fps, 1 / rate, int(duration))
    if len(indices) < count:
        return np.linspace(indices[0], indices[-1], count, dtype=int).tolist()
    if len(indices) > count:
        return np.linspace(0, total - 1, count, dtype=int).tolist()
    return indices


def _each_step(total: int, frame_s: float, step_s: float, end_s: int) -> list[int]:
    """The first frame at or after each step, until the steps reach the end."""
    indices: list[int] = []
    due = 0.0
    for index in range(total):
        if index * frame_s >= due:
            due += step_s
            indices.append(index)
            if due >= end_s:
                break
    return indices
