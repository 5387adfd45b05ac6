"""Uploads: what is announced is what comes, its hash is recomputed, and its memory is counted from the start."""

import numpy as np
import pytest

from tessera.errors import FailedPrecondition, InvalidArgument, ResourceExhausted, ServeError
from tessera.items import MultimodalItem, SideArray, item_to_proto
from tessera.modality import Modality, PayloadKind
from tessera.tensors import from_array
from tessera.v1 import types_pb2 as types
from tessera.v1 import worker_service_pb2 as pb
from tests.fakes.clock import ManualClock
from tests.unit.worker.engine.fakes import HIDDEN, FakeModel, make_item
from worker.engine.item_store import ItemStore
from worker.models.base import ModelInfo
from worker.staging import Upload
from worker.submission import SubmitReader


def header_of(item):
    """Return an item's header, as a gateway sends it."""
    message = item_to_proto(item.without_bytes())
    message.tensor.CopyFrom(from_array(item.array, item.dtype, with_data=False))
    for name, side in item.side_arrays.items():
        message.side_tensors[name].CopyFrom(from_array(side.array, side.dtype, with_data=False))
    return pb.StageItemHeader(item=message, content_hash=item.content_hash, size_bytes=item.size_bytes)


def data_of(item):
    sides = (item.side_arrays[name].array for name in sorted(item.side_arrays))
    return b"".join(array.tobytes() for array in (item.array, *sides))


def make_store(capacity=1 << 16):
    return ItemStore(capacity, 60.0, ManualClock())


def upload_of(header, store, info=None, max_tokens=64):
    return Upload(header, store, SubmitReader(info or FakeModel().info, 64), max_tokens)


def with_hash(item):
    return MultimodalItem(**(vars(item) | {"content_hash": item.compute_hash()}))


def test_an_item_in_chunks():
    """Bytes are put together in order and kept under their hash, in place of their reservation."""
    item, store = make_item(5), make_store()
    upload = upload_of(header_of(item), store)
    assert store.used_bytes == item.size_bytes
    data = data_of(item)
    upload.feed(data[:7])
    assert not upload.complete
    upload.feed(data[7:])
    assert upload.complete
    upload.keep(upload.build())
    upload.abandon()
    assert store.used_bytes == item.size_bytes
    kept = store.get(item.content_hash)
    assert np.array_equal(kept.array, item.array)


def test_side_tensors_follow_by_name():
    """Side tensors come after the payload in order of name, and are part of the hash."""
    info = ModelInfo(**(vars(FakeModel().info) | {"num_deepstack_layers": 2}))
    sides = {"deepstack": SideArray("F32", np.ones((2, 2, HIDDEN), np.float32))}
    item = with_hash(
        MultimodalItem(
            Modality.IMAGE, PayloadKind.EMBEDDINGS, b"", "F32", np.zeros((2, HIDDEN), np.float32), sides, (1, 2, 4)
        )
    )
    store = make_store()
    upload = upload_of(header_of(item), store, info)
    upload.feed(data_of(item))
    assert upload.build().side_arrays["deepstack"].array.sum() == 2 * 2 * HIDDEN


def test_wrong_bytes_do_not_have_the_hash():
    """Bytes that differ from what was announced by hash are refused."""
    item, store = make_item(5), make_store()
    upload = upload_of(header_of(item), store)
    upload.feed(bytes(item.size_bytes))
    with pytest.raises(InvalidArgument) as caught:
        upload.build()
    upload.abandon()
    assert (caught.value.reason, caught.value.field) == ("HASH_MISMATCH", "content_hash")
    assert store.used_bytes == 0


def test_too_many_bytes_and_too_large_chunks():
    """More bytes than the header announces, an empty chunk and one above 1 MiB are refused."""
    for chunk in (b"x" * 1000, b"", b"x" * ((1 << 20) + 1)):
        upload = upload_of(header_of(make_item(5)), make_store())
        with pytest.raises(InvalidArgument):
            upload.feed(chunk)


