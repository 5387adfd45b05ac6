"""Clips against transformers' Qwen3-VL video processor: same frames, times, grids and pixels.

Oracle: transformers 5.23.0, on its torchvision backend. Tolerance: none.

Next: tests/parity/test_processor_qwen3_vl.py
"""

import io
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor, smart_resize
from transformers.video_utils import VideoMetadata

from gateway.media.decode import Pixels, VideoWork, process_frames
from gateway.media.options import ServerLimits, VideoOptions
from gateway.media.plan import resolve_sampling
from gateway.media.problem import MediaProblem
from gateway.media.resize import load_resizer
from gateway.media.rules import MediaRules, video_size
from tests.parity.test_media_image import patchify

RESIZE = load_resizer()
native = pytest.mark.skipif(RESIZE.name != "native", reason="libtessera_resize.so is not built: make kernels")
LIMITS = ServerLimits(max_video_pixels=1 << 26, max_source_frames=1 << 20, max_duration_s=1e9)
SIZE = {"shortest_edge": 4 * 64 * 64, "longest_edge": 8 * 96 * 128}
CONFIG: dict[str, Any] = {"patch_size": 16, "merge_size": 2, "size": SIZE, "cap_pixels_per_frame": False}
RULES = MediaRules.from_checkpoint(CONFIG | {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}, CONFIG)
PROCESSOR = Qwen3VLVideoProcessor(**CONFIG)


def clip(frames: int, height: int, width: int) -> np.ndarray:
    """Frames that differ, (frames, height, width, 3) uint8."""
    rng = np.random.default_rng(frames)
    still = np.add.outer(np.arange(height) * 2, np.arange(width))[None, :, :, None]
    moving = np.arange(frames)[:, None, None, None] * 7
    return ((still + moving + rng.integers(0, 30, (frames, height, width, 3))) % 256).astype(np.uint8)


def ours(frames: np.ndarray, fps: float | None, options: VideoOptions = VideoOptions(), **changes: Any) -> Pixels:  # noqa: B008
    """Our result for a list of lossless pictures."""
    files = []
    for frame in frames:
        buffer = io.BytesIO()
        Image.fromarray(frame).save(buffer, "BMP")
        files.append(buffer.getvalue())
    work = VideoWork(options, changes.get("rules", RULES), LIMITS, source_fps=fps)
    return process_frames(files, work, RESIZE, lambda shape: np.empty(shape, np.uint8))


def oracle(
    frames: np.ndarray, source_fps: float | None, processor: Qwen3VLVideoProcessor = PROCESSOR, **kwargs: Any
) -> Any:
    """transformers' result, with its metadata."""
    duration = None if source_fps is None else len(frames) / source_fps
    metadata = [{"total_num_frames": len(frames), "fps": source_fps, "duration": duration}]
    return processor(frames, video_metadata=metadata, return_metadata=True, return_tensors="pt", **kwargs)


def assert_equal(result: Pixels, expected: Any) -> None:
    """Same frames, times, grid and rows."""
    metadata = expected["video_metadata"][0]
    assert result.plan is not None
    assert list(result.plan.frame_indices) == list(metadata.frames_indices)
    if metadata.fps is not None:
        assert list(result.plan.timestamps) == metadata.timestamps
    assert list(result.grid_thw) == expected["video_grid_thw"][0].tolist()
    assert torch.equal(patchify(result.array, RULES), expected["pixel_values_videos"])


@native
@pytest.mark.parametrize(
    ("frames", "fps", "size"),
    [
        (30, 10.0, (60, 90)),
        (25, 10.0, (90, 60)),
        (7, 24.0, (128, 96)),
        (48, 29.97, (33, 200)),
        (2, 2.0, (16, 24)),
        (5, None, (64, 64)),
        (64, 8.0, (120, 160)),
    ],
)
def test_the_default_rule_is_the_oracle_s(frames: int, fps: float | None, size: tuple[int, int]) -> None:
    """By the source's rate, or by 24 where there is none."""
    array = clip(frames, *size)
    assert_equal(ours(array, fps), oracle(array, fps))


