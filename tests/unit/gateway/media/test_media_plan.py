"""The sampling plan: one function, every combination of options."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.media.options import ServerLimits, VideoOptions
from gateway.media.plan import SamplingPlan, resolve_sampling
from gateway.media.problem import MediaProblem
from gateway.media.rules import MediaRules

RULES = MediaRules()
LIMITS = ServerLimits()


def plan(total: int, fps: float | None, options: VideoOptions = VideoOptions(), **limits: float):  # noqa: B008
    """The plan under the default rules."""
    return resolve_sampling(total, fps, options, RULES, ServerLimits(**limits) if limits else LIMITS)  # type: ignore[arg-type]


def test_no_option_takes_the_family_rule() -> None:
    """Two frames a second, evenly spread from the first to the last."""
    result = plan(100, 10.0)
    assert len(result.frame_indices) == 20
    assert (result.frame_indices[0], result.frame_indices[-1], result.rule) == (0, 99, "default")
    assert result.timestamps == tuple(index / 10.0 for index in result.frame_indices)


def test_at_least_four_and_at_most_all_frames() -> None:
    """A short clip gives its minimum, a tiny one all that it has."""
    assert len(plan(12, 24.0).frame_indices) == 4
    assert plan(3, 24.0).frame_indices == (0, 1, 2)


def test_num_frames_and_fps_take_the_smaller_count() -> None:
    """Both knobs are legal together."""
    assert len(plan(100, 10.0, VideoOptions(num_frames=7, fps=2.0)).frame_indices) == 7
    assert len(plan(100, 10.0, VideoOptions(num_frames=50, fps=2.0)).frame_indices) == 20
    assert plan(100, 10.0, VideoOptions(num_frames=7, fps=2.0)).rule == "num_frames+fps"


def test_one_frame_is_doubled() -> None:
    """The model takes pairs of frames, so one frame stands twice, with its time."""
    for result in (
        plan(1, 10.0),
        plan(9, 10.0, VideoOptions(num_frames=1)),
        plan(9, 10, VideoOptions(frame_indices=(4,))),
    ):
        assert len(result.frame_indices) == len(result.timestamps) == 2
        assert result.frame_indices[0] == result.frame_indices[1]


def test_frame_indices_are_used_as_they_are() -> None:
    """Times follow from the source's rate."""
    result = plan(50, 25.0, VideoOptions(frame_indices=(0, 5, 49)))
    assert (result.frame_indices, result.timestamps) == ((0, 5, 49), (0.0, 0.2, 1.96))


@pytest.mark.parametrize(
    ("options", "reason", "field"),
    [
        (VideoOptions(num_frames=0), "SAMPLING_INVALID", "options.num_frames"),
        (VideoOptions(num_frames=-3), "SAMPLING_INVALID", "options.num_frames"),
        (VideoOptions(num_frames=769), "SAMPLING_INVALID", "options.num_frames"),
        (VideoOptions(fps=0.0), "SAMPLING_INVALID", "options.fps"),
        (VideoOptions(fps=math.nan), "SAMPLING_INVALID", "options.fps"),
        (VideoOptions(fps=math.inf), "SAMPLING_INVALID", "options.fps"),
        (VideoOptions(fps=1e9), "SAMPLING_INVALID", "options.fps"),
        (VideoOptions(min_frames=0), "SAMPLING_INVALID", "options.min_frames"),
        (VideoOptions(max_frames=-1), "SAMPLING_INVALID", "options.max_frames"),
        (VideoOptions(max_duration_s=0.0), "SAMPLING_INVALID", "options.max_duration_s"),
        (VideoOptions(min_frames=9, max_frames=8), "SAMPLING_CONTRADICTION", "options.min_frames"),
        (VideoOptions(min_frames=1000), "SAMPLING_CONTRADICTION", "options.min_frames"),
        (VideoOptions(frame_indices=(0, 100)), "SAMPLING_INVALID", "options.frame_indices"),
        (VideoOptions(frame_indices=(-1, 3)), "SAMPLING_INVALID", "options.frame_indices"),
        (VideoOptions(frame_indices=(3, 2)), "SAMPLING_INVALID", "options.frame_indices"),
        (VideoOptions(frame_indices=(3, 3)), "SAMPLING_INVALID", "options.frame_indices"),
        (VideoOptions(frame_indices=(1, 2), fps=1.0), "SAMPLING_CONTRADICTION", "options.frame_indices"),
        (VideoOptions(frame_indices=(1, 2), max_frames=9), "SAMPLING_CONTRADICTION", "options.frame_indices"),
        (VideoOptions(frame_indices=tuple(range(769))), "SAMPLING_INVALID", "options.frame_indices"),
    ],
)
def test_contradictions_name_their_field(options: VideoOptions, reason: str, field: str) -> None:
    """No combination crashes; each wrong one says which option is at fault."""
    with pytest.raises(MediaProblem) as caught:
        plan(100, 10.0, options)
    assert (caught.value.reason, caught.value.field) == (reason, field)


def test_caps_are_lowered_by_a_request_and_never_raised() -> None:
    """max_frames below the cap holds; above it, the cap does, and the plan shows it."""
    assert len(plan(1000, 10.0, VideoOptions(max_frames=2)).frame_indices) == 2
    assert len(plan(1000, 10.0, VideoOptions(max_frames=500), max_frames=50).frame_indices) == 50
    assert len(plan(1000, 10.0, VideoOptions(num_frames=40, max_frames=9)).frame_indices) == 9


