"""UploadMedia: files and item tensors that come in chunks and are named afterwards.

Next: held.py, where they are kept.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

from google.protobuf import duration_pb2

from gateway.held import HeldStore
from tessera.errors import InvalidArgument, ResourceExhausted
from tessera.hashing import HASH_BYTES
from tessera.items import MultimodalItem, item_from_proto
from tessera.v1 import inference_service_pb2 as pb
from tessera.v1 import types_pb2 as types

MAX_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class Uploads:
    """What UploadMedia fills.

    Attributes:
        files: bytes by their SHA-256.
        items: items by content hash; Prepare's are held here too.
        max_file_bytes: most bytes of one upload.
    """

    files: HeldStore[bytes]
    items: HeldStore[MultimodalItem]
    max_file_bytes: int

    def get(self, media_id: bytes) -> bytes | None:
        """Return the bytes of an uploaded file, or None."""
        return self.files.get(media_id)

    async def receive(self, requests: AsyncIterator[pb.UploadMediaRequest], owner: str) -> pb.UploadMediaResponse:
        """Take one upload.

        Args:
            requests: the header, then chunks.
            owner: the caller, whose budget is charged.

        Raises:
            InvalidArgument: header, size, hash or item is wrong.
            ResourceExhausted: a budget is full.
        """
        header = await self._header(requests)
        if held := self._held(header):
            return held
        store = self.files if header.WhichOneof("kind") == "media" else self.items
        store.check_room(header.size_bytes, owner)
        data = await _read(requests, header)
        digest = hashlib.sha256(data).digest()
        if header.sha256 and digest != header.sha256:
            raise InvalidArgument(
                "The bytes do not have the hash that the header says.", reason="HASH_MISMATCH", field="header.sha256"
            )
        if header.WhichOneof("kind") == "media":
            existed = digest in self.files
            self.files.put(digest, data, len(data), owner)
            return self._response(pb.UploadMediaResponse(media_id=digest, existed=existed), len(data))
        item = self._item(header, data)
        existed = item.content_hash in self.items
        self.items.put(item.content_hash, item, item.size_bytes, owner)
        return self._response(pb.UploadMediaResponse(content_hash=item.content_hash, existed=existed), len(data))

    async def _header(self, requests: AsyncIterator[pb.UploadMediaRequest]) -> pb.UploadHeader:
        first = await anext(requests, None)
        if first is None or first.WhichOneof("message") != "header":
            raise InvalidArgument("An upload begins with its header.", reason="FIELD_REQUIRED", field="header")
        header = first.header
        if header.WhichOneof("kind") is None:
            raise InvalidArgument("A header says what follows.", reason="FIELD_REQUIRED", field="header.media")
        if header.sha256 and len(header.sha256) != HASH_BYTES:
            raise InvalidArgument(f"A SHA-256 has {HASH_BYTES} bytes.", reason="HASH_SIZE", field="header.sha256")
        if header.size_bytes < 1:
            raise InvalidArgument(
                "A header says how many bytes follow.", reason="UPLOAD_SIZE", field="header.size_bytes"
            )
        if header.size_bytes > self.max_file_bytes:
            raise ResourceExhausted(
                f"An upload has at most {self.max_file_bytes} bytes, not {header.size_bytes}.",
                reason="MEDIA_TOO_LARGE",
                field="header.size_bytes",
                retry_after_s=None,
            )
        return header

    def _held(self, header: pb.UploadHeader) -> pb.UploadMediaResponse | None:
        # Only a file is named by the hash of its bytes alone.
        if header.WhichOneof("kind") != "media" or not header.sha256:
            return None
        data = self.files.get(header.sha256)
        if data is None:
            return None
        return self._response(pb.UploadMediaResponse(media_id=header.sha256, existed=True), len(data))

    def _item(self, header: pb.UploadHeader, data: bytes) -> MultimodalItem:
        message = types.MultimodalItem()
        message.CopyFrom(header.item.item)
        message.tensor.data = data
        try:
            item = item_from_proto(message)
        except InvalidArgument as error:
            raise error.under("header.item.item") from None
        if item.ranges:
            raise InvalidArgument(
                "An upload is no part of a prompt: it has no ranges.",
                reason="RANGES_IN_UPLOAD",
                field="header.item.item.ranges",
            )
        return item

    def _response(self, response: pb.UploadMediaResponse, size_bytes: int) -> pb.UploadMediaResponse:
        response.size_bytes = size_bytes
        response.held_for.CopyFrom(duration_pb2.Duration(seconds=int(self.files.ttl_s)))
        return response


async def _read(requests: AsyncIterator[pb.UploadMediaRequest], header: pb.UploadHeader) -> bytes:
    """Return exactly the announced bytes."""
    parts: list[bytes] = []
    size = 0
    async for request in requests:
        if request.WhichOneof("message") != "chunk":
            raise InvalidArgument("After the header come chunks.", reason="UPLOAD_ORDER", field="chunk")
        if len(request.chunk) > MAX_CHUNK_BYTES:
            raise InvalidArgument(
                f"A chunk has at most {MAX_CHUNK_BYTES} bytes, not {len(request.chunk)}.",
                reason="CHUNK_TOO_LARGE",
                field="chunk",
            )
        size += len(request.chunk)
        if size > header.size_bytes:
            break
        parts.append(request.chunk)
    if size != header.size_bytes:
        raise InvalidArgument(
            f"The header says {header.size_bytes} bytes; {'more' if size > header.size_bytes else size} came.",
            reason="UPLOAD_SIZE",
            field="header.size_bytes",
        )
    return b"".join(parts)
