"""MultimodalItem: one picture, clip or series as gateway and worker pass it on.

`item_from_proto` checks what can be seen from the message alone; `check_item`
checks it against a model's geometry. Both run at the gateway and again at the
worker. Times, ranges and the bytes travel together here, but the content hash
covers the bytes alone.

Next: gateway/request.py or worker/service.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from numpy.typing import NDArray

from tessera.errors import FailedPrecondition, InvalidArgument, ServeError, Unimplemented
from tessera.hashing import HASH_BYTES, content_hash
from tessera.item_fields import check_fields, read_channels, read_grid, read_modality, read_rate, read_timestamps
from tessera.modality import Modality, PayloadKind
from tessera.tensors import FLOAT_DTYPES, all_finite, dtype_name, from_array, to_array
from tessera.time_series import check_series
from tessera.v1 import types_pb2 as pb


@dataclass(frozen=True)
class PlaceholderRange:
    """Half-open range [offset, offset + length) of prompt token ids."""

    offset: int
    length: int

    @property
    def end(self) -> int:
        """First index after the range."""
        return self.offset + self.length


@dataclass(frozen=True)
class SideArray:
    """A further tensor of an item: BF16 is held as uint16 bit patterns."""

    dtype: str
    array: NDArray


@dataclass(frozen=True)
class MultimodalItem:
    """One item.

    Attributes:
        modality: what it is.
        payload_kind: what `array` holds; None where the item is only a name.
        content_hash: 32 bytes.
        dtype: safetensors spelling of `array`.
        array: the payload (shapes: PayloadKind in types.proto); None where only the name is known.
        side_arrays: such as "deepstack" (layers, tokens, hidden).
        grid_thw: patches along time, height, width.
        ranges: where the embeddings go in the expanded prompt; empty before expansion.
        timestamps: seconds, one for each sampled frame before padding.
        sampling_rate_hz: of a time series; 0 = unknown.
        channels: of a time series; 0 = not known.
    """

    modality: Modality
    payload_kind: PayloadKind | None
    content_hash: bytes
    dtype: str = "U8"
    array: NDArray | None = None
    side_arrays: Mapping[str, SideArray] = field(default_factory=dict)
    grid_thw: tuple[int, int, int] | None = None
    ranges: tuple[PlaceholderRange, ...] = ()
    timestamps: tuple[float, ...] = ()
    sampling_rate_hz: float = 0.0
    channels: int = 0

    @property
    def num_tokens(self) -> int:
        """Prompt tokens that the item's ranges cover."""
        return sum(r.length for r in self.ranges)

    @property
    def size_bytes(self) -> int:
        """Bytes of the payload and the side tensors."""
        payload = 0 if self.array is None else self.array.nbytes
        return payload + sum(side.array.nbytes for side in self.side_arrays.values())

    def without_bytes(self) -> MultimodalItem:
        """Return the item as a name: hash, grid and ranges, no arrays."""
        return replace(self, array=None, side_arrays={})

    def compute_hash(self) -> bytes:
        """Return the content hash of the bytes that are here."""
        assert self.array is not None and self.payload_kind is not None
        return content_hash(
            self.modality,
            self.payload_kind,
            self.dtype,
            self.array,
            self.grid_thw,
            side_arrays={name: (side.dtype, side.array) for name, side in self.side_arrays.items()},
            sampling_rate_hz=self.sampling_rate_hz,
        )


