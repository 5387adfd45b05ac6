"""GLM's pictures and clips against transformers' processors of 4.1V and 4.6V: same frames, times, grids and pixels.

Oracle: transformers 5.23.0, on its torchvision backend. Tolerance: none.

Next: tests/parity/test_processor_generated.py
"""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers.models.glm4v.image_processing_glm4v import Glm4vImageProcessor
from transformers.models.glm4v.video_processing_glm4v import Glm4vVideoProcessor, smart_resize
from transformers.models.glm46v.video_processing_glm46v import Glm46VVideoProcessor
from transformers.video_utils import VideoMetadata, load_video

from gateway.media.decode import ImageWork, Pixels, VideoWork, process_frames, process_image, process_video
from gateway.media.opencv_loader import OpenCVLoader
from gateway.media.options import ImageOptions, ServerLimits, VideoOptions
from gateway.media.plan import resolve_sampling
from gateway.media.problem import MediaProblem
from gateway.media.resize import load_resizer
from gateway.media.rules import MediaRules, image_size, video_size
from tests.parity.test_media_image import encode, patchify, photo
from tests.parity.test_media_video import clip
from tests.unit.gateway.media.media_fixtures import write_clip

RESIZE = load_resizer()
native = pytest.mark.skipif(RESIZE.name != "native", reason="libtessera_resize.so is not built: make kernels")
LIMITS = ServerLimits(max_image_pixels=1 << 26, max_video_pixels=1 << 26, max_source_frames=1 << 20)
IMAGE_SIZE = {"shortest_edge": 2 * 56 * 56, "longest_edge": 2 * 280 * 280}
VIDEO_SIZE = {"shortest_edge": 4 * 56 * 56, "longest_edge": 8 * 84 * 112}
VIDEO_PROCESSORS = {"glm4v": Glm4vVideoProcessor(size=VIDEO_SIZE), "glm46v": Glm46VVideoProcessor(size=VIDEO_SIZE)}


def rules(family: str) -> MediaRules:
    """Of files that give sizes alone, so that all else is the classes' own."""
    return MediaRules.from_checkpoint({"size": IMAGE_SIZE}, {"size": VIDEO_SIZE}, family)  # type: ignore[arg-type]


def assert_picture(data: bytes, options: ImageOptions, **size: int) -> None:
    """Our result for a picture is transformers'."""
    work = ImageWork(options, rules("glm4v"), LIMITS)
    result = process_image(data, work, RESIZE, lambda shape: np.empty(shape, np.uint8))
    processor = Glm4vImageProcessor(size=IMAGE_SIZE | size)
    expected = processor(Image.open(io.BytesIO(data)), return_tensors="pt")
    assert list(result.grid_thw) == expected["image_grid_thw"][0].tolist()
    assert torch.equal(patchify(np.concatenate([result.array] * 2), work.rules), expected["pixel_values"])


@native
@pytest.mark.parametrize("size", [(56, 56), (100, 170), (170, 100), (480, 640), (13, 500), (7, 7), (1, 199), (280, 28)])
def test_pictures_are_the_oracle_s(size: tuple[int, int]) -> None:
    """Larger, smaller, inside the budget, and below a token's side, which the oracle first scales up."""
    assert_picture(encode(photo(*size)), ImageOptions())


@native
@pytest.mark.parametrize(
    ("options", "size"),
    [
        (ImageOptions(max_pixels=2 * 84 * 84), {"longest_edge": 2 * 84 * 84}),
        (ImageOptions(min_pixels=99_999), {"shortest_edge": 99_999}),
        (ImageOptions(min_pixels=40_000, max_pixels=50_001), {"shortest_edge": 40_000, "longest_edge": 50_001}),
    ],
)
def test_budgets_count_a_picture_s_pixels_twice(options: ImageOptions, size: dict[str, int]) -> None:
    """min_pixels and max_pixels are the oracle's shortest and longest edge, which are of two frames."""
    assert_picture(encode(photo(180, 260)), options, **size)


def ours(frames: np.ndarray, family: str, fps: float | None, options: VideoOptions) -> Pixels:
    """Our result for a list of lossless pictures."""
    files = [encode(Image.fromarray(frame), "BMP") for frame in frames]
    work = VideoWork(options, rules(family), LIMITS, source_fps=fps)
    return process_frames(files, work, RESIZE, lambda shape: np.empty(shape, np.uint8))


def assert_clip(
    result: Pixels,
    frames: np.ndarray,
    family: str,
    source_fps: float,
    duration: float | None = None,
    **kwargs: Any,
) -> None:
    """Same frames, times, grid and rows as transformers."""
    metadata = [VideoMetadata(total_num_frames=len(frames), fps=source_fps, duration=duration)]
    expected = VIDEO_PROCESSORS[family](
        [frames], video_metadata=metadata, return_metadata=True, return_tensors="pt", **kwargs
    )
    made = expected["video_metadata"][0]
    assert result.plan is not None
    assert list(result.plan.frame_indices) == list(made.frames_indices)
    assert list(result.plan.timestamps) == made.timestamps
    assert list(result.grid_thw) == expected["video_grid_thw"][0].tolist()
    assert torch.equal(patchify(result.array, rules(family)), expected["pixel_values_videos"])


