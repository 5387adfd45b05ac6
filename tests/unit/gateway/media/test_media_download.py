"""Downloads from a server on this machine, under a policy that allows it for the test."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from gateway.media.download import Downloader
from gateway.media.urls import UrlPolicy
from tessera.errors import InvalidArgument, PermissionDenied, ResourceExhausted, ServeError

Answer = Callable[[str], bytes]


class Server:
    """Answers each request with what a script says for its path; keeps the requests."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self.requests: list[str] = []
        self.port = 0

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One exchange."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        self.requests.append(head)
        writer.write(self._answer(head.split()[1]))
        try:
            await writer.drain()
            writer.close()
            await writer.wait_closed()
        except ConnectionError:
            return


@asynccontextmanager
async def serving(answer: Answer) -> AsyncIterator[Server]:
    """A server on a free port of this machine."""
    server = Server(answer)
    listener = await asyncio.start_server(server.handle, "127.0.0.1", 0)
    server.port = listener.sockets[0].getsockname()[1]
    async with listener:
        yield server


def ok(body: bytes, headers: str = "") -> bytes:
    """A 200 answer."""
    return f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n{headers}\r\n".encode() + body


def downloader(port: int, max_bytes: int = 1000, networks: tuple[str, ...] = ("127.0.0.0/8",)) -> Downloader:
    """One that finds every name on this machine."""

    async def here(host: str, port: int) -> list[str]:
        return ["127.0.0.1"]

    return Downloader(UrlPolicy([f"media.test:{port}", f"other.test:{port}"], networks), max_bytes, here)


async def test_a_file_is_fetched_by_name_from_the_checked_address() -> None:
    """Host stays the name's, and nothing compressed is asked for."""
    async with serving(lambda path: ok(b"picture")) as server:
        assert await downloader(server.port).get(f"http://media.test:{server.port}/a?b") == b"picture"
    request = server.requests[0].lower()
    assert request.startswith("get /a?b http/1.1\r\n")
    assert f"host: media.test:{server.port}\r\n" in request
    assert "accept-encoding: identity" in request


async def test_a_private_address_is_refused_without_a_connection() -> None:
    """The list of hosts does not open this machine."""
    async with serving(lambda path: ok(b"secret")) as server:
        with pytest.raises(PermissionDenied) as caught:
            await downloader(server.port, networks=()).get(f"http://media.test:{server.port}/")
    assert (caught.value.reason, server.requests) == ("URL_FORBIDDEN", [])


async def test_the_name_is_resolved_once() -> None:
    """What was checked is what is dialled: a second answer of the resolver is never asked for."""
    asked: list[str] = []

    async def rebinding(host: str, port: int) -> list[str]:
        asked.append(host)
        return ["127.0.0.1"] if len(asked) == 1 else ["127.0.0.2"]

    async with serving(lambda path: ok(b"x")) as server:
        policy = UrlPolicy([f"media.test:{server.port}"], ["127.0.0.1/32"])
        assert await Downloader(policy, 10, rebinding).get(f"http://media.test:{server.port}/") == b"x"
    assert asked == ["media.test"]


async def test_each_redirect_is_checked() -> None:
    """A hop to a listed host is followed, one to another is not."""

    def answer(path: str) -> bytes:
        if path == "/good":
            return ok(b"there")
        target = f"http://other.test:{server.port}/good" if path == "/a" else "http://169.254.169.254/latest"
        return f"HTTP/1.1 302 Found\r\nLocation: {target}\r\nContent-Length: 0\r\n\r\n".encode()

    async with serving(answer) as server:
        assert await downloader(server.port).get(f"http://media.test:{server.port}/a") == b"there"
        with pytest.raises(PermissionDenied):
            await downloader(server.port).get(f"http://media.test:{server.port}/b")


async def test_a_loop_of_redirects_ends() -> None:
    """A server that always redirects is left after three hops."""
    again = b"HTTP/1.1 301 Moved\r\nLocation: /\r\nContent-Length: 0\r\n\r\n"
    async with serving(lambda path: again) as server:
        with pytest.raises(InvalidArgument) as caught:
            await downloader(server.port).get(f"http://media.test:{server.port}/")
    assert (caught.value.reason, len(server.requests)) == ("URL_REDIRECT", 4)


@pytest.mark.parametrize(
    "answer",
    [
        ok(b"x" * 1001),
        b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 5000,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        + b"3e8\r\n"
        + b"x" * 1000
        + b"\r\n3e8\r\n"
        + b"x" * 1000,
    ],
)
async def test_more_bytes_than_the_cap_are_not_read(answer: bytes) -> None:
    """By the announced length, and while reading where none is announced."""
    async with serving(lambda path: answer) as server:
        with pytest.raises(ResourceExhausted) as caught:
            await downloader(server.port).get(f"http://media.test:{server.port}/")
    assert caught.value.reason == "MEDIA_TOO_LARGE"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", "URL_STATUS"),
        (b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n", "URL_STATUS"),
        (ok(b"zipped", "Content-Encoding: gzip\r\n"), "URL_STATUS"),
        (b"SSH-2.0-OpenSSH\r\n", "URL_UNREACHABLE"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nshort", "URL_UNREACHABLE"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"y" * 20_000, "URL_UNREACHABLE"),
        (b"", "URL_UNREACHABLE"),
    ],
)
async def test_other_answers_are_reasons(answer: bytes, reason: str) -> None:
    """Nothing that a server says gives an unexpected error, and its words go no further."""
    async with serving(lambda path: answer) as server:
        with pytest.raises(ServeError) as caught:
            await downloader(server.port).get(f"http://media.test:{server.port}/")
    assert (caught.value.reason, "127.0.0.1" in caught.value.message) == (reason, False)


async def test_a_server_that_is_not_there_is_unreachable() -> None:
    """A closed port is a reason, without the address."""
    async with serving(lambda path: b"") as server:
        port = server.port
    with pytest.raises(InvalidArgument) as caught:
        await downloader(port).get(f"http://media.test:{port}/")
    assert caught.value.reason == "URL_UNREACHABLE"