@native
@pytest.mark.parametrize(
    ("options", "kwargs"),
    [
        (VideoOptions(num_frames=7), {"num_frames": 7, "fps": None}),
        (VideoOptions(num_frames=2), {"num_frames": 2, "fps": None}),
        (VideoOptions(num_frames=50), {"num_frames": 50, "fps": None}),
        (VideoOptions(fps=4.0), {"fps": 4.0}),
        (VideoOptions(fps=0.5), {"fps": 0.5}),
        (VideoOptions(fps=99.0), {"fps": 99.0}),
        (VideoOptions(min_pixels=40_000), {"size": SIZE | {"shortest_edge": 40_000}}),
        (VideoOptions(max_pixels=30_000), {"size": SIZE | {"longest_edge": 30_000}}),
    ],
)
def test_one_option_is_the_oracle_s(options: VideoOptions, kwargs: dict[str, Any]) -> None:
    """Frames by count or rate, also more than there are, and the budget of the whole clip."""
    array = clip(31, 70, 100)
    assert_equal(ours(array, 10.0, options), oracle(array, 10.0, **kwargs))


@native
def test_a_pre_sampled_clip_is_the_oracle_s() -> None:
    """All frames by their indices."""
    array = clip(9, 70, 100)
    indices = tuple(range(9))
    expected = oracle(array, 10.0, num_frames=9, fps=None)
    assert_equal(ours(array, 10.0, VideoOptions(frame_indices=indices)), expected)


@native
def test_one_frame_is_what_the_oracle_gives_for_two() -> None:
    """The oracle refuses a single frame; doubled, it is its own clip of two equal frames."""
    array = clip(1, 70, 100)
    expected = oracle(np.concatenate([array, array]), 10.0)
    result = ours(array, 10.0)
    assert list(result.grid_thw) == expected["video_grid_thw"][0].tolist()
    assert torch.equal(patchify(result.array, RULES), expected["pixel_values_videos"])


@native
def test_the_cap_per_frame_is_the_oracle_s() -> None:
    """Where the checkpoint's file switches it on."""
    config = CONFIG | {
        "cap_pixels_per_frame": True,
        "max_video_tokens": 6,
        "size": {"shortest_edge": 1024, "longest_edge": 99_999},
    }
    array = clip(20, 100, 130)
    result = ours(array, 10.0, rules=MediaRules.from_checkpoint(CONFIG, config))
    assert_equal(result, oracle(array, 10.0, Qwen3VLVideoProcessor(**config)))


@settings(max_examples=400, deadline=None)
@given(
    total=st.integers(1, 60_000),
    source_fps=st.one_of(st.none(), st.floats(0.01, 1000)),
    knob=st.one_of(
        st.none(),
        st.tuples(st.just("num_frames"), st.integers(2, 768)),
        st.tuples(st.just("fps"), st.floats(0.01, 500)),
    ),
)
def test_indices_are_sample_frames_s(total: int, source_fps: float | None, knob: tuple[str, float] | None) -> None:
    """Every count, rate and rounding; the single index that the oracle may give is doubled here."""
    arguments: dict[str, Any] = {"fps": PROCESSOR.fps} if knob is None else {knob[0]: knob[1]}
    metadata = VideoMetadata(total_num_frames=total, fps=source_fps)
    expected = PROCESSOR.sample_frames(metadata, **arguments).tolist()
    options = VideoOptions() if knob is None else VideoOptions(**{knob[0]: knob[1]})  # type: ignore[arg-type]
    plan = resolve_sampling(total, source_fps, options, MediaRules(), LIMITS)
    assert list(plan.frame_indices) == (expected * 2 if len(expected) == 1 else expected)


@settings(max_examples=400, deadline=None)
@given(
    frames=st.integers(2, 768),
    height=st.integers(1, 3000),
    width=st.integers(1, 3000),
    low=st.integers(1, 1 << 22),
    high=st.integers(1, 1 << 26),
)
def test_sizes_are_smart_resize_s(frames: int, height: int, width: int, low: int, high: int) -> None:
    """The budget is on the volume; refused exactly where the oracle refuses."""
    try:
        expected = smart_resize(frames, height, width, 2, 32, low, high)
    except ValueError:
        with pytest.raises(MediaProblem):
            video_size(frames, height, width, MediaRules(), low, high)
        return
    assert video_size(frames, height, width, MediaRules(), low, high) == expected