@native
@pytest.mark.parametrize("family", VIDEO_PROCESSORS)
@pytest.mark.parametrize(
    ("count", "fps", "size"),
    [(30, 10.0, (60, 90)), (7, 24.0, (128, 96)), (48, 29.97, (33, 200)), (1, 2.0, (20, 20)), (64, 0.1, (70, 90))],
)
def test_a_frame_list_is_sampled_as_the_oracle_does(family: str, count: int, fps: float, size: tuple[int, int]) -> None:
    """Short, long by its rate, odd, tiny, and of one frame, which the oracle doubles."""
    frames = clip(count, *size)
    assert_clip(ours(frames, family, fps, VideoOptions()), frames, family, fps)


@native
@pytest.mark.parametrize("family", VIDEO_PROCESSORS)
@pytest.mark.parametrize("count", [3, 45])
def test_a_file_is_sampled_as_the_oracle_does(family: str, count: int, tmp_path: Path) -> None:
    """A file's duration is its frames by its rate, so a short one gives fewer frames than the same frames as a list."""
    path = write_clip(tmp_path / "clip.avi", frames=count)
    frames, metadata = load_video(
        str(path), backend="opencv", sample_indices_fn=lambda metadata, **_: np.arange(metadata.total_num_frames)
    )
    work = VideoWork(VideoOptions(), rules(family), LIMITS)
    result = process_video(path, work, OpenCVLoader(), RESIZE, lambda shape: np.empty(shape, np.uint8))
    assert metadata.fps is not None
    assert_clip(result, frames, family, metadata.fps, duration=metadata.duration)


@native
@pytest.mark.parametrize("fps", [0.5, 2.0, 4.0, 7.3, 99.0])
def test_the_rate_is_the_oracle_s_fps(fps: float) -> None:
    """GLM-4V takes a rate: fewer and more frames than the clip has."""
    frames = clip(25, 60, 90)
    assert_clip(ours(frames, "glm4v", 10.0, VideoOptions(fps=fps)), frames, "glm4v", 10.0, fps=fps)


@native
@pytest.mark.parametrize("count", [2, 5, 6])
def test_chosen_frames_are_the_oracle_s_presampled_clip(count: int) -> None:
    """frame_indices and num_frames give those frames with their times; an odd count is padded by the model's side."""
    frames = clip(25, 60, 90)
    for options in (VideoOptions(frame_indices=tuple(range(1, 2 * count, 2))), VideoOptions(num_frames=count)):
        result = ours(frames, "glm4v", 10.0, options)
        assert result.plan is not None
        indices = list(result.plan.frame_indices)
        assert len(indices) == count
        expected = VIDEO_PROCESSORS["glm4v"]([frames[indices]], do_sample_frames=False, return_tensors="pt")
        assert list(result.grid_thw) == expected["video_grid_thw"][0].tolist()
        assert torch.equal(patchify(result.array, rules("glm4v")), expected["pixel_values_videos"])


@pytest.mark.parametrize("family", VIDEO_PROCESSORS)
def test_without_a_rate_both_refuse(family: str) -> None:
    """GLM samples by the clock: where the oracle raises we say what to send."""
    frames = clip(5, 56, 56)
    with pytest.raises(ValueError, match="metadata"):
        VIDEO_PROCESSORS[family]([frames], return_tensors="pt")
    with pytest.raises(MediaProblem, match="num_frames") as caught:
        ours(frames, family, None, VideoOptions())
    assert (caught.value.reason, caught.value.field) == ("SAMPLING_INVALID", "media")


@settings(max_examples=400, deadline=None)
@given(
    family=st.sampled_from(sorted(VIDEO_PROCESSORS)),
    total=st.one_of(st.integers(1, 200), st.integers(1, 60_000)),
    source_fps=st.one_of(st.floats(0.01, 1000), st.sampled_from([1.0, 2.0, 24.0, 25.0, 29.97, 30.0, 60.0])),
    duration_s=st.one_of(st.none(), st.just(0.0), st.floats(0.01, 5000)),
    fps=st.one_of(st.none(), st.floats(0.01, 60)),
)
def test_indices_are_sample_frames_s(
    family: str, total: int, source_fps: float, duration_s: float | None, fps: float | None
) -> None:
    """Every count, rate and duration, known or not; where the oracle finds no frame at all there is the first here."""
    metadata = VideoMetadata(total_num_frames=total, fps=source_fps, duration=duration_s)
    oracle = VIDEO_PROCESSORS["glm4v" if fps else family]
    expected = oracle.sample_frames(metadata, fps=fps).tolist()
    limits = ServerLimits(max_frames=1 << 20, max_source_frames=1 << 20, max_duration_s=1e9)
    plan = resolve_sampling(total, source_fps, VideoOptions(fps=fps), rules(family), limits, duration_s=duration_s)
    assert list(plan.frame_indices) == (expected or [0, 0])


@settings(max_examples=400, deadline=None)
@given(
    frames=st.integers(2, 768),
    height=st.integers(1, 3000),
    width=st.integers(1, 3000),
    low=st.integers(1, 1 << 22),
    high=st.integers(1, 1 << 26),
)
def test_sizes_are_smart_resize_s(frames: int, height: int, width: int, low: int, high: int) -> None:
    """Of clips and, as clips of two frames, of pictures; refused exactly where the oracle refuses."""
    glm = rules("glm4v")
    try:
        clip_size = smart_resize(frames, height, width, min_pixels=low, max_pixels=high)
        picture_size = smart_resize(2, height, width, min_pixels=low, max_pixels=high)
    except ValueError:
        with pytest.raises(MediaProblem):
            video_size(frames, height, width, glm, low, high)
        with pytest.raises(MediaProblem):
            image_size(height, width, glm, low, high)
        return
    assert video_size(frames, height, width, glm, low, high) == clip_size
    assert image_size(height, width, glm, low, high) == picture_size