def _grow(header):
    header.size_bytes += 1


def _narrow(header):
    header.item.tensor.shape[1] = 3
    header.size_bytes = 3 * header.size_bytes // 2


def _huge(header):
    del header.item.tensor.shape[:]
    header.item.tensor.shape.extend([1 << 40, 1 << 40])


WRONG = [
    (_grow, "TENSOR_SIZE", "size_bytes"),
    (_huge, "TENSOR_SIZE", "size_bytes"),
    (lambda h: setattr(h, "content_hash", b"x"), "HASH_SIZE", "content_hash"),
    (lambda h: setattr(h.item.tensor, "dtype", 0), "TENSOR_DTYPE", "item.tensor.dtype"),
    (lambda h: setattr(h.item.tensor, "dtype", types.D_TYPE_F8_E4M3), "TENSOR_DTYPE", "item.tensor.dtype"),
    (lambda h: h.item.tensor.ClearField("shape"), "TENSOR_SHAPE", "item.tensor.shape"),
    (lambda h: setattr(h.item.tensor, "data", b"x"), "TENSOR_SIZE", "item.tensor.data"),
    (lambda h: h.item.ClearField("grid_thw"), "GRID_REQUIRED", "item.grid_thw"),
    (lambda h: setattr(h.item.grid_thw, "h", 3), "GRID_INVALID", "item.grid_thw"),
    (lambda h: setattr(h.item, "modality", 0), "FIELD_REQUIRED", "item.modality"),
    (lambda h: setattr(h.item.grid_thw, "w", 1 << 19), "ITEM_TOO_LARGE", "item.grid_thw"),
]


@pytest.mark.parametrize(("spoil", "reason", "field"), WRONG)
def test_wrong_headers(spoil, reason, field):
    """A wrong header is refused before any byte is sent or set aside."""
    header, store = header_of(make_item(5)), make_store()
    spoil(header)
    with pytest.raises(ServeError) as caught:
        upload_of(header, store)
    assert (caught.value.reason, caught.value.field) == (reason, field)
    assert store.used_bytes == 0


def test_a_tensor_that_does_not_fit_its_grid():
    """Shape and grid are checked against the model when the bytes are there."""
    header = header_of(make_item(5))
    _narrow(header)
    upload = upload_of(header, make_store())
    upload.feed(bytes(header.size_bytes))
    with pytest.raises(InvalidArgument) as caught:
        upload.build()
    assert caught.value.reason == "GRID_MISMATCH"


def test_floats_are_finite():
    """NaN does not pass."""
    values = np.full((8, 6), np.nan, np.float32)
    item = with_hash(MultimodalItem(Modality.IMAGE, PayloadKind.PATCHES, b"", "F32", values, grid_thw=(1, 2, 4)))
    upload = upload_of(header_of(item), make_store())
    upload.feed(data_of(item))
    with pytest.raises(InvalidArgument) as caught:
        upload.build()
    assert caught.value.reason == "TENSOR_NOT_FINITE"


def test_the_budget():
    """Uploads beyond the budget are RESOURCE_EXHAUSTED, and room comes back when one is given up."""
    item = make_item(5)
    store = make_store(item.size_bytes + 10)
    first = upload_of(header_of(item), store)
    with pytest.raises(ResourceExhausted):
        upload_of(header_of(make_item(6)), store)
    first.abandon()
    first.abandon()
    upload_of(header_of(make_item(6)), store)


def test_a_blind_model():
    """With the encoder left out, items are refused at their header."""
    info = ModelInfo(**(vars(FakeModel().info) | {"modalities": (), "vision_disabled": True}))
    with pytest.raises(FailedPrecondition) as caught:
        upload_of(header_of(make_item(5)), make_store(), info)
    assert caught.value.reason == "VISION_DISABLED"
