"""GLM's rules: pictures as clips of two frames, frames by the clock, and every option with its meaning."""

import json
import math
from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.media.decode import VideoWork, work_from_json
from gateway.media.options import ImageOptions, ServerLimits, VideoOptions
from gateway.media.plan import SamplingPlan, resolve_sampling
from gateway.media.problem import MediaProblem
from gateway.media.rules import CLASS_DEFAULTS, MediaRules, image_budget, image_size, video_size
from gateway.media.sampling import sample_by_time

GLM = CLASS_DEFAULTS["glm4v"][0]
GLM_46 = CLASS_DEFAULTS["glm46v"][0]
LIMITS = ServerLimits()
BOTH = pytest.mark.parametrize("rules", [GLM, GLM_46], ids=["glm4v", "glm46v"])


def plan(
    total: int,
    fps: float | None,
    options: VideoOptions = VideoOptions(),  # noqa: B008  (frozen)
    rules: MediaRules = GLM,
    duration_s: float | None = None,
    **limits: float,
) -> SamplingPlan:
    """The plan under GLM's rules."""
    return resolve_sampling(total, fps, options, rules, ServerLimits(**limits), duration_s=duration_s)  # type: ignore[arg-type]


def test_a_picture_s_budget_counts_two_frames() -> None:
    """The same budget leaves a picture half the pixels that Qwen's rule would."""
    height, width = image_size(1000, 1000, GLM, 1, 2 * 280 * 280)
    assert (height, width) == (280, 280)
    assert image_size(10, 10, GLM, 2 * 112 * 112, 1 << 24) == (112, 112)
    assert image_budget(ImageOptions(max_pixels=20_000), GLM, LIMITS) == (12544, 20_000)


def test_sides_are_multiples_of_28_and_tiny_ones_grow() -> None:
    """A side below a token is scaled up before the aspect is checked."""
    assert image_size(7, 1393, GLM, 1, 1 << 30) == (28, 5572)
    assert video_size(4, 14, 30, GLM, 1, 1 << 30) == (28, 56)
    with pytest.raises(MediaProblem) as caught:
        image_size(1, 201, GLM, 1, 1 << 30)
    assert caught.value.reason == "ASPECT_RATIO"


def test_the_class_defaults_are_glm_s() -> None:
    """What a file leaves out is transformers' class default: budgets, colours, rate and the border of 300 seconds."""
    rules = MediaRules.from_checkpoint({}, {"max_duration": 60, "num_frames": 16, "fps": 1}, "glm4v")
    assert (rules.patch_size, rules.image_min_pixels, rules.image_max_pixels) == (14, 12544, 11_760_000)
    assert (rules.video_min_pixels, rules.video_max_pixels) == (12544, 47_040_000)
    assert (rules.fps, rules.fps_rule_s, rules.num_frames) == (1.0, 60.0, None)
    assert MediaRules.from_checkpoint({}, {"fps": 2}, "glm46v").fps is None


def test_two_frames_a_second_up_to_300_seconds() -> None:
    """Frames stand at even times, not spread to the last one."""
    result = plan(300, 30.0, duration_s=10.0)
    assert result.frame_indices == tuple(range(0, 300, 15))
    assert result.timestamps == tuple(index / 30.0 for index in result.frame_indices)
    assert result.rule == "default"
    assert len(plan(9000, 30.0, duration_s=300.0).frame_indices) == 600


def test_a_longer_clip_has_600_frames_over_its_duration() -> None:
    """From the first frame to the last."""
    result = plan(30_000, 25.0, duration_s=1200.0)
    assert len(result.frame_indices) == 600
    assert (result.frame_indices[0], result.frame_indices[-1]) == (0, 29_999)
    assert plan(501, 1.0, duration_s=501.0).frame_indices == (*range(501), 500)


def test_a_file_s_duration_is_known_and_a_list_s_is_counted() -> None:
    """Three frames at 10 a second last 0.3 seconds in a file, and a whole second as a list, as in transformers."""
    assert plan(3, 10.0, duration_s=0.3).frame_indices == (0, 0)
    assert plan(3, 10.0).frame_indices == (0, 2)


@BOTH
def test_an_odd_count_repeats_its_last_frame_and_one_frame_is_doubled(rules: MediaRules) -> None:
    """Frames come in pairs."""
    assert plan(3, 2.0, rules=rules).frame_indices == (0, 1, 2, 2)
    assert plan(1, 24.0, rules=rules).frame_indices == (0, 0)
    assert plan(1, 24.0, rules=rules, duration_s=1 / 24).frame_indices == (0, 0)
    assert plan(1, 1e-5, rules=rules, duration_s=1e5).frame_indices == (0, 0)


def test_a_list_at_two_frames_a_second_is_used_whole() -> None:
    """So is what came as data:video/jpeg."""
    assert plan(8, 2.0).frame_indices == tuple(range(8))
    assert plan(8, 2.0).timestamps == tuple(i / 2 for i in range(8))


@pytest.mark.parametrize(("seconds", "frames"), [(10, 60), (30, 180), (31, 62), (300, 600), (400, 400), (700, 640)])
def test_glm_46v_takes_fewer_frames_of_longer_clips(seconds: int, frames: int) -> None:
    """Six, two, or one a second by the clip's length, 640 at most; by the frames, not by their doubled last one."""
    assert len(set(plan(30 * seconds, 30.0, rules=GLM_46, duration_s=seconds).frame_indices)) == frames


