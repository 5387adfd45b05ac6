"""Sources to bytes, each kind with its own refusals and field paths."""

import asyncio
import base64
import hashlib
import os
from pathlib import Path

import pytest

from gateway.media.fetch import FetchLimits, MediaFetcher
from gateway.media.source import DataUrl, FilePath, FrameList, HttpUrl, InlineBytes, MediaSource, UploadedId
from tessera.errors import DeadlineExceeded, ServeError


class Uploads(dict[bytes, bytes]):
    """Uploaded files."""


def fetcher(**limits: object) -> MediaFetcher:
    """One with one upload."""
    return MediaFetcher(FetchLimits(**limits), Uploads({b"i" * 32: b"uploaded"}))  # type: ignore[arg-type]


async def refused(source: MediaSource, **limits: object) -> tuple[str, str, str | None]:
    """Status, reason and field of the error."""
    with pytest.raises(ServeError) as caught:
        await fetcher(**limits).fetch(source)
    return caught.value.code.name, caught.value.reason, caught.value.field


async def test_bytes_are_hashed() -> None:
    """The hash names the file in the cache."""
    media = await fetcher().fetch(InlineBytes(b"abc"))
    assert (media.data, media.sha256) == (b"abc", hashlib.sha256(b"abc").digest())


async def test_an_upload_is_named_by_its_id() -> None:
    """Its id is its hash; one that is not there is a failed precondition."""
    assert (await fetcher().fetch(UploadedId(b"i" * 32))).data == b"uploaded"
    assert await refused(UploadedId(b"j" * 32)) == ("FAILED_PRECONDITION", "ITEM_NOT_FOUND", "media.media_id")


@pytest.mark.parametrize(
    "url",
    ["data:image/png;base64,YWJj", "DATA:;BASE64,YWJj", "data:image/png;x=y;base64,YW\nJj", "data:a/b;base64,YW%4Ajj"],
)
async def test_data_urls_are_decoded(url: str) -> None:
    """With parameters, line ends, and escapes of the three characters that need them."""
    if "%4A" in url:
        assert (await refused(DataUrl(url)))[1] == "DATA_URL_INVALID"
        return
    assert (await fetcher().fetch(DataUrl(url))).data == b"abc"


async def test_large_data_urls_are_decoded_in_slices() -> None:
    """The slices join without a seam, also where line ends shift them."""
    data = os.urandom(2_000_003)
    text = base64.encodebytes(data).decode()
    assert (await fetcher().fetch(DataUrl("data:x/y;base64," + text))).data == data
    plain = base64.b64encode(data).decode().replace("+", "%2B").replace("/", "%2F").replace("=", "%3D")
    assert (await fetcher().fetch(DataUrl("data:x/y;base64," + plain))).data == data


@pytest.mark.parametrize(
    "url", ["data:image/png,abc", "data:image/png;base64", "data:;base64,YWJ", "data:;base64,YW!j", "data:;base64,Ü"]
)
async def test_malformed_data_urls_are_refused(url: str) -> None:
    """With the field that holds the URL."""
    assert await refused(DataUrl(url)) == ("INVALID_ARGUMENT", "DATA_URL_INVALID", "media.url")


async def test_an_empty_medium_is_refused() -> None:
    """An empty file is MEDIA_EMPTY, however it came."""
    assert (await refused(DataUrl("data:;base64,")))[1] == "MEDIA_EMPTY"
    assert await refused(InlineBytes(b"")) == ("INVALID_ARGUMENT", "MEDIA_EMPTY", "media.data")


async def test_jpeg_frames_in_one_url_are_a_clip_at_two_frames_a_second() -> None:
    """Comma-separated pictures in a data URL are frames at the stated default."""
    media = await fetcher().fetch(DataUrl("data:video/jpeg;base64,YQ==,Yg==,Yw=="))
    assert (media.data, media.source_fps, media.timestamps) == ((b"a", b"b", b"c"), 2.0, None)


async def test_a_data_url_may_state_the_rate_of_its_frames() -> None:
    """As a parameter of its type; what is no rate is refused."""
    media = await fetcher().fetch(DataUrl("data:video/jpeg;fps=7.5;base64,YQ==,Yg=="))
    assert (len(media.parts), media.source_fps) == (2, 7.5)
    for rate in ("0", "-1", "nan", "inf", "many", ""):
        url = DataUrl(f"data:video/jpeg;fps={rate};base64,YQ==")
        assert await refused(url) == ("INVALID_ARGUMENT", "SAMPLING_INVALID", "media.url")


