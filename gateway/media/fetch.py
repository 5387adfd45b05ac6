"""Brings the bytes of a source: from the request itself, an upload, a data URL, a web server, a file, or many of these.

Next: gateway/media/pool.py
"""

import asyncio
import base64
import binascii
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from gateway.media.download import Downloader, Resolve, resolve
from gateway.media.files import MediaRoot
from gateway.media.source import (
    DataUrl,
    FilePath,
    FrameList,
    HttpUrl,
    InlineBytes,
    MediaBytes,
    MediaSource,
    SingleSource,
    UploadedId,
)
from gateway.media.urls import UrlPolicy
from tessera.errors import DeadlineExceeded, FailedPrecondition, InvalidArgument, ResourceExhausted, ServeError

JPEG_LIST_FPS = 2.0
MAX_JPEG_FRAMES = 4096
_SLICE_CHARS = 1 << 20  # of base64, decoded at once: about a millisecond of the event loop
_ESCAPES = {"%2B": "+", "%2b": "+", "%2F": "/", "%2f": "/", "%3D": "=", "%3d": "="}
_HASH_INLINE_BYTES = 1 << 20
_FIELDS = {InlineBytes: "data", DataUrl: "url", HttpUrl: "url", UploadedId: "media_id", FilePath: "path"}


class UploadStore(Protocol):
    """Uploaded files by the SHA-256 of their bytes."""

    def get(self, media_id: bytes) -> bytes | None:
        """The file, or None where it is unknown or has expired."""


@dataclass(frozen=True)
class FetchLimits:
    """What may be fetched, and how much.

    Attributes:
        max_media_bytes: Of one file, and of all frames of a list together.
        url_hosts: Hosts that URLs may name (UrlPolicy); none = no URL.
        url_networks: Networks beside the public ones that they may lead to.
        url_timeout_s: Seconds for one download.
        media_root: Folder under which paths may be opened; empty = none.
    """

    max_media_bytes: int = 512 << 20
    url_hosts: tuple[str, ...] = ()
    url_networks: tuple[str, ...] = ()
    url_timeout_s: float = 30.0
    media_root: str | Path = ""