def item_from_proto(message: pb.MultimodalItem) -> MultimodalItem:
    """Return the item of a message, checked as far as the message alone allows.

    Tensors are read-only views over the message's bytes; their content hash is computed here.

    Raises:
        InvalidArgument: with the field's path inside the item.
        Unimplemented: audio.
    """
    modality = read_modality(message)
    grid = read_grid(message)
    common = {
        "modality": modality,
        "grid_thw": grid,
        "ranges": tuple(PlaceholderRange(r.offset, r.length) for r in message.ranges),
        "timestamps": read_timestamps(message),
        "sampling_rate_hz": read_rate(message),
        "channels": read_channels(message),
    }
    check_fields(modality, message)
    payload = message.WhichOneof("payload")
    if payload == "content_hash":
        if len(message.content_hash) != HASH_BYTES:
            raise InvalidArgument(
                f"A content hash has {HASH_BYTES} bytes, not {len(message.content_hash)}.",
                reason="HASH_SIZE",
                field="content_hash",
            )
        kind = PayloadKind.from_proto(message.payload_kind) if message.payload_kind else None
        return MultimodalItem(payload_kind=kind, content_hash=message.content_hash, **common)  # type: ignore[arg-type]
    if payload is None:
        raise InvalidArgument("An item has a tensor or a content hash.", reason="FIELD_REQUIRED", field="tensor")
    return _item_with_tensor(message, common)


def _item_with_tensor(message: pb.MultimodalItem, common: dict) -> MultimodalItem:
    if not message.payload_kind or message.payload_kind not in pb.PayloadKind.values():
        raise InvalidArgument(
            "An item with a tensor says what it holds.", reason="FIELD_REQUIRED", field="payload_kind"
        )
    array = _array(message.tensor, "tensor")
    sides = {
        name: SideArray(array=_array(t, f"side_tensors[{name}]"), dtype=dtype_name(t.dtype))
        for name, t in sorted(message.side_tensors.items())
    }
    item = MultimodalItem(
        payload_kind=PayloadKind.from_proto(message.payload_kind),
        content_hash=b"",
        dtype=dtype_name(message.tensor.dtype),
        array=array,
        side_arrays=sides,
        **common,
    )
    _check_payload(item)
    if item.payload_kind is PayloadKind.SAMPLES:
        item = replace(item, channels=_agreed_channels(item))
    return replace(item, content_hash=item.compute_hash())


def item_to_proto(item: MultimodalItem, *, with_bytes: bool = True) -> pb.MultimodalItem:
    """Return the message of an item: with its tensors, or (without bytes) named by its hash."""
    message = pb.MultimodalItem(
        modality=item.modality.to_proto(),
        payload_kind=item.payload_kind.to_proto() if item.payload_kind else pb.PAYLOAD_KIND_UNSPECIFIED,
        ranges=[pb.PlaceholderRange(offset=r.offset, length=r.length) for r in item.ranges],
        timestamps=item.timestamps,
        sampling_rate_hz=item.sampling_rate_hz,
        channels=item.channels,
    )
    if item.grid_thw:
        message.grid_thw.CopyFrom(pb.GridThw(t=item.grid_thw[0], h=item.grid_thw[1], w=item.grid_thw[2]))
    if with_bytes and item.array is not None:
        message.tensor.CopyFrom(from_array(item.array, item.dtype))
        for name, side in item.side_arrays.items():
            message.side_tensors[name].CopyFrom(from_array(side.array, side.dtype))
    else:
        message.content_hash = item.content_hash
    return message


@dataclass(frozen=True)
class ItemGeometry:
    """What a model says of its items; from Describe or config.json.

    Attributes:
        patch_size: pixels along a patch.
        merge_size: patches along a token.
        temporal_patch_size: frames of a temporal patch.
        hidden_size: width of an embedding.
        num_deepstack_layers: 0 = the family has none.
        time_series: whether it takes series.
    """

    patch_size: int
    merge_size: int
    temporal_patch_size: int
    hidden_size: int
    num_deepstack_layers: int = 0
    time_series: bool = False

    def num_tokens(self, grid_thw: tuple[int, int, int]) -> int:
        """Embeddings of an item with this grid."""
        return math.prod(grid_thw) // self.merge_size**2


def check_item(item: MultimodalItem, geometry: ItemGeometry) -> None:
    """Check an item with bytes against the model's geometry.

    Raises:
        InvalidArgument: grid, shape, dtype or a value does not fit, or a side tensor is not the model's; with the
            field's path inside the item.
        FailedPrecondition: the item is only a name.
        Unimplemented: a time series for a model that takes none.
    """
    if item.array is None:
        raise FailedPrecondition("The item's bytes are not here.", reason="ITEM_NOT_FOUND", field="content_hash")
    if item.modality in (Modality.IMAGE, Modality.VIDEO):
        _check_visual(item, geometry)
    elif item.modality is Modality.TIME_SERIES:
        series_tokens(item, geometry)
    _check_sides(item, geometry)


