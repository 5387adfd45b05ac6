"""Sizes and pixel budgets of pictures and clips."""

import json
from pathlib import Path

import pytest

from gateway.media.options import ImageOptions, ServerLimits, VideoOptions, merge
from gateway.media.problem import MediaProblem
from gateway.media.rules import MediaRules, image_budget, image_size, video_budget, video_size

RULES = MediaRules(image_min_pixels=65536, image_max_pixels=1 << 24, video_min_pixels=4096, video_max_pixels=25165824)


def test_sides_are_rounded_half_to_even_to_whole_tokens() -> None:
    """A side halfway between two multiples goes to the even one, as Python rounds."""
    assert image_size(512 + 16, 512 + 48, RULES, 1, 1 << 24) == (512, 576)


@pytest.mark.parametrize("size", [(1080, 1920), (7, 900), (5000, 5000), (33, 31)])
def test_a_picture_stays_within_its_budget(size: tuple[int, int]) -> None:
    """Whole tokens, at most the budget, whatever the source."""
    height, width = image_size(*size, RULES, 32 * 32, 512 * 512)
    assert height % 32 == width % 32 == 0
    assert height * width <= 512 * 512


def test_an_extreme_aspect_is_refused() -> None:
    """More than 200 to 1 has a reason of its own; 200 to 1 is legal."""
    assert image_size(32, 6400, RULES, 1, 1 << 24) == (32, 6400)
    with pytest.raises(MediaProblem) as caught:
        image_size(1, 201, RULES, 1, 1 << 24)
    assert (caught.value.reason, caught.value.field) == ("ASPECT_RATIO", "media")
    with pytest.raises(MediaProblem):
        video_size(4, 1, 10000, RULES, 4096, 25165824)


def test_a_clip_budget_is_on_all_frames_together() -> None:
    """Twice the frames halve the pixels of a frame."""
    few = video_size(4, 480, 640, RULES, 4096, 4 * 320 * 320)
    many = video_size(16, 480, 640, RULES, 4096, 4 * 320 * 320)
    assert few[0] * few[1] * 4 <= 4 * 320 * 320
    assert many[0] * many[1] < few[0] * few[1]


def test_a_tiny_clip_is_first_scaled_to_one_token() -> None:
    """A frame below a token's side grows to it."""
    assert video_size(2, 8, 16, RULES, 1, 1 << 24) == (32, 64)


def test_a_cap_on_pixels_per_frame_is_kept_where_the_checkpoint_asks() -> None:
    """cap_pixels_per_frame holds each frame to its tokens."""
    capped = MediaRules(cap_pixels_per_frame=True, max_video_tokens=16)
    height, width = video_size(4, 640, 640, capped, 4096, 25165824)
    assert height * width <= 16 * 32 * 32


def test_options_lower_and_raise_only_their_own_modality() -> None:
    """A picture's option leaves the clip's budget, and the other way round."""
    limits = ServerLimits()
    assert image_budget(ImageOptions(max_pixels=100_000), RULES, limits) == (65536, 100_000)
    assert video_budget(VideoOptions(), RULES, limits) == (4096, 25165824)
    assert video_budget(VideoOptions(min_pixels=8192), RULES, limits) == (8192, 25165824)
    assert image_budget(ImageOptions(), RULES, limits) == (65536, 1 << 24)


def test_the_server_cap_is_never_raised() -> None:
    """A request above the cap gets the cap; the family's minimum gives way to it."""
    limits = ServerLimits(max_image_pixels=50_000)
    assert image_budget(ImageOptions(max_pixels=1 << 30), RULES, limits) == (50_000, 50_000)
    assert image_budget(ImageOptions(max_pixels=1 << 30), RULES, ServerLimits()) == (65536, 1 << 24)


@pytest.mark.parametrize(
    ("options", "field"),
    [
        (ImageOptions(min_pixels=200_000, max_pixels=100_000), "options.max_pixels"),
        (ImageOptions(max_pixels=1000), "options.max_pixels"),
        (ImageOptions(min_pixels=1 << 25), "options.min_pixels"),
        (ImageOptions(min_pixels=0), "options.min_pixels"),
        (ImageOptions(max_pixels=-5), "options.max_pixels"),
    ],
)
def test_contradictory_budgets_are_refused(options: ImageOptions, field: str) -> None:
    """min above max, and values below 1, name their field."""
    with pytest.raises(MediaProblem) as caught:
        image_budget(options, RULES, ServerLimits())
    assert (caught.value.reason, caught.value.field) == ("PIXEL_BUDGET", field)


def test_part_options_win_field_by_field() -> None:
    """What a part leaves unset comes from the request."""
    merged = merge(VideoOptions(fps=1.0, max_pixels=5000), VideoOptions(fps=3.0, frame_indices=()))
    assert merged == VideoOptions(fps=3.0, max_pixels=5000)
    assert merge(VideoOptions(frame_indices=(1,)), VideoOptions()) == VideoOptions(frame_indices=(1,))


def test_published_files_are_read() -> None:
    """size means pixels; fps and frame bounds come from the clip's file."""
    image = {"size": {"shortest_edge": 65536, "longest_edge": 16777216}, "patch_size": 16, "image_mean": [0.5] * 3}
    video = {"size": {"shortest_edge": 4096, "longest_edge": 25165824}, "patch_size": 16, "max_frames": 16}
    rules = MediaRules.from_checkpoint(image, video)
    assert (rules.image_min_pixels, rules.video_max_pixels, rules.max_frames) == (65536, 25165824, 16)
    assert (rules.fps, rules.factor) == (2.0, 32)


def test_what_is_not_served_is_refused_at_start() -> None:
    """Another filter or patch size is an error when the files are read, not a wrong pixel later."""
    with pytest.raises(ValueError, match="bicubic"):
        MediaRules.from_checkpoint({"patch_size": 16, "resample": 2}, None)
    with pytest.raises(ValueError, match="patch_size"):
        MediaRules.from_checkpoint({"patch_size": 14}, {"patch_size": 16})


def test_a_directory_is_read_in_both_layouts(tmp_path: Path) -> None:
    """processor_config.json may nest both files, as transformers 5 saves them."""
    image, video = {"patch_size": 16, "size": {"shortest_edge": 7, "longest_edge": 9}}, {"patch_size": 16, "fps": 1}
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": image, "video_processor": video}))
    nested = MediaRules.from_dir(tmp_path)
    (tmp_path / "processor_config.json").unlink()
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(image))
    (tmp_path / "video_preprocessor_config.json").write_text(json.dumps(video))
    assert MediaRules.from_dir(tmp_path) == nested
    assert (nested.image_max_pixels, nested.fps) == (9, 1)
