"""Where media come from: bytes, data URLs, uploads, a web server and a folder; and that a fetch can be stopped."""

import base64
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tessera.v1 import inference_service_pb2 as pb
from tests.e2e.harness import Flags, Pair, Pairs, wait_until
from tests.e2e.site import Site
from tests.e2e.status import assert_says_nothing_of_the_inside, outcome
from tests.parity.cases import CLIP, SMALL, Case, chat_request, user

ASK = Case("ask", (user(SMALL, CLIP, "What is this?"),))


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    """One web server for the module."""
    served = Site({"/a.png": SMALL.file, "/b.avi": CLIP.file, "/text": b"no picture"})
    yield served
    served.stop()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a picture and a clip, and with ways out of it."""
    folder = tmp_path_factory.mktemp("media")
    (folder / "sub").mkdir()
    (folder / "sub/a.png").write_bytes(SMALL.file)
    (folder / "b.avi").write_bytes(CLIP.file)
    outside = tmp_path_factory.mktemp("outside")
    (outside / "secret.png").write_bytes(SMALL.file)
    (folder / "link.png").symlink_to(outside / "secret.png")
    (folder / "linked").symlink_to(outside)
    return folder


@pytest.fixture
def pair(pairs: Pairs, tiny: Callable[[str], Path], site: Site, root: Path) -> Pair:
    """A pair that may fetch from the web server and open the folder."""
    allowed = ("--allow-url-host", f"localhost:{site.port}", "--allow-url-network", "127.0.0.0/8")
    flags = (*allowed, "--media-root", str(root), "--max-media-bytes", "4m", "--fetch-timeout-s", "1.5")
    return pairs.get(Flags(tiny("5.x"), gateway=flags))


def with_image(**source: object) -> pb.ChatRequest:
    """The request with another source for its picture."""
    request = chat_request(ASK, max_tokens=4)
    media = request.messages[0].parts[0].image.media
    media.Clear()
    for name, value in source.items():
        setattr(media, name, value)
    return request


def test_every_source_is_the_same_medium(pair: Pair, site: Site, root: Path) -> None:
    """Bytes, a data URL, an upload, a web server and a path give one item and one answer."""
    expected = pair.stub.Chat(chat_request(ASK, max_tokens=4))
    header = pb.UploadMediaRequest(header=pb.UploadHeader(media=pb.MediaFile(), size_bytes=len(SMALL.file)))
    uploaded = pair.stub.UploadMedia(iter([header, pb.UploadMediaRequest(chunk=SMALL.file)]))
    assert uploaded.media_id == hashlib.sha256(SMALL.file).digest()
    data_url = "data:image/png;base64," + base64.b64encode(SMALL.file).decode()
    for source in (
        {"url": data_url},
        {"media_id": uploaded.media_id},
        {"url": site.url("/a.png")},
        {"url": site.redirect_to(site.url("/a.png"))},
        {"url": site.redirect_to("/a.png")},
        {"path": "sub/a.png"},
        {"path": str(root / "sub/a.png")},
    ):
        response = pair.stub.Chat(with_image(**source))
        assert response.media[0].content_hash == expected.media[0].content_hash
        assert response.choices[0].token_ids == expected.choices[0].token_ids


def test_clips_come_from_everywhere_too(pair: Pair, site: Site) -> None:
    """A clip by URL or path is the clip by bytes."""
    expected = pair.stub.Chat(chat_request(ASK, max_tokens=4)).media[1].content_hash
    for name, value in (("url", site.url("/b.avi")), ("path", "b.avi")):
        request = chat_request(ASK, max_tokens=4)
        media = request.messages[0].parts[1].video.media
        media.Clear()
        setattr(media, name, value)
        assert pair.stub.Chat(request).media[1].content_hash == expected


@pytest.mark.parametrize(
    ("path", "code", "reason"),
    [
        ("link.png", "PERMISSION_DENIED", "PATH_FORBIDDEN"),
        ("linked/secret.png", "PERMISSION_DENIED", "PATH_FORBIDDEN"),
        ("../outside/secret.png", "PERMISSION_DENIED", "PATH_FORBIDDEN"),
        ("/etc/passwd", "PERMISSION_DENIED", "PATH_FORBIDDEN"),
        ("sub", "INVALID_ARGUMENT", "PATH_UNREADABLE"),
        ("none.png", "INVALID_ARGUMENT", "PATH_UNREADABLE"),
        ("a\0b", "INVALID_ARGUMENT", "PATH_UNREADABLE"),
    ],
)
def test_no_way_out_of_the_folder(pair: Pair, path: str, code: str, reason: str) -> None:
    """A path that leads out of the root, by dots or by links, is refused; so is one that names no file."""
    status = outcome(lambda: pair.stub.Chat(with_image(path=path)))
    assert (status.code, status.reason) == (code, reason)
    assert status.field == "messages[0].parts[0].image.media.path"
    assert_says_nothing_of_the_inside(status)


def test_hosts_and_redirects_are_checked(pair: Pair, site: Site) -> None:
    """Only allowed hosts are asked, also behind a redirect; a forbidden one is never connected to."""
    asked = len(site.asked)
    other_name = f"http://127.0.0.1:{site.port}/a.png"
    for url in (other_name, f"http://localhost:{site.port + 1}/a.png", "http://169.254.169.254/latest"):
        status = outcome(lambda url=url: pair.stub.Chat(with_image(url=url)))
        assert (status.code, status.reason) == ("PERMISSION_DENIED", "URL_FORBIDDEN")
        assert_says_nothing_of_the_inside(status)
    assert len(site.asked) == asked
    status = outcome(lambda: pair.stub.Chat(with_image(url=site.redirect_to(other_name))))
    assert (status.code, status.reason) == ("PERMISSION_DENIED", "URL_FORBIDDEN")
    assert len(site.asked) == asked + 1


def test_a_url_in_plain_text_is_never_fetched(pair: Pair, site: Site) -> None:
    """What a user writes is text, also where it is an address."""
    asked = len(site.asked)
    case = Case("text", (user(f"Look at {site.url('/a.png')} and ![]({site.url('/b.avi')})"),))
    assert pair.stub.Chat(chat_request(case, max_tokens=2)).usage.image_tokens == 0
    assert len(site.asked) == asked


def test_missing_endless_and_slow_pages(pair: Pair, site: Site) -> None:
    """A page that is not there, has no end, or takes too long gets its status, and its connection is closed."""
    for path, codes in (
        ("/none", {"INVALID_ARGUMENT"}),
        ("/text", {"INVALID_ARGUMENT"}),
        ("/endless", {"RESOURCE_EXHAUSTED"}),
        ("/slow", {"DEADLINE_EXCEEDED", "INVALID_ARGUMENT"}),
    ):
        status = outcome(lambda path=path: pair.stub.Chat(with_image(url=site.url(path)), timeout=10))
        assert status.code in codes, (path, status)
        assert status.reason
        assert status.field.startswith("messages[0].parts[0].image.media")
        assert_says_nothing_of_the_inside(status)
    wait_until(lambda: site.open == 0, "connections are closed", 2)


def test_cancel_while_fetching(pair: Pair, site: Site) -> None:
    """A caller who leaves during a download ends the download."""
    call = pair.stub.Chat.future(with_image(url=site.url("/slow")))
    wait_until(lambda: site.open == 1, "the download has begun", 2)
    call.cancel()
    wait_until(lambda: site.open == 0, "the connection is closed", 1)
    pair.assert_idle()


def test_deadline_while_fetching(pair: Pair, site: Site) -> None:
    """A caller whose time is up during a download ends the download."""
    status = outcome(lambda: pair.stub.Chat(with_image(url=site.url("/slow")), timeout=0.4))
    assert status.code == "DEADLINE_EXCEEDED"
    wait_until(lambda: site.open == 0, "the connection is closed", 1)
    pair.assert_idle()


def test_signed_urls_are_not_logged(pair: Pair, site: Site) -> None:
    """No address, path or content of a medium stands in the log."""
    outcome(lambda: pair.stub.Chat(with_image(url=site.url("/none?signature=topsecret"))))
    pair.stub.Chat(with_image(path="sub/a.png"))
    log = pair.gateway.log.read_text()
    assert "topsecret" not in log
    assert "a.png" not in log
