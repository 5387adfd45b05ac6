"""From a pool process's problem to the error tree, and the checks of options that need no media.

Next: gateway/media/pool.py
"""

from gateway.media.options import ImageOptions, ServerLimits, VideoOptions
from gateway.media.plan import check_sampling
from gateway.media.problem import MediaProblem
from gateway.media.rules import MediaRules, image_budget, video_budget
from tessera.errors import InvalidArgument, ResourceExhausted, ServeError


def serve_error(problem: MediaProblem) -> ServeError:
    """The error of the tree that says the same, its field relative to the media part."""
    if problem.code == "RESOURCE_EXHAUSTED":
        return ResourceExhausted(problem.message, reason=problem.reason, field=problem.field, retry_after_s=None)
    return InvalidArgument(problem.message, reason=problem.reason, field=problem.field)


def check_options(options: ImageOptions | VideoOptions, rules: MediaRules, limits: ServerLimits) -> None:
    """Refuse options that no medium could satisfy, before anything is fetched or decoded.

    Raises:
        InvalidArgument: SAMPLING_INVALID, SAMPLING_CONTRADICTION or PIXEL_BUDGET; field relative to the media part.
    """
    try:
        if isinstance(options, VideoOptions):
            check_sampling(options, limits)
            video_budget(options, rules, limits)
        else:
            image_budget(options, rules, limits)
    except MediaProblem as problem:
        raise serve_error(problem) from None
