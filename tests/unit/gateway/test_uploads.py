"""gateway/uploads.py: chunks in, a name out."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator

import numpy as np
import pytest

from gateway.held import HeldStore
from gateway.uploads import Uploads
from tessera.errors import InvalidArgument, ResourceExhausted
from tessera.hashing import content_hash
from tessera.tensors import from_array
from tessera.v1 import inference_service_pb2 as pb
from tessera.v1 import types_pb2 as types
from tests.fakes.clock import ManualClock

DATA = bytes(range(256)) * 16


def make(max_file_bytes: int = 1 << 20) -> tuple[Uploads, ManualClock]:
    clock = ManualClock()
    return Uploads(
        HeldStore(10_000, 9_000, 60.0, clock, "UPLOAD_BUDGET"),
        HeldStore(10_000, 9_000, 60.0, clock, "UPLOAD_BUDGET"),
        max_file_bytes,
    ), clock


def header(size: int = len(DATA), **fields: object) -> pb.UploadMediaRequest:
    values: dict = {"media": pb.MediaFile(mime_type="image/png"), "size_bytes": size} | fields
    return pb.UploadMediaRequest(header=pb.UploadHeader(**values))


def chunks(data: bytes = DATA, size: int = 1000) -> list[pb.UploadMediaRequest]:
    return [pb.UploadMediaRequest(chunk=data[start : start + size]) for start in range(0, len(data), size)]


async def send(uploads: Uploads, *requests: pb.UploadMediaRequest) -> pb.UploadMediaResponse:
    async def stream() -> AsyncIterator[pb.UploadMediaRequest]:
        for request in requests:
            yield request

    return await uploads.receive(stream(), "caller")


async def test_a_file_is_named_by_its_bytes() -> None:
    """The media id is the SHA-256 of the file; uploading again says so and takes no more room."""
    uploads, _ = make()
    first = await send(uploads, header(), *chunks())
    assert first.media_id == hashlib.sha256(DATA).digest()
    assert (first.existed, first.size_bytes, first.held_for.seconds) == (False, len(DATA), 60)
    assert (await send(uploads, header(), *chunks())).existed
    assert uploads.get(first.media_id) == DATA
    assert uploads.files.size_bytes == len(DATA)


async def test_a_known_file_is_answered_before_its_bytes() -> None:
    """A header with the hash of a held file needs no chunk."""
    uploads, clock = make()
    name = (await send(uploads, header(), *chunks())).media_id
    assert (await send(uploads, header(sha256=name))).existed
    clock.advance(61)
    with pytest.raises(InvalidArgument):
        await send(uploads, header(sha256=name))


async def test_an_item_is_named_by_its_content() -> None:
    """An uploaded tensor is held as an item under its content hash."""
    uploads, _ = make()
    array = np.arange(32 * 32 * 3, dtype=np.uint8).reshape(1, 32, 32, 3)
    item = types.MultimodalItem(
        modality=types.MODALITY_IMAGE,
        payload_kind=types.PAYLOAD_KIND_PIXELS_U8,
        tensor=from_array(array, with_data=False),
        grid_thw=types.GridThw(t=1, h=2, w=2),
    )
    data = array.tobytes()
    kind = {"item": pb.ItemTensor(item=item), "media": None}
    request = pb.UploadMediaRequest(header=pb.UploadHeader(item=kind["item"], size_bytes=len(data)))
    response = await send(uploads, request, *chunks(data))
    assert response.content_hash == content_hash("image", "pixels_u8", "U8", array, (1, 2, 2))
    held = uploads.items.get(response.content_hash)
    assert held is not None
    assert np.array_equal(held.array, array)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("requests", "field"),
    [
        ([], "header"),
        ([pb.UploadMediaRequest(chunk=b"x")], "header"),
        ([pb.UploadMediaRequest(header=pb.UploadHeader(size_bytes=1))], "header.media"),
        ([header(0)], "header.size_bytes"),
        ([header(-5)], "header.size_bytes"),
        ([header(10), *chunks(b"x" * 9)], "header.size_bytes"),
        ([header(10), *chunks(b"x" * 11)], "header.size_bytes"),
        ([header(sha256=b"x")], "header.sha256"),
        ([header(sha256=b"x" * 32), *chunks()], "header.sha256"),
        ([header(), header()], "chunk"),
        ([header(2 << 20), pb.UploadMediaRequest(chunk=b"x" * ((1 << 20) + 1))], "chunk"),
    ],
)
async def test_a_malformed_upload_names_its_field(requests: list[pb.UploadMediaRequest], field: str) -> None:
    """Order, size and hash are checked; nothing is held afterwards."""
    uploads, _ = make(max_file_bytes=4 << 20)
    big = Uploads(HeldStore(8 << 20, 8 << 20, 60.0, ManualClock(), "X"), uploads.items, 4 << 20)
    with pytest.raises(InvalidArgument) as caught:
        await send(big, *requests)
    assert caught.value.field == field
    assert len(big.files) == 0


async def test_sizes_are_refused_before_the_bytes_come() -> None:
    """Too large for one file, or for the caller's budget: RESOURCE_EXHAUSTED at the header."""
    uploads, _ = make(max_file_bytes=9_500)
    with pytest.raises(ResourceExhausted) as caught:
        await send(uploads, header(9_501))
    assert caught.value.reason == "MEDIA_TOO_LARGE"
    with pytest.raises(ResourceExhausted) as caught:
        await send(uploads, header(9_001))
    assert caught.value.reason == "UPLOAD_BUDGET"
