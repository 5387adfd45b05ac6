"""Clips from files and from lists: only the sampled frames, at their own times, whatever the header says."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from gateway.media import sandbox
from gateway.media.decode import Pixels, VideoWork, process_frames, process_video
from gateway.media.opencv_loader import OpenCVLoader, OpenCVReader
from gateway.media.options import VideoOptions
from gateway.media.problem import MediaProblem
from gateway.media.resize import load_resizer
from gateway.media.rules import MediaRules
from gateway.media.video import VideoInfo, check_container
from tests.unit.gateway.media.media_fixtures import LIMITS, RULES, damage_frames, encoded, picture, write_clip

RESIZE = load_resizer()
WORK = VideoWork(VideoOptions(), RULES, LIMITS)


def empty(shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Room for a result."""
    return np.empty(shape, np.uint8)


def clip(path: Path, options: VideoOptions = VideoOptions(), rules: MediaRules = RULES) -> Pixels:  # noqa: B008
    """A processed file."""
    return process_video(path, replace(WORK, options=options, rules=rules), OpenCVLoader(), RESIZE, empty)


class FakeLoader:
    """A clip of flat frames whose value is their index; some cannot be read, and the header may lie."""

    name = "fake"

    def __init__(self, header: VideoInfo, frames: int, broken: Sequence[int] = ()) -> None:
        self.info, self._frames, self._broken = header, frames, set(broken)
        self.end: int | None = None
        self.times: dict[int, float] = {}
        self.passes: list[tuple[int, ...]] = []

    def open(self, path: Path) -> "FakeLoader":
        """The clip itself."""
        return self

    def count(self, limit: int) -> int:
        """All frames."""
        return min(self._frames, limit + 1)

    def read(self, indices: Sequence[int]) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """The readable ones."""
        self.passes.append(tuple(indices))
        good = [index for index in range(self._frames) if index not in self._broken]
        self.end = good[-1] + 1 if good and good[-1] < max(indices) else None
        for index in indices:
            if index in good:
                yield index, np.full((64, 96, 3), index, np.uint8)

    def close(self) -> None:
        """Nothing is held."""


def fake(loader: FakeLoader, **options: object) -> Pixels:
    """A processed fake clip."""
    work = replace(WORK, options=VideoOptions(**options))  # type: ignore[arg-type]
    return process_video(Path("none"), work, loader, RESIZE, empty)


@pytest.mark.parametrize("name", ["clip.avi", "clip.mp4"])
def test_a_file_gives_the_planned_frames(tmp_path: Path, name: str) -> None:
    """The blue ramp of the clip says which frames were taken; grid and times follow."""
    result = clip(write_clip(tmp_path / name))
    assert result.plan is not None
    assert result.plan.frame_indices == (0, 6, 11, 17, 22, 28, 33, 39)
    blues = result.array[:, 30, 40, 2].astype(int)
    assert np.abs(blues - 5 * np.array(result.plan.frame_indices)).max() <= 6
    assert (result.grid_thw, result.source_size) == ((4, 4, 6), (64, 96))


def test_damaged_frames_are_dropped_with_their_times(tmp_path: Path) -> None:
    """What follows a frame that does not decode keeps its own index, time and pixels."""
    damaged = damage_frames(write_clip(tmp_path / "clip.avi"), (11, 17))
    result = clip(damaged)
    assert result.plan is not None
    assert result.plan.frame_indices == (0, 6, 22, 28, 33, 39)
    assert (result.plan.dropped_frames, result.plan.timestamps[2]) == (2, 2.2)
    blues = result.array[:, 30, 40, 2].astype(int)
    assert np.abs(blues - 5 * np.array(result.plan.frame_indices)).max() <= 6


def test_a_cut_file_is_sampled_over_what_there_is(tmp_path: Path) -> None:
    """A header that promises more frames than there are is not believed."""
    path = write_clip(tmp_path / "clip.avi")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    result = clip(path)
    assert result.plan is not None
    assert result.plan.total_frames < 30
    assert result.plan.frame_indices[-1] == result.plan.total_frames - 1


def test_seeking_gives_the_frames_that_reading_gives(tmp_path: Path) -> None:
    """Far-apart frames are reached by a seek, and are the same."""
    path = write_clip(tmp_path / "clip.avi", frames=1000)
    options = VideoOptions(frame_indices=(3, 450, 999))
    reader = OpenCVLoader().open(path)
    by_reading = {index: frame for index, frame in reader.read(range(1000)) if index in options.frame_indices}
    reader.close()
    large = replace(RULES, video_min_pixels=1, video_max_pixels=1 << 24)
    result = clip(path, options, large)
    np.testing.assert_array_equal(result.array, np.stack(list(by_reading.values())))


@pytest.mark.parametrize(
    "content", [b"#EXTM3U\n/etc/passwd", b"ffconcat version 1.0\nfile /etc/passwd", b"", b"\0" * 99]
)
def test_what_is_no_container_is_not_opened(tmp_path: Path, content: bytes) -> None:
    """A playlist names other files; it is refused by its first bytes."""
    path = tmp_path / "clip"
    path.write_bytes(content)
    with pytest.raises(MediaProblem) as caught:
        clip(path)
    assert caught.value.reason == "VIDEO_UNREADABLE"


