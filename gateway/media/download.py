"""One HTTP GET, to an address that was checked, within a byte cap.

The name is resolved once; the checked address is dialled, while Host and SNI stay the name's. Redirects go through the
same checks. Nothing is decompressed.

Next: gateway/media/files.py
"""

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable

import h11

from gateway.media.urls import Url, UrlPolicy, parse_url, redirect
from tessera.errors import InvalidArgument, ResourceExhausted

MAX_REDIRECTS = 3
_READ_BYTES = 1 << 16
_MAX_HEADER_BYTES = 16 << 10
_REDIRECTS = frozenset((301, 302, 303, 307, 308))

Resolve = Callable[[str, int], Awaitable[list[str]]]


async def resolve(host: str, port: int) -> list[str]:
    """The addresses of a host, by the system's resolver.

    Raises:
        OSError: It has none.
    """
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


class Downloader:
    """Fetches URLs that a policy allows.

    Args:
        policy: Hosts and networks.
        max_bytes: Of one body.
        resolver: Host and port to addresses.
        tls: For https; None = the system's certificates.
    """

    def __init__(
        self, policy: UrlPolicy, max_bytes: int, resolver: Resolve = resolve, tls: ssl.SSLContext | None = None
    ) -> None:
        self._policy = policy
        self._max_bytes = max_bytes
        self._resolve = resolver
        self._tls = tls

    async def get(self, text: str) -> bytes:
        """Fetch a URL, following a few redirects.

        Raises:
            InvalidArgument: URL_INVALID, URL_REDIRECT, URL_UNREACHABLE or URL_STATUS.
            PermissionDenied: URL_FORBIDDEN.
            ResourceExhausted: MEDIA_TOO_LARGE.
        """
        url = parse_url(text)
        for _ in range(MAX_REDIRECTS + 1):
            self._policy.check_host(url)
            answer = await self._get_one(url)
            if isinstance(answer, bytes):
                return answer
            url = redirect(url, answer)
        raise InvalidArgument(f"The URL redirects more than {MAX_REDIRECTS} times.", reason="URL_REDIRECT")

    async def _get_one(self, url: Url) -> bytes | str:
        """One exchange: the body, or where it redirects to."""
        try:
            reader, writer = await self._connect(url)
        except (OSError, UnicodeError) as error:
            raise _unreachable() from error
        try:
            return await _Exchange(reader, writer, self._max_bytes).run(url)
        except (OSError, h11.RemoteProtocolError, asyncio.IncompleteReadError) as error:
            raise _unreachable() from error
        finally:
            # Closing politely would wait for the other side.
            writer.transport.abort()

    async def _connect(self, url: Url) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        addresses = await self._resolve(url.host, url.port)
        self._policy.check_addresses(addresses)
        if not addresses:
            raise OSError("no address")
        tls = {"ssl": self._context(), "server_hostname": url.host} if url.scheme == "https" else {}
        failure = OSError()
        for address in addresses:
            try:
                return await asyncio.open_connection(address, url.port, limit=_READ_BYTES, **tls)  # type: ignore[arg-type]
            except OSError as error:
                failure = error
        raise failure

    def _context(self) -> ssl.SSLContext:
        if self._tls is None:
            self._tls = ssl.create_default_context()
        return self._tls


class _Exchange:
    """A request and its answer on one connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, max_bytes: int) -> None:
        self._reader, self._writer, self._max_bytes = reader, writer, max_bytes
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=_MAX_HEADER_BYTES)

    async def run(self, url: Url) -> bytes | str:
        headers = [("Host", url.authority), ("Accept", "image/*, video/*, */*;q=0.1"), ("Accept-Encoding", "identity")]
        headers += [("User-Agent", "tessera"), ("Connection", "close")]
        self._writer.write(self._http.send(h11.Request(method="GET", target=url.target, headers=headers)) or b"")
        self._writer.write(self._http.send(h11.EndOfMessage()) or b"")
        await self._writer.drain()
        response = await self._next()
        while isinstance(response, h11.InformationalResponse):
            response = await self._next()
        if not isinstance(response, h11.Response):
            raise _unreachable()
        fields = {bytes(name): bytes(value) for name, value in response.headers}
        if response.status_code in _REDIRECTS and b"location" in fields:
            return fields[b"location"].decode("latin-1")
        if response.status_code != 200 or fields.get(b"content-encoding", b"identity").lower() != b"identity":
            message = f"The URL's server answered {response.status_code}, not with a plain file."
            raise InvalidArgument(message, reason="URL_STATUS")
        return await self._body(int(fields.get(b"content-length", b"0")))

    async def _body(self, announced: int) -> bytes:
        if announced > self._max_bytes:
            raise _too_large(self._max_bytes)
        body = bytearray()
        while isinstance(event := await self._next(), h11.Data):
            body += event.data
            if len(body) > self._max_bytes:
                raise _too_large(self._max_bytes)
        if not isinstance(event, h11.EndOfMessage):
            raise _unreachable()
        return bytes(body)

    async def _next(self) -> object:
        while (event := self._http.next_event()) is h11.NEED_DATA:
            self._http.receive_data(await self._reader.read(_READ_BYTES))
        return event


def _unreachable() -> InvalidArgument:
    return InvalidArgument("The URL cannot be fetched.", reason="URL_UNREACHABLE")


def _too_large(max_bytes: int) -> ResourceExhausted:
    message = f"The URL's file has more than {max_bytes} bytes."
    return ResourceExhausted(message, reason="MEDIA_TOO_LARGE", retry_after_s=None)