async def test_too_many_bytes_are_refused_before_decoding() -> None:
    """The cap holds for inline bytes and for what base64 would give."""
    assert (await refused(InlineBytes(b"x" * 11), max_media_bytes=10))[:2] == ("RESOURCE_EXHAUSTED", "MEDIA_TOO_LARGE")
    url = DataUrl("data:;base64," + "A" * 400)
    assert (await refused(url, max_media_bytes=10))[1] == "MEDIA_TOO_LARGE"


async def test_urls_and_paths_are_off_by_default() -> None:
    """Policy, not a fault of the request."""
    assert await refused(HttpUrl("https://example.com/a.png")) == ("PERMISSION_DENIED", "URL_FORBIDDEN", "media.url")
    assert await refused(HttpUrl("file:///etc/passwd")) == ("INVALID_ARGUMENT", "URL_INVALID", "media.url")
    assert await refused(FilePath("/etc/passwd")) == ("PERMISSION_DENIED", "PATH_FORBIDDEN", "media.path")


async def test_a_slow_download_ends() -> None:
    """The server's own limit, before the caller's."""

    async def never(host: str, port: int) -> list[str]:
        await asyncio.Event().wait()
        return []

    limits = FetchLimits(url_hosts=("a.test",), url_timeout_s=0.01)
    with pytest.raises(DeadlineExceeded) as caught:
        await MediaFetcher(limits, Uploads(), never).fetch(HttpUrl("http://a.test/"))
    assert (caught.value.reason, caught.value.field) == ("URL_TIMEOUT", "media.url")


async def test_frames_are_fetched_in_order_with_their_paths() -> None:
    """A frame at fault is named by its index."""
    frames = FrameList((InlineBytes(b"a"), UploadedId(b"i" * 32)), source_fps=5.0)
    media = await fetcher().fetch(frames)
    assert (media.data, media.source_fps) == ((b"a", b"uploaded"), 5.0)
    broken = FrameList((InlineBytes(b"a"), UploadedId(b"?" * 32)))
    assert (await refused(broken))[2] == "media.frames.frames[1].media_id"


async def test_one_frame_and_its_file_have_different_hashes() -> None:
    """A list is never taken for a file in the cache."""
    single = await fetcher().fetch(InlineBytes(b"a"))
    assert (await fetcher().fetch(FrameList((InlineBytes(b"a"),)))).sha256 != single.sha256


@pytest.mark.parametrize(
    ("fps", "times", "field"),
    [
        (0.0, None, "media.frames.source_fps"),
        (float("nan"), None, "media.frames.source_fps"),
        (float("inf"), None, "media.frames.source_fps"),
        (2.0, (0.0,), "media.frames.timestamps"),
        (None, (0.0, 1.0), "media.frames.timestamps"),
    ],
)
async def test_contradictions_of_a_list_are_refused(
    fps: float | None, times: tuple[float, ...] | None, field: str
) -> None:
    """Before any frame is fetched."""
    assert (await refused(FrameList((UploadedId(b"?" * 32),), fps, times)))[2] == field


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A media root with a file, links, a fifo, and a secret beside it."""
    (tmp_path / "secret").write_bytes(b"secret")
    folder = tmp_path / "root"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "a.png").write_bytes(b"inside")
    (folder / "good").symlink_to("sub/a.png")
    (folder / "bad").symlink_to("../secret")
    (folder / "up").symlink_to("..")
    (folder / "loop").symlink_to("loop")
    os.mkfifo(folder / "fifo")
    return folder


@pytest.mark.parametrize("path", ["sub/a.png", "./sub/../sub/a.png", "good", "{root}/sub/a.png"])
async def test_files_inside_the_root_are_read(root: Path, path: str) -> None:
    """Relative, absolute, and by a link that stays inside."""
    media = await fetcher(media_root=root).fetch(FilePath(path.format(root=root)))
    assert media.data == b"inside"


@pytest.mark.parametrize("path", ["../secret", "/etc/passwd", "bad", "up/secret", "sub/../../secret"])
async def test_no_path_leads_out_of_the_root(root: Path, path: str) -> None:
    """By dots, absolute, or by links."""
    assert (await refused(FilePath(path), media_root=root))[:2] == ("PERMISSION_DENIED", "PATH_FORBIDDEN")


@pytest.mark.parametrize("path", ["absent", "sub", ".", "fifo", "loop", "a\0b", "sub/a.png/x", "x" * 5000])
async def test_what_is_no_readable_file_is_refused(root: Path, path: str) -> None:
    """A folder, a fifo (without waiting for a writer), a loop of links, nothing at all."""
    assert (await refused(FilePath(path), media_root=root))[:2] == ("INVALID_ARGUMENT", "PATH_UNREADABLE")