@pytest.mark.parametrize(
    "content",
    [
        "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:4,\nclip.avi\n#EXT-X-ENDLIST\n",
        "ffconcat version 1.0\nfile clip.avi\n",
    ],
)
def test_ffmpeg_itself_opens_no_playlist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str) -> None:
    """The second wall, behind the first bytes: a pool process's environment holds FFmpeg to plain containers."""
    for name, value in sandbox.ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    path = write_clip(tmp_path / "clip.avi")
    OpenCVReader(path).close()
    playlist = tmp_path / "playlist"
    playlist.write_text(content)
    with pytest.raises(MediaProblem):
        OpenCVReader(playlist)


def test_plain_containers_pass_by_their_first_bytes() -> None:
    """An MP4 names its brand at the fifth byte."""
    check_container(b"\0\0\0\x18ftypmp42")


def test_a_clip_of_one_frame_is_doubled() -> None:
    """Two frames of pixels and two times, before the size is asked for."""
    result = fake(FakeLoader(VideoInfo(1, 10.0, 64, 96), 1))
    assert result.plan is not None
    assert (len(result.array), result.plan.timestamps, result.grid_thw[0]) == (2, (0.0, 0.0), 1)


def test_an_unknown_length_is_counted() -> None:
    """A header without a count costs one pass more."""
    result = fake(FakeLoader(VideoInfo(0, None, 0, 0), 48))
    assert result.plan is not None
    assert (result.plan.total_frames, result.plan.source_fps) == (48, 24.0)


def test_a_clip_is_read_again_only_where_lost_frames_change_the_size() -> None:
    """Fewer frames share the same budget, so each may be larger."""
    loader = FakeLoader(VideoInfo(40, 10.0, 64, 96), 40, broken=(6, 11, 17))
    result = fake(loader, max_pixels=8 * 32 * 64)
    assert result.plan is not None
    assert len(loader.passes) == 2
    assert result.array[:, 0, 0, 0].tolist() == list(result.plan.frame_indices) == [0, 22, 28, 33, 39]
    roomy = FakeLoader(VideoInfo(40, 10.0, 64, 96), 40, broken=(6,))
    fake(roomy)
    assert len(roomy.passes) == 1


def test_one_readable_frame_is_enough_and_none_is_an_error() -> None:
    """What is left is doubled."""
    broken = tuple(index for index in range(8) if index != 3)
    only = fake(FakeLoader(VideoInfo(8, 4.0, 64, 96), 8, broken), frame_indices=(2, 3))
    assert only.array[:, 0, 0, 0].tolist() == [3, 3]
    with pytest.raises(MediaProblem) as caught:
        fake(FakeLoader(VideoInfo(8, 4.0, 64, 96), 8, range(8)))
    assert caught.value.reason == "VIDEO_UNREADABLE"


def test_more_frames_than_asked_repeat_as_in_transformers() -> None:
    """num_frames above the clip's own count gives rounded positions, some twice."""
    result = fake(FakeLoader(VideoInfo(3, 10.0, 64, 96), 3), num_frames=5)
    assert result.array[:, 0, 0, 0].tolist() == [0, 0, 1, 2, 2]


def test_frames_too_large_are_refused_by_the_header() -> None:
    """One frame is held to the decoded pixel budget."""
    with pytest.raises(MediaProblem) as caught:
        fake(FakeLoader(VideoInfo(8, 4.0, 1 << 14, 1 << 14), 8))
    assert caught.value.reason == "VIDEO_TOO_LARGE"


def test_a_list_is_sampled_by_its_rate() -> None:
    """Like a file, and only sampled pictures are decoded."""
    frames = [encoded(picture(64, 96, seed)) if seed % 5 == 0 else b"never read" for seed in range(16)]
    result = process_frames(frames, replace(WORK, source_fps=8.0), RESIZE, empty)
    assert result.plan is not None
    assert result.plan.frame_indices == (0, 5, 10, 15)


def test_a_list_with_timestamps_is_used_whole() -> None:
    """A picture that cannot be read leaves with its time."""
    frames = [encoded(picture(64, 96)), b"broken", encoded(picture(64, 96, 2))]
    result = process_frames(frames, replace(WORK, timestamps=(0.0, 1.5, 4.0)), RESIZE, empty)
    assert result.plan is not None
    assert (result.plan.timestamps, result.plan.dropped_frames) == ((0.0, 4.0), 1)


def test_frames_of_two_sizes_are_refused() -> None:
    """The path of the frame at fault is named."""
    frames = [encoded(picture(64, 96)), encoded(picture(64, 64))]
    with pytest.raises(MediaProblem) as caught:
        process_frames(frames, WORK, RESIZE, empty)
    assert (caught.value.reason, caught.value.field) == ("FRAME_SIZE", "media.frames.frames[1]")


def test_the_environment_for_decoders_needs_no_secret() -> None:
    """Nothing of this process's own environment is in it."""
    assert not set(sandbox.ENVIRONMENT.values()) & {value for value in os.environ.values() if len(value) > 8}