def test_a_duration_takes_only_the_first_seconds() -> None:
    """Frames that begin later are not used; the cap of the server holds where it is lower."""
    assert plan(100, 10.0, VideoOptions(max_duration_s=2.0)).frame_indices[-1] == 19
    assert plan(100, 10.0, VideoOptions(max_duration_s=9.0), max_duration_s=1.0).frame_indices[-1] == 9
    with pytest.raises(MediaProblem):
        plan(100, 10.0, VideoOptions(frame_indices=(0, 10)), max_duration_s=1.0)


def test_an_unknown_rate_is_24() -> None:
    """None, zero, negative, NaN, and one that makes the duration overflow are no rate."""
    for fps in (None, 0.0, -1.0, math.nan, 5e-324):
        assert plan(48, fps).source_fps == 24.0


def test_bombs_are_refused_by_their_header() -> None:
    """More frames than the server takes, no frames at all, or an absurd rate."""
    for total, fps in ((100_000, 30.0), (0, 30.0), (100, 1e9)):
        with pytest.raises(MediaProblem) as caught:
            plan(total, fps)
        assert caught.value.field == "media"


def test_timestamps_are_used_whole() -> None:
    """Every frame, with the times that the caller gave."""
    result = resolve_sampling(3, None, VideoOptions(), RULES, LIMITS, timestamps=(0.5, 0.5, 7.25))
    assert (result.frame_indices, result.timestamps, result.rule) == ((0, 1, 2), (0.5, 0.5, 7.25), "timestamps")


@pytest.mark.parametrize(
    ("times", "options", "field"),
    [
        ((0.0, 1.0), VideoOptions(), "media.frames.timestamps"),
        ((0.0, 2.0, 1.0), VideoOptions(), "media.frames.timestamps"),
        ((-1.0, 0.0, 1.0), VideoOptions(), "media.frames.timestamps"),
        ((0.0, 1.0, math.nan), VideoOptions(), "media.frames.timestamps"),
        ((0.0, 1.0, 2.0), VideoOptions(fps=1.0), "options.fps"),
        ((0.0, 1.0, 2.0), VideoOptions(frame_indices=(1,)), "options.frame_indices"),
    ],
)
def test_wrong_timestamps_are_refused(times: tuple[float, ...], options: VideoOptions, field: str) -> None:
    """Another count, order or value, or an option that would choose among them."""
    with pytest.raises(MediaProblem) as caught:
        resolve_sampling(3, None, options, RULES, LIMITS, timestamps=times)
    assert caught.value.field == field


def test_unreadable_frames_leave_with_their_times() -> None:
    """Indices and times stay paired; what is left of one frame is doubled; none left is an error."""
    full = plan(40, 10.0)
    kept = full.keep([True, False, *[True] * 6])
    assert (len(kept.frame_indices), kept.dropped_frames) == (7, 1)
    assert kept.timestamps == tuple(index / 10.0 for index in kept.frame_indices)
    assert full.keep([True, *[False] * 7]).frame_indices == (0, 0)
    with pytest.raises(MediaProblem):
        full.keep([False] * 8)


@given(
    total=st.integers(1, 70_000),
    fps=st.one_of(st.none(), st.floats(allow_nan=True, allow_infinity=True)),
    num_frames=st.one_of(st.none(), st.integers(-5, 2000)),
    wanted_fps=st.one_of(st.none(), st.floats(allow_nan=True)),
    max_frames=st.one_of(st.none(), st.integers(-1, 1000)),
    min_frames=st.one_of(st.none(), st.integers(-1, 1000)),
    seconds=st.one_of(st.none(), st.floats(allow_nan=True)),
)
def test_every_request_gets_a_plan_or_a_reason(
    total: int,
    fps: float | None,
    num_frames: int | None,
    wanted_fps: float | None,
    max_frames: int | None,
    min_frames: int | None,
    seconds: float | None,
) -> None:
    """Whatever the numbers, indices are inside, ascending and paired with finite times, or the request is refused."""
    options = VideoOptions(num_frames, wanted_fps, min_frames, max_frames, seconds)
    try:
        result = resolve_sampling(total, fps, options, RULES, LIMITS)
    except MediaProblem:
        return
    assert 2 <= len(result.frame_indices) == len(result.timestamps) <= max(2, LIMITS.max_frames)
    assert all(0 <= index < total for index in result.frame_indices)
    assert list(result.frame_indices) == sorted(result.frame_indices)
    assert all(math.isfinite(time) for time in result.timestamps)


def test_a_clip_s_own_times_hold_where_its_rate_is_variable() -> None:
    """A container's clock that only rounds changes nothing; nor do times that are unknown, or run backwards."""
    plan = SamplingPlan(40, 10.0, 4.0, (0, 10, 20), (0.0, 1.0, 2.0), "num_frames")
    assert plan.at({0: 0.0, 10: 1.001, 20: 1.999}) is plan
    assert plan.at({}) is plan
    assert plan.at({0: 0.0, 10: 9.0}) is plan
    assert plan.at({0: 0.0, 10: 9.0, 20: 3.0}) is plan
    assert plan.at({0: 0.0, 10: float("nan"), 20: 3.0}) is plan
    assert plan.at({0: 0.0, 10: 0.5, 20: 7.0}).timestamps == (0.0, 0.5, 7.0)
