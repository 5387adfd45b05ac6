"""load_* and encode_*: from every source to pixels, and from pixels to text and back."""

import base64
import io
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image as PilImage

from tessera_client import (
    Clip,
    InvalidArgument,
    Video,
    encode_image_base64,
    encode_image_url,
    encode_video_base64,
    encode_video_url,
    load_image,
    load_video,
)
from tessera_client import decoders as decoders_module
from tessera_client.loading import spread
from tessera_client.media import split_jpeg_list
from tests.unit.client.test_client_media import part
from tests.unit.gateway.media.clips import index_of, turn, write_h264, write_reordered_avi

RNG = np.random.default_rng(7)
NOISE = RNG.integers(0, 256, (33, 47, 3), np.uint8)
FRAMES = RNG.integers(0, 256, (5, 32, 48, 3), np.uint8)
RAMP = np.stack([np.full((48, 64, 3), 20 + 8 * index, np.uint8) for index in range(20)])


def png(array: np.ndarray) -> bytes:
    """A picture as a file."""
    buffer = io.BytesIO()
    PilImage.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def clip_file(tmp_path: Path) -> Path:
    """Twenty frames at ten a second."""
    path = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10.0, (64, 48))
    for frame in RAMP:
        writer.write(frame)
    writer.release()
    return path


def test_a_picture_comes_from_everywhere(tmp_path: Path) -> None:
    """Path, URL of a file or of data, bytes, open file, PIL image and array are one picture; many give many."""
    data, path = png(NOISE), tmp_path / "a.png"
    path.write_bytes(data)
    url = "data:image/png;base64," + base64.b64encode(data).decode()
    sources = [path, str(path), f"file://{path}", url, data, io.BytesIO(data), PilImage.fromarray(NOISE), NOISE]
    for image in load_image(sources):
        assert image.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(image), NOISE)


def test_a_picture_is_upright_and_on_white() -> None:
    """As the server sees it; with mode None transparency stays."""
    exif = PilImage.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    PilImage.fromarray(NOISE).save(buffer, "PNG", exif=exif)
    assert load_image(buffer.getvalue()).size == (33, 47)
    clear = np.dstack([NOISE, np.zeros((33, 47), np.uint8)])
    assert np.asarray(load_image(clear)).min() == 255
    np.testing.assert_array_equal(np.asarray(load_image(clear, mode=None)), clear)


@pytest.mark.parametrize("source", [b"no picture", b"", object(), np.zeros((2, 2)), "data:image/png;base64,?"])
def test_what_is_no_picture_is_a_typed_error(source: object) -> None:
    """The reason is that of a source."""
    with pytest.raises(InvalidArgument) as caught:
        load_image(source)
    assert caught.value.reason == "MEDIA_SOURCE"


@pytest.mark.parametrize("array", [NOISE, NOISE[:, :, 0], np.dstack([NOISE, NOISE[:, :, 0]])], ids=["rgb", "l", "rgba"])
def test_pictures_make_the_round_trip_bit_by_bit(array: np.ndarray, tmp_path: Path) -> None:
    """PNG loses nothing, from an array, a PIL image, bytes or a path; one gives a text, many a list."""
    path = tmp_path / "a.png"
    path.write_bytes(png(array))
    texts = encode_image_base64([array, PilImage.fromarray(array), png(array), path])
    texts.append(encode_image_base64(array))
    for text in texts:
        np.testing.assert_array_equal(np.asarray(load_image(base64.b64decode(text), mode=None)), array)
    assert encode_image_url([array]) == ["data:image/png;base64," + encode_image_base64(array)]
    np.testing.assert_array_equal(np.asarray(load_image(encode_image_url(array), mode=None)), array)


@pytest.mark.parametrize("frames", [FRAMES, RAMP], ids=["noise", "smooth"])
def test_clips_make_the_round_trip_nearly(frames: np.ndarray) -> None:
    """Same shape and a mean error below 2 of 255, even for noise; from an array, a list or a Clip, one or many."""
    one = encode_video_base64(frames)
    assert one.count(",") == len(frames) - 1
    for url in ("data:video/jpeg;base64," + one, encode_video_url(list(frames)), encode_video_url(Clip(frames))):
        again = load_video(url)
        assert again.frames.shape == frames.shape
        assert np.abs(again.frames.astype(int) - frames).mean() < 2
    assert encode_video_base64([frames, Clip(frames)]) == [one, one]


