"""One item on its way to the worker: header, chunks, and the check of what has come.

Next: worker/engine/item_store.py
"""

import math

from tessera.errors import InvalidArgument, ResourceExhausted
from tessera.hashing import HASH_BYTES
from tessera.items import MultimodalItem, check_grid, check_item, item_from_proto
from tessera.modality import Modality
from tessera.tensors import NUMPY_DTYPES, check_shape, dtype_name
from tessera.time_series import check_series
from tessera.v1 import types_pb2 as types
from tessera.v1 import worker_service_pb2 as pb
from worker.engine.item_store import ItemStore
from worker.status import geometry_of
from worker.submission import SubmitReader

MAX_CHUNK_BYTES = 1 << 20


class Upload:
    """The bytes of one item, until they are complete.

    Its memory is set aside in the store from the start, so that many uploads at once stay within the budget.

    Args:
        header: what comes.
        store: where the item goes.
        reader: knows the model.

    Raises:
        ServeError: the header is wrong, or there is no room; with the field's path inside StageItemHeader.
    """

    def __init__(self, header: pb.StageItemHeader, store: ItemStore, reader: SubmitReader, max_tokens: int) -> None:
        if len(header.content_hash) != HASH_BYTES:
            raise _invalid(f"A content hash has {HASH_BYTES} bytes.", "HASH_SIZE", "content_hash")
        self.content_hash = header.content_hash
        self._item = header.item
        self._geometry = geometry_of(reader.info)
        self._sizes = [_size(self._item.tensor, "item.tensor")]
        self._names = sorted(self._item.side_tensors)
        self._sizes += [_size(self._item.side_tensors[n], f"item.side_tensors[{n}]") for n in self._names]
        self._check_header(header, reader, max_tokens)
        self._store = store
        self._size_bytes = sum(self._sizes)
        self._chunks: list[bytes] = []
        self._received_bytes = 0
        self._reserved_bytes = 0
        if not store.reserve(self._size_bytes):
            raise ResourceExhausted("The worker holds as many items as it may.", reason="STAGING_BUDGET")
        self._reserved_bytes = self._size_bytes

    @property
    def complete(self) -> bool:
        """Whether all bytes have come."""
        return self._received_bytes == self._size_bytes

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes.

        Raises:
            InvalidArgument: more than were announced, or too many at once.
        """
        self._received_bytes += len(chunk)
        if len(chunk) > MAX_CHUNK_BYTES or not chunk:
            raise _invalid(f"A chunk has 1 to {MAX_CHUNK_BYTES} bytes, not {len(chunk)}.", "CHUNK_SIZE", "chunk")
        if self._received_bytes > self._size_bytes:
            raise _invalid(f"More bytes than the header's {self._size_bytes}.", "TENSOR_SIZE", "chunk")
        self._chunks.append(chunk)

    def build(self) -> MultimodalItem:
        """Return the item, checked like any other that comes in a message; slow, so not for the asyncio thread.

        Raises:
            InvalidArgument: the bytes do not agree with the header, the model or the hash.
        """
        data = memoryview(b"".join(self._chunks))
        self._chunks.clear()
        message = types.MultimodalItem()
        message.CopyFrom(self._item)
        start = 0
        tensors = (message.tensor, *(message.side_tensors[name] for name in self._names))
        for tensor, size in zip(tensors, self._sizes, strict=True):
            tensor.data = bytes(data[start : start + size])
            start += size
        item = item_from_proto(message)
        check_item(item, self._geometry)
        if item.content_hash != self.content_hash:
            raise _invalid("The bytes do not have the hash that names them.", "HASH_MISMATCH", "content_hash")
        return item

    def keep(self, item: MultimodalItem) -> None:
        """Put the checked item into the store."""
        reserved, self._reserved_bytes = self._reserved_bytes, 0
        self._store.put(item, reserved_bytes=reserved)

    def abandon(self) -> None:
        """Give back what was set aside; after `keep` there is nothing."""
        if self._reserved_bytes:
            self._store.unreserve(self._reserved_bytes)
            self._reserved_bytes = 0

    def _check_header(self, header: pb.StageItemHeader, reader: SubmitReader, max_tokens: int) -> None:
        if header.size_bytes != sum(self._sizes):
            message = f"The tensors have {sum(self._sizes)} bytes, the header announces {header.size_bytes}."
            raise _invalid(message, "TENSOR_SIZE", "size_bytes")
        name = types.MultimodalItem(
            modality=self._item.modality,
            content_hash=self.content_hash,
            timestamps=self._item.timestamps,
            sampling_rate_hz=self._item.sampling_rate_hz,
            channels=self._item.channels,
        )
        if self._item.HasField("grid_thw"):
            name.grid_thw.CopyFrom(self._item.grid_thw)
        try:
            item = item_from_proto(name)
            reader.check_modality(item.modality)
            if item.modality in (Modality.IMAGE, Modality.VIDEO):
                grid = check_grid(item.modality, item.grid_thw, self._geometry)
                tokens, field = self._geometry.num_tokens(grid), "grid_thw"
            else:
                tokens, field = self._series_tokens(item.sampling_rate_hz), "tensor.shape"
            if tokens > max_tokens:
                message = f"An item of {tokens} tokens; this worker encodes at most {max_tokens}."
                raise _invalid(message, "ITEM_TOO_LARGE", field)
        except (InvalidArgument, ResourceExhausted) as error:
            raise error.under("item") from None

    def _series_tokens(self, sampling_rate_hz: float) -> int:
        """The tokens of a series by its header; kind and dtype are checked when the bytes are here."""
        shape = tuple(self._item.tensor.shape)
        if len(shape) != 2:
            raise _invalid(f"A series has 2 dimensions, not {len(shape)}.", "TENSOR_SHAPE", "tensor.shape")
        if self._item.payload_kind == types.PAYLOAD_KIND_EMBEDDINGS:
            return shape[0]
        return check_series(shape[0], shape[1], sampling_rate_hz)


def _size(tensor: types.Tensor, path: str) -> int:
    try:
        name = dtype_name(tensor.dtype)
        check_shape(tuple(tensor.shape))
    except InvalidArgument as error:
        raise error.under(path) from None
    if tensor.data:
        raise _invalid("A header's tensor has no data.", "TENSOR_SIZE", f"{path}.data")
    return math.prod(tensor.shape) * NUMPY_DTYPES[name].itemsize


def _invalid(message: str, reason: str, field: str) -> InvalidArgument:
    return InvalidArgument(message, reason=reason, field=field)