def series_tokens(item: MultimodalItem, geometry: ItemGeometry) -> int:
    """Return the tokens of a time series with bytes, checked against the model.

    Raises:
        InvalidArgument: it is too short, has a grid, too many channels, or embeddings of another width.
        Unimplemented: the model takes no series.
    """
    assert item.array is not None
    if not geometry.time_series:
        raise Unimplemented("The model does not take time series.", reason="MODALITY_UNSUPPORTED", field="modality")
    check_no_grid(item)
    tokens, width = item.array.shape
    if item.payload_kind is PayloadKind.SAMPLES:
        return check_series(tokens, width, item.sampling_rate_hz)
    if item.payload_kind is not PayloadKind.EMBEDDINGS:
        raise InvalidArgument(
            f"A time series holds samples or embeddings, not {item.payload_kind}.",
            reason="PAYLOAD_KIND",
            field="payload_kind",
        )
    if width != geometry.hidden_size:
        raise InvalidArgument(
            f"Embeddings of this model have {geometry.hidden_size} columns, not {width}.",
            reason="TENSOR_SHAPE",
            field="tensor.shape",
        )
    return tokens


def check_no_grid(item: MultimodalItem) -> None:
    """Raise InvalidArgument where a time series has a grid; field "grid_thw"."""
    if item.grid_thw is not None:
        raise InvalidArgument("A time series has no grid.", reason="GRID_FOREIGN", field="grid_thw")


def check_grid(modality: Modality, grid: tuple[int, int, int] | None, geometry: ItemGeometry) -> tuple[int, int, int]:
    """Return the grid, checked against the model's merge size.

    Raises:
        InvalidArgument: it is missing, or its sides are not multiples of the merge size; field "grid_thw".
    """
    if grid is None:
        raise InvalidArgument(f"An item of modality {modality} has a grid.", reason="GRID_REQUIRED", field="grid_thw")
    if grid[1] % geometry.merge_size or grid[2] % geometry.merge_size:
        raise InvalidArgument(
            f"Grid {list(grid)}: height and width are multiples of {geometry.merge_size}.",
            reason="GRID_INVALID",
            field="grid_thw",
        )
    if modality is Modality.IMAGE and grid[0] != 1:
        raise InvalidArgument(f"An image's grid has t = 1, not {grid[0]}.", reason="GRID_INVALID", field="grid_thw.t")
    return grid