class MediaFetcher:
    """Fetches sources.

    Args:
        limits: What is allowed.
        uploads: Uploaded files.
        resolver: For URLs; tests give their own.
    """

    def __init__(self, limits: FetchLimits, uploads: UploadStore, resolver: Resolve = resolve) -> None:
        self._limits = limits
        self._uploads = uploads
        policy = UrlPolicy(limits.url_hosts, limits.url_networks)
        self._downloader = Downloader(policy, limits.max_media_bytes, resolver)
        self._files = MediaRoot(limits.media_root or None, limits.max_media_bytes)

    async def fetch(self, source: MediaSource, field: str = "media") -> MediaBytes:
        """The bytes of a source.

        Args:
            source: Where they are.
            field: Path of the source, put before the field of an error.

        Raises:
            ServeError: With the field's path.
        """
        if isinstance(source, FrameList):
            return await self._fetch_list(source, f"{field}.frames")
        try:
            return await self._fetch_single(source)
        except ServeError as error:
            raise error.under(f"{field}.{_FIELDS[type(source)]}") from error.__cause__

    async def _fetch_list(self, source: FrameList, field: str) -> MediaBytes:
        if source.source_fps is not None and not 0 < source.source_fps < float("inf"):
            message = "source_fps must be above 0 and finite."
            raise InvalidArgument(message, reason="SAMPLING_INVALID", field=f"{field}.source_fps")
        if source.timestamps is not None and source.source_fps is not None:
            message = "A list of frames has source_fps or timestamps, not both."
            raise InvalidArgument(message, reason="SAMPLING_CONTRADICTION", field=f"{field}.timestamps")
        if source.timestamps is not None and len(source.timestamps) != len(source.frames):
            message = f"{len(source.timestamps)} timestamps for {len(source.frames)} frames."
            raise InvalidArgument(message, reason="SAMPLING_INVALID", field=f"{field}.timestamps")
        files: list[MediaBytes] = []
        size = 0
        for index, frame in enumerate(source.frames):
            path = f"{field}.frames[{index}]"
            file = await self.fetch(frame, path)
            if not isinstance(file.data, bytes):
                raise InvalidArgument("A frame is one picture.", reason="FRAMES_NESTED", field=path)
            size += len(file.data)
            if size > self._limits.max_media_bytes:
                raise _too_large(self._limits.max_media_bytes).under(field)
            files.append(file)
        return _join(files, source.source_fps, source.timestamps)

    async def _fetch_single(self, source: SingleSource) -> MediaBytes:
        if isinstance(source, UploadedId):
            data = self._uploads.get(source.media_id)
            if data is None:
                message = "The upload is not here: it is unknown, or has expired."
                raise FailedPrecondition(message, reason="ITEM_NOT_FOUND")
            return MediaBytes(data, source.media_id)
        if isinstance(source, DataUrl):
            return await self._decode_data_url(source.url)
        if isinstance(source, InlineBytes):
            data = source.data
        elif isinstance(source, HttpUrl):
            data = await self._download(source.url)
        else:
            data = await asyncio.to_thread(self._files.read, source.path)
        return await self._checked(data)

    async def _download(self, url: str) -> bytes:
        try:
            async with asyncio.timeout(self._limits.url_timeout_s):
                return await self._downloader.get(url)
        except TimeoutError:
            message = f"The URL was not fetched within {self._limits.url_timeout_s:g} seconds."
            raise DeadlineExceeded(message, reason="URL_TIMEOUT") from None

    async def _decode_data_url(self, url: str) -> MediaBytes:
        head, comma, body = url.partition(",")
        kind, *flags = [part.strip() for part in head.lower().removeprefix("data:").split(";")]
        rate = next((flag.removeprefix("fps=") for flag in flags if flag.startswith("fps=")), None)
        if not comma or not head.lower().startswith("data:") or "base64" not in flags:
            raise InvalidArgument("A data URL is data:TYPE;base64,DATA.", reason="DATA_URL_INVALID")
        if kind != "video/jpeg":
            return await self._decode_base64(body)
        if body.count(",") >= MAX_JPEG_FRAMES:
            message = f"A data URL has at most {MAX_JPEG_FRAMES} frames."
            raise InvalidArgument(message, reason="TOO_MANY")
        fps = JPEG_LIST_FPS if rate is None else _stated_fps(rate)
        return _join([await self._decode_base64(piece) for piece in body.split(",")], fps, None)

    async def _decode_base64(self, text: str) -> MediaBytes:
        if len(text) * 3 // 4 > self._limits.max_media_bytes + 3:
            raise _too_large(self._limits.max_media_bytes)
        if "%" in text:
            for escape, char in _ESCAPES.items():
                text = text.replace(escape, char)
        try:
            return await self._checked(await _decode_slices(text))
        except (binascii.Error, UnicodeError) as error:
            raise InvalidArgument("The data URL's base64 is malformed.", reason="DATA_URL_INVALID") from error

    async def _checked(self, data: bytes) -> MediaBytes:
        if not data:
            raise InvalidArgument("The medium is empty.", reason="MEDIA_EMPTY")
        if len(data) > self._limits.max_media_bytes:
            raise _too_large(self._limits.max_media_bytes)
        if len(data) <= _HASH_INLINE_BYTES:
            return MediaBytes(data, hashlib.sha256(data).digest())
        return MediaBytes(data, await asyncio.to_thread(lambda: hashlib.sha256(data).digest()))


def _stated_fps(text: str) -> float:
    try:
        fps = float(text)
    except ValueError:
        fps = 0.0
    if not 0 < fps < float("inf"):
        raise InvalidArgument("The data URL's fps must be a number above 0.", reason="SAMPLING_INVALID")
    return fps


async def _decode_slices(text: str) -> bytes:
    """Decode base64 in slices, so that the event loop is never held for long.

    Raises:
        binascii.Error, UnicodeError: It is malformed.
    """
    data, rest = bytearray(), b""
    for at in range(0, len(text), _SLICE_CHARS):
        piece = rest + text[at : at + _SLICE_CHARS].encode("ascii").translate(None, b" \t\r\n")
        whole = len(piece) // 4 * 4
        data += base64.b64decode(piece[:whole], validate=True)
        rest = piece[whole:]
        if at:
            await asyncio.sleep(0)
    return bytes(data + base64.b64decode(rest, validate=True))


def _join(files: list[MediaBytes], source_fps: float | None, timestamps: tuple[float, ...] | None) -> MediaBytes:
    digest = hashlib.sha256(b"tessera-frames")
    for file in files:
        digest.update(file.sha256)
    data = tuple(part for file in files for part in file.parts)
    return MediaBytes(data, digest.digest(), source_fps, timestamps)


def _too_large(max_bytes: int) -> ResourceExhausted:
    message = f"The medium has more than {max_bytes} bytes."
    return ResourceExhausted(message, reason="MEDIA_TOO_LARGE", retry_after_s=None)
