"""Bytes to send: which go inside the request, which go ahead of it, and in what chunks.

An upload's name is the SHA-256 of its bytes, so the request can be written
before anything has been uploaded.

Next: media.py, which fills the bag; sync_client.py, which sends it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from tessera.v1 import inference_service_pb2 as pb
from tessera.v1 import types_pb2 as types

CHUNK_BYTES = 1 << 20
UPLOAD_ABOVE_BYTES = 4 << 20
INLINE_TOTAL_BYTES = 24 << 20


@dataclass(frozen=True)
class UploadProgress:
    """How far an upload is."""

    name: str
    sent_bytes: int
    total_bytes: int


UploadCallback = Callable[[UploadProgress], None]


class Payload(Protocol):
    """Something that UploadMedia takes."""

    @property
    def name(self) -> str:
        """For progress bars."""

    @property
    def size_bytes(self) -> int:
        """Bytes to send."""

    def header(self) -> pb.UploadHeader:
        """First message of its upload."""

    def chunks(self) -> Iterator[bytes]:
        """Yield its bytes in order, at most CHUNK_BYTES at once."""


@dataclass(frozen=True)
class Blob:
    """An encoded media file, in memory or on disk (then never read whole, unless it goes inline).

    Args:
        name: for progress bars.
        data: its bytes; None = in `path`.
        path: where it is.
        mime_type: such as "video/mp4"; for the server's log.
    """

    name: str
    data: bytes | None = None
    path: Path | None = None
    mime_type: str = ""

    @cached_property
    def size_bytes(self) -> int:
        """Bytes in all."""
        if self.data is not None:
            return len(self.data)
        assert self.path is not None
        return self.path.stat().st_size

    @cached_property
    def sha256(self) -> bytes:
        """Name of the media once uploaded."""
        digest = hashlib.sha256()
        for chunk in self.chunks():
            digest.update(chunk)
        return digest.digest()

    def read(self) -> bytes:
        """Return all bytes."""
        if self.data is not None:
            return self.data
        assert self.path is not None
        return self.path.read_bytes()

    def chunks(self) -> Iterator[bytes]:
        """Yield the bytes in order, at most CHUNK_BYTES at once."""
        if self.data is not None:
            yield from _slices(self.data)
            return
        assert self.path is not None
        with self.path.open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                yield chunk

    def header(self) -> pb.UploadHeader:
        """Return the first message of the upload."""
        media = pb.MediaFile(mime_type=self.mime_type)
        return pb.UploadHeader(media=media, size_bytes=self.size_bytes, sha256=self.sha256)


@dataclass(frozen=True)
class ItemBlob:
    """An item's tensor; side tensors travel in the header.

    Args:
        message: the item with its tensor.
    """

    message: types.MultimodalItem
    name: str = "item"

    @property
    def size_bytes(self) -> int:
        """Bytes of the tensor."""
        return len(self.message.tensor.data)

    def chunks(self) -> Iterator[bytes]:
        """Yield the tensor's bytes."""
        yield from _slices(self.message.tensor.data)

    def header(self) -> pb.UploadHeader:
        """Return the first message: the item without its tensor's bytes."""
        item = types.MultimodalItem()
        item.CopyFrom(self.message)
        item.ClearField("ranges")
        item.tensor.data = b""
        digest = hashlib.sha256(self.message.tensor.data).digest()
        return pb.UploadHeader(item=pb.ItemTensor(item=item), size_bytes=self.size_bytes, sha256=digest)


@dataclass
class Bag:
    """Media of a request that is being written; each waits for the choice of inline or upload.

    Args:
        upload_above_bytes: a larger one is uploaded.
        inline_total_bytes: the largest are uploaded until the rest is below.
    """

    upload_above_bytes: int = UPLOAD_ABOVE_BYTES
    inline_total_bytes: int = INLINE_TOTAL_BYTES
    _entries: list[tuple[Any, Any]] = field(default_factory=list)

    def add_media(self, media: pb.MediaSource, blob: Blob) -> None:
        """Note a file; `media` is filled by `settle`."""
        self._entries.append((media, blob))

    def add_item(self, item: types.MultimodalItem) -> None:
        """Note an item that holds its tensor."""
        self._entries.append((item, ItemBlob(item)))

    def settle(self) -> tuple[Payload, ...]:
        """Write every entry into its message; return those to upload first, each once."""
        inline = sum(blob.size_bytes for _, blob in self._entries)
        uploads: dict[bytes, Payload] = {}
        for message, blob in sorted(self._entries, key=lambda entry: -entry[1].size_bytes):
            if blob.size_bytes > self.upload_above_bytes or inline > self.inline_total_bytes:
                inline -= blob.size_bytes
                _name(message, blob, uploads)
            elif isinstance(blob, Blob):
                message.data = blob.read()
        return tuple(uploads.values())


def upload_requests(payload: Payload, on_upload: UploadCallback | None) -> Iterator[pb.UploadMediaRequest]:
    """Yield the messages of one upload, telling `on_upload` after each chunk has been taken."""
    total, sent = payload.size_bytes, 0
    yield pb.UploadMediaRequest(header=payload.header())
    for chunk in payload.chunks():
        yield pb.UploadMediaRequest(chunk=chunk)
        sent += len(chunk)
        if on_upload and sent < total:  # the last word comes with the server's answer
            on_upload(UploadProgress(payload.name, sent, total))


def _name(message: Any, blob: Any, uploads: dict[bytes, Payload]) -> None:
    """Put the name that an upload will have in place of its bytes."""
    if isinstance(blob, Blob):
        message.media_id = blob.sha256
        uploads.setdefault(blob.sha256, blob)
        return
    from tessera.items import item_from_proto  # needs numpy, which a text client does without

    kept = types.MultimodalItem()
    kept.CopyFrom(message)
    content_hash = item_from_proto(kept).content_hash
    message.ClearField("side_tensors")
    message.content_hash = content_hash
    uploads.setdefault(content_hash, ItemBlob(kept))


def _slices(data: bytes) -> Iterator[bytes]:
    for start in range(0, len(data), CHUNK_BYTES):
        yield data[start : start + CHUNK_BYTES]