@pytest.mark.parametrize("decode", ["with_pyav", "with_opencv"])
def test_a_clip_comes_from_everywhere(clip_file: Path, decode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Path, data URL, bytes and open file are one clip with its times, by either decoder."""
    if decode == "with_opencv":
        monkeypatch.setitem(sys.modules, "av", None)
    assert decoders_module._decoder() is getattr(decoders_module, decode)
    data = clip_file.read_bytes()
    url = "data:video/avi;base64," + base64.b64encode(data).decode()
    for clip in (load_video(clip_file), load_video(url), load_video(data), *load_video([str(clip_file), clip_file])):
        assert (len(clip), clip.frames.shape) == (20, (20, 48, 64, 3))
        assert np.abs(clip.frames.astype(int) - RAMP).mean() < 3
        np.testing.assert_allclose(clip.timestamps, np.arange(20) / 10, atol=1e-3)
    few = load_video(clip_file, num_frames=3)
    np.testing.assert_allclose(few.timestamps, [0.0, 1.0, 1.9], atol=1e-3)
    assert len(load_video(clip_file, fps=2)) == 4


@pytest.mark.parametrize("decode", [decoders_module.with_pyav, decoders_module.with_opencv])
def test_frames_and_times_are_those_of_the_file(tmp_path: Path, decode: Callable) -> None:
    """A variable rate, turned frames and a container without times: each frame has its own time, in order."""
    uneven = write_h264(tmp_path / "a.mp4", (0, 100, 1200, 3000))
    turned = turn(write_h264(tmp_path / "b.mp4", (0, 100)), 90)
    stored = write_reordered_avi(tmp_path / "c.avi", 12)
    frames, times = decode(uneven.read_bytes(), lambda times: [0, 2, 3])
    assert [index_of(frame) for frame in frames] == [0, 2, 3]
    np.testing.assert_allclose(times, [0, 1.2, 3], atol=2e-3)
    assert decode(turned.read_bytes(), lambda times: [1])[0][0].shape == (96, 64, 3)
    frames, times = decode(stored.read_bytes(), lambda times: [1, 6, 11])
    assert [index_of(frame) for frame in frames] == [1, 6, 11]
    np.testing.assert_allclose(times, [0.1, 0.6, 1.1], atol=2e-3)


def test_a_damaged_file_is_a_typed_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """By either decoder; without both the error says what to install."""
    for hidden in ((), ("av",)):
        for name in hidden:
            monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(InvalidArgument, match="Not a video"):
            load_video(b"no clip at all")
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ImportError, match="pip install av"):
        load_video(b"no clip at all")


def test_frames_come_from_folders_and_lists(tmp_path: Path) -> None:
    """In natural order, without times where nothing says them."""
    for number in (10, 2, 1):
        PilImage.fromarray(np.full((4, 4, 3), number, np.uint8)).save(tmp_path / f"frame{number}.png")
    clip = load_video(tmp_path)
    assert (clip.frames[:, 0, 0, 0].tolist(), clip.timestamps) == ([1, 2, 10], ())
    assert load_video([png(RAMP[0]), RAMP[1]]).frames[:, 0, 0, 0].tolist() == [20, 28]
    with pytest.raises(InvalidArgument, match="one size"):
        load_video([RAMP[0], NOISE])
    with pytest.raises(InvalidArgument, match="at least one"):
        load_video([])


def test_frames_are_spread_evenly() -> None:
    """Both ends are kept; the smaller of two counts holds; nonsense is refused."""
    times = [index / 10 for index in range(20)]
    assert spread(times, None, None) == list(range(20))
    assert spread(times, 3, None) == [0, 10, 19]
    assert spread(times, 99, 2) == [0, 6, 13, 19]
    assert spread(times, 1, None) == [0]
    for options in ({"num_frames": 0, "fps": None}, {"num_frames": None, "fps": float("nan")}):
        with pytest.raises(InvalidArgument):
            spread(times, **options)


def test_a_loaded_clip_is_a_source() -> None:
    """With its times, unless the caller says others; bare, too."""
    assert len(part(Clip(RAMP[:2])).video.media.frames.frames) == 2
    media = part(Video(Clip(RAMP[:2], (0.5, 3.0)))).video.media.frames
    assert (len(media.frames), list(media.timestamps)) == (2, [0.5, 3.0])
    media = part(Video(Clip(RAMP[:2], (0.5, 3.0)), source_fps=4)).video.media.frames
    assert (media.source_fps, list(media.timestamps)) == (4, [])


def test_frames_in_a_data_url_may_say_their_rate() -> None:
    """In the URL, or beside it: then they go as a list, as they do where the URL is too long for a request."""
    url = encode_video_url(Clip(RAMP[:3], (0.0, 0.25, 0.5)))
    assert url.startswith("data:video/jpeg;fps=4;base64,")
    assert part(Video(url)).video.media.url == url
    assert load_video(url).timestamps == (0.0, 0.25, 0.5)
    assert part(Video(url, source_fps=8)).video.media.frames.source_fps == 8
    timed = part(Video(url, timestamps=[0, 1, 5])).video.media.frames
    assert (list(timed.timestamps), timed.HasField("source_fps")) == ([0, 1, 5], False)
    files, rate = split_jpeg_list(url)
    assert (rate, [frame.data for frame in timed.frames]) == (4, files)
    with pytest.raises(InvalidArgument, match="malformed"):
        part(Video("data:video/jpeg;base64,?,?", source_fps=8))