def _check_visual(item: MultimodalItem, geometry: ItemGeometry) -> None:
    assert item.array is not None
    grid = check_grid(item.modality, item.grid_thw, geometry)
    patch, temporal = geometry.patch_size, geometry.temporal_patch_size
    match item.payload_kind:
        case PayloadKind.PIXELS_U8:
            frames = item.array.shape[0]
            _expect(item, (frames, grid[1] * patch, grid[2] * patch, 3))
            if (item.modality is Modality.IMAGE and frames != 1) or -(-frames // temporal) != grid[0]:
                raise InvalidArgument(
                    f"{frames} frames do not make t = {grid[0]} temporal patches of an item of modality "
                    f"{item.modality}.",
                    reason="GRID_MISMATCH",
                    field="grid_thw.t",
                )
        case PayloadKind.PATCHES:
            _expect(item, (math.prod(grid), 3 * temporal * patch * patch))
        case PayloadKind.EMBEDDINGS:
            _expect(item, (geometry.num_tokens(grid), geometry.hidden_size))
        case _:
            raise InvalidArgument(
                f"An item of modality {item.modality} cannot hold {item.payload_kind}.",
                reason="PAYLOAD_KIND",
                field="payload_kind",
            )
    if item.timestamps and item.payload_kind is PayloadKind.PIXELS_U8 and len(item.timestamps) != len(item.array):
        raise InvalidArgument(
            f"{len(item.timestamps)} timestamps for {len(item.array)} frames.",
            reason="TIMESTAMPS_MISMATCH",
            field="timestamps",
        )


def _check_sides(item: MultimodalItem, geometry: ItemGeometry) -> None:
    """Refuse side tensors that are missing or of another shape, and those of another model's encoder."""
    assert item.array is not None
    shapes: dict[str, tuple[int, ...]] = {}
    is_visual = item.modality in (Modality.IMAGE, Modality.VIDEO)
    if is_visual and item.payload_kind is PayloadKind.EMBEDDINGS and geometry.num_deepstack_layers:
        shapes["deepstack"] = (geometry.num_deepstack_layers, *item.array.shape)
    for name in sorted(item.side_arrays.keys() - shapes.keys()):
        raise InvalidArgument(
            f'A payload of {item.payload_kind} has no side tensor "{name[:80]}" in this model.',
            reason="SIDE_TENSOR_FOREIGN",
            field=f"side_tensors[{name[:80]}]",
        )
    for name, shape in shapes.items():
        side = item.side_arrays.get(name)
        if side is None:
            raise InvalidArgument(
                f'Embeddings of this model need the side tensor "{name}" of shape {list(shape)}.',
                reason="SIDE_TENSOR_REQUIRED",
                field=f"side_tensors[{name}]",
            )
        if side.array.shape != shape:
            raise InvalidArgument(
                f'Side tensor "{name}" has shape {list(side.array.shape)}; expected {list(shape)}.',
                reason="TENSOR_SHAPE",
                field=f"side_tensors[{name}].shape",
            )


def _expect(item: MultimodalItem, shape: tuple[int, ...]) -> None:
    assert item.array is not None
    if item.array.shape != shape:
        raise InvalidArgument(
            f"Tensor of shape {list(item.array.shape)} does not agree with grid {list(item.grid_thw or ())}: "
            f"expected {list(shape)}.",
            reason="GRID_MISMATCH",
            field="tensor.shape",
        )


def _check_payload(item: MultimodalItem) -> None:
    """Check rank, dtype and values, as far as no model is needed."""
    assert item.array is not None and item.payload_kind is not None
    rank = 4 if item.payload_kind is PayloadKind.PIXELS_U8 else 2
    if item.array.ndim != rank:
        raise InvalidArgument(
            f"A payload of {item.payload_kind} has {rank} dimensions, not {item.array.ndim}.",
            reason="TENSOR_SHAPE",
            field="tensor.shape",
        )
    dtypes = {PayloadKind.PIXELS_U8: {"U8"}, PayloadKind.SAMPLES: {"F32"}}.get(item.payload_kind, FLOAT_DTYPES)
    if item.dtype not in dtypes:
        raise InvalidArgument(
            f"A payload of {item.payload_kind} has dtype {' or '.join(sorted(dtypes))}, not {item.dtype}.",
            reason="TENSOR_DTYPE",
            field="tensor.dtype",
        )
    if not all_finite(item.array, item.dtype):
        raise InvalidArgument("The tensor holds NaN or infinity.", reason="TENSOR_NOT_FINITE", field="tensor.data")
    for name, side in item.side_arrays.items():
        if side.dtype not in FLOAT_DTYPES or not all_finite(side.array, side.dtype):
            raise InvalidArgument(
                f'Side tensor "{name}" is not a finite float tensor.',
                reason="TENSOR_NOT_FINITE",
                field=f"side_tensors[{name}]",
            )


def _array(tensor: pb.Tensor, path: str) -> NDArray:
    try:
        return to_array(tensor)
    except ServeError as error:
        raise error.under(path) from None


def _agreed_channels(item: MultimodalItem) -> int:
    assert item.array is not None
    channels = item.array.shape[1]
    if item.channels not in (0, channels):
        raise InvalidArgument(
            f"The tensor has {channels} channels, not {item.channels}.", reason="SERIES_CHANNELS", field="channels"
        )
    return channels
