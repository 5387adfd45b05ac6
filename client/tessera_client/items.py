"""Item: a preprocessed picture, clip or series, for callers with a processor of their own.

Next: requests.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tessera.v1 import types_pb2 as types
from tessera_client.errors import InvalidArgument
from tessera_client.tensors import Tensor


@dataclass(frozen=True)
class Item:
    """One item, by its tensor or by the hash of one that the server holds.

    Attributes:
        modality: "image", "video", "time_series".
        payload_kind: "pixels_u8", "patches", "samples", "embeddings" (shapes: PayloadKind in types.proto).
        array: the payload, as Tensor.from_array takes it; None where `content_hash` names it.
        content_hash: 32 bytes; None where `array` is given.
        grid_thw: patches along time, height, width.
        ranges: (offset, length) pairs in the expanded prompt; empty: the server expands.
        timestamps: seconds, one for each sampled frame before padding.
        side_arrays: such as {"deepstack": (layers, tokens, hidden)}.
        sampling_rate_hz: of a time series.
        dtype: safetensors spelling where numpy has none: "BF16" for uint16 bit patterns.
    """

    modality: str
    payload_kind: str | None = None
    array: Any = None
    content_hash: bytes | None = None
    grid_thw: tuple[int, int, int] | None = None
    ranges: tuple[tuple[int, int], ...] = ()
    timestamps: tuple[float, ...] = ()
    side_arrays: Mapping[str, Any] = field(default_factory=dict)
    sampling_rate_hz: float = 0.0
    dtype: str | None = None

    @classmethod
    def from_proto(cls, message: types.MultimodalItem) -> Item:
        """Return the item of a message; arrays are read-only views over its bytes."""
        array, dtype, sides = None, None, {}
        if message.HasField("tensor"):
            from tessera.tensors import dtype_name, to_array

            array, dtype = to_array(message.tensor), dtype_name(message.tensor.dtype)
            sides = {name: to_array(side) for name, side in message.side_tensors.items()}
        grid = message.grid_thw
        return cls(
            modality=types.Modality.Name(message.modality).removeprefix("MODALITY_").lower(),
            payload_kind=types.PayloadKind.Name(message.payload_kind).removeprefix("PAYLOAD_KIND_").lower()
            if message.payload_kind
            else None,
            array=array,
            content_hash=message.content_hash or None,
            grid_thw=(grid.t, grid.h, grid.w) if message.HasField("grid_thw") else None,
            ranges=tuple((r.offset, r.length) for r in message.ranges),
            timestamps=tuple(message.timestamps),
            side_arrays=sides,
            sampling_rate_hz=message.sampling_rate_hz,
            dtype=dtype,
        )

    def to_proto(self) -> types.MultimodalItem:
        """Return its message, with the tensor where it has one.

        Raises:
            ValueError: modality or payload_kind is not a name of the contract.
            InvalidArgument: an array's type, layout or device is not; see Tensor.from_array.
        """
        message = types.MultimodalItem(
            modality=f"MODALITY_{self.modality.upper()}",
            ranges=[types.PlaceholderRange(offset=offset, length=length) for offset, length in self.ranges],
            timestamps=self.timestamps,
            sampling_rate_hz=self.sampling_rate_hz,
        )
        if self.payload_kind:
            kind = types.PayloadKind.Value(f"PAYLOAD_KIND_{self.payload_kind.upper()}")
            message.payload_kind = kind  # type: ignore[assignment]  # the stubs call it int
        if self.grid_thw is not None:
            _set_grid(message, self.grid_thw)
        if self.array is not None:
            message.tensor.CopyFrom(_tensor(self.array, self.dtype, "tensor"))
            for name, side in self.side_arrays.items():
                # bfloat16 patterns come together: numpy's uint16 has no other meaning here.
                dtype = "BF16" if str(getattr(side, "dtype", "")) == "uint16" else None
                message.side_tensors[name].CopyFrom(_tensor(side, dtype, f"side_tensors[{name}]"))
        elif self.content_hash is not None:
            message.content_hash = self.content_hash
        return message


def _tensor(array: Any, dtype: str | None, field: str) -> types.Tensor:
    try:
        return Tensor.from_array(array, dtype).to_proto()
    except InvalidArgument as error:
        raise InvalidArgument(error.message, reason=error.reason, field=field) from None


def _set_grid(message: types.MultimodalItem, grid_thw: Sequence[int]) -> None:
    t, h, w = (int(side) for side in grid_thw)
    message.grid_thw.CopyFrom(types.GridThw(t=t, h=h, w=w))