@BOTH
def test_num_frames_are_spread_and_never_more_than_there_are(rules: MediaRules) -> None:
    """transformers leaves num_frames unread here; it means what it means in the other families."""
    assert plan(100, 10.0, VideoOptions(num_frames=4), rules).frame_indices == (0, 33, 66, 99)
    assert plan(100, 10.0, VideoOptions(num_frames=5), rules).frame_indices == (0, 25, 50, 74, 99)
    assert plan(3, 10.0, VideoOptions(num_frames=9), rules).frame_indices == (0, 1, 2)
    assert plan(9, None, VideoOptions(num_frames=2), rules).timestamps == (0.0, 8 / 24)


@BOTH
def test_fps_is_the_rate_of_the_frames(rules: MediaRules) -> None:
    """GLM-4.6V's own rule has no rate to override, and then keeps time as GLM-4V does."""
    assert plan(100, 10.0, VideoOptions(fps=1.0), rules, 10.0).frame_indices == tuple(range(0, 100, 10))
    assert plan(100, 10.0, VideoOptions(fps=1.0), rules).rule == "fps"
    assert plan(6, 10.0, VideoOptions(fps=1e5), rules).frame_indices == tuple(range(6))


@BOTH
def test_num_frames_and_fps_take_the_smaller_count(rules: MediaRules) -> None:
    """Both knobs are legal together; frames left over are thinned evenly."""
    assert plan(100, 10.0, VideoOptions(num_frames=4, fps=1.0), rules, 10.0).frame_indices == (0, 30, 60, 90)
    assert len(plan(100, 10.0, VideoOptions(num_frames=50, fps=1.0), rules, 10.0).frame_indices) == 10


@BOTH
def test_bounds_of_a_request_and_of_the_server_hold(rules: MediaRules) -> None:
    """max_frames thins, min_frames spreads, max_duration_s keeps the first seconds."""
    assert plan(300, 10.0, VideoOptions(max_frames=3), rules).frame_indices[0] == 0
    assert len(plan(300, 10.0, VideoOptions(max_frames=3), rules).frame_indices) == 3
    assert len(plan(300, 10.0, rules=rules, max_frames=7).frame_indices) == 7
    assert plan(40, 100.0, VideoOptions(min_frames=6), rules, 0.4).frame_indices == (0, 8, 16, 23, 31, 39)
    assert plan(3, 100.0, VideoOptions(min_frames=6), rules, 0.03).frame_indices == (0, 1, 2)
    assert plan(300, 10.0, VideoOptions(max_duration_s=2.0), rules, 30.0).frame_indices[-1] <= 19
    assert plan(300, 10.0, rules=rules, duration_s=30.0, max_duration_s=2.0).frame_indices[-1] <= 19


@BOTH
def test_frame_indices_are_used_as_they_are(rules: MediaRules) -> None:
    """Also an odd number of them, and where the rate is unknown."""
    assert plan(50, 25.0, VideoOptions(frame_indices=(0, 5, 49)), rules).timestamps == (0.0, 0.2, 1.96)
    assert plan(50, None, VideoOptions(frame_indices=(0, 12)), rules).timestamps == (0.0, 0.5)


@BOTH
@pytest.mark.parametrize("options", [VideoOptions(), VideoOptions(fps=1.0), VideoOptions(fps=1.0, num_frames=4)])
def test_a_clip_without_a_rate_is_refused(rules: MediaRules, options: VideoOptions) -> None:
    """Where the clock decides there is no guess: the message says what to send instead."""
    for fps in (None, 0.0, 1e-310, math.nan):
        with pytest.raises(MediaProblem, match="num_frames, or give times") as caught:
            plan(10, fps, options, rules)
        assert (caught.value.reason, caught.value.field) == ("SAMPLING_INVALID", "media")


def test_min_frames_above_the_most_contradicts() -> None:
    """As in the other families."""
    with pytest.raises(MediaProblem) as caught:
        plan(10, 1.0, VideoOptions(min_frames=1000))
    assert (caught.value.reason, caught.value.field) == ("SAMPLING_CONTRADICTION", "options.min_frames")


def test_lost_frames_leave_with_their_times() -> None:
    """Also where the lost one is the last, which stands twice; the model's side pads what is left and odd."""
    full = plan(5, 2.0)
    assert full.frame_indices == (0, 1, 2, 3, 4, 4)
    assert full.keep([True, False, True, True, True, True]).timestamps == (0.0, 1.0, 1.5, 2.0, 2.0)
    kept = full.keep([True, True, True, True, False, False])
    assert (kept.frame_indices, kept.dropped_frames) == ((0, 1, 2, 3), 1)


def test_rules_reach_a_pool_process_whole() -> None:
    """The family's rules survive JSON."""
    work = VideoWork(VideoOptions(fps=1.5), GLM_46, LIMITS, 2.0, None)
    assert work_from_json("video", json.loads(json.dumps(asdict(work)))) == work


@given(
    total=st.integers(1, 3000),
    fps=st.floats(1e-3, 1e5),
    duration_s=st.one_of(st.none(), st.floats(0, allow_nan=False)),
    wanted=st.one_of(st.none(), st.floats(1e-9, 1e3)),
    rules=st.sampled_from([GLM, GLM_46]),
)
def test_every_clip_gets_frames_in_pairs(
    total: int, fps: float, duration_s: float | None, wanted: float | None, rules: MediaRules
) -> None:
    """Whatever the numbers: inside, ascending, an even count, and each once but for the last."""
    duration_s = None if duration_s is None else min(duration_s, 7200.0)
    indices = sample_by_time(total, fps, duration_s, rules, wanted)
    assert len(indices) % 2 == 0
    assert 0 <= indices[0] <= indices[-1] < total
    assert list(indices) == sorted(indices)
    assert len(set(indices)) >= len(indices) - 1
