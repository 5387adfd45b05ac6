"""From a pool process's problem to the error tree, and the checks of options that need no media.

Next: gateway/media/pool.py
"""

import math

from gateway.media.options import MediaOptions, ServerLimits, TimeSeriesOptions, VideoOptions
from gateway.media.plan import check_sampling
from gateway.media.problem import MediaProblem
from gateway.media.rules import MediaRules, image_budget, video_budget
from tessera.errors import InvalidArgument, ResourceExhausted, ServeError, Unimplemented


def serve_error(problem: MediaProblem) -> ServeError:
    """The error of the tree that says the same, its field relative to the media part."""
    if problem.code == "RESOURCE_EXHAUSTED":
        return ResourceExhausted(problem.message, reason=problem.reason, field=problem.field, retry_after_s=None)
    if problem.code == "UNIMPLEMENTED":
        return Unimplemented(problem.message, reason=problem.reason, field=problem.field)
    return InvalidArgument(problem.message, reason=problem.reason, field=problem.field)


def check_options(options: MediaOptions, rules: MediaRules, limits: ServerLimits) -> None:
    """Refuse options that no medium could satisfy, before anything is fetched or decoded.

    Raises:
        InvalidArgument: SAMPLING_INVALID, SAMPLING_CONTRADICTION, PIXEL_BUDGET or SAMPLING_RATE; field relative to the
            media part.
    """
    try:
        if isinstance(options, VideoOptions):
            check_sampling(options, limits)
            video_budget(options, rules, limits)
        elif isinstance(options, TimeSeriesOptions):
            _check_rate(options.sampling_rate_hz)
        else:
            image_budget(options, rules, limits)
    except MediaProblem as problem:
        raise serve_error(problem) from None


def _check_rate(rate_hz: float | None) -> None:
    if rate_hz is not None and not 0 < rate_hz < math.inf:
        message = "sampling_rate_hz must be above 0 and finite."
        raise MediaProblem(message, reason="SAMPLING_RATE", field="options.sampling_rate_hz")
