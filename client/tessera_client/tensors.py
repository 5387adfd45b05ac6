"""Tensor: any library's array as the contract's dense tensor, without importing that library.

    Tensor.from_array(torch_tensor)      # numpy, torch, jax, cupy on the host, array.array, memoryview, ...

Next: dlpack.py (arrays that speak DLPack), items.py (where tensors go).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tessera.v1 import types_pb2 as types
from tessera_client.errors import InvalidArgument

SIZES = {"U8": 1, "I32": 4, "I64": 8, "F16": 2, "BF16": 2, "F32": 4, "F64": 8}
"""Bytes of an element, by dtype (safetensors spelling)."""
MAX_RANK = 8
_BY_FORMAT = {"B": "U8", "H": "U16", "e": "F16", "f": "F32", "d": "F64"}
_BY_NUMPY = {
    "uint8": "U8",
    "uint16": "U16",
    "int32": "I32",
    "int64": "I64",
    "float16": "F16",
    "bfloat16": "BF16",
    "float32": "F32",
    "float64": "F64",
}
_TO_NUMPY = {"U8": "u1", "I32": "<i4", "I64": "<i8", "F16": "<f2", "BF16": "<u2", "F32": "<f4", "F64": "<f8"}


@dataclass(frozen=True)
class Tensor:
    """A dense tensor in little-endian C order.

    Attributes:
        dtype: safetensors spelling, one of SIZES.
        shape: extents, outermost first.
        data: the elements; exactly as many bytes as dtype and shape say.
    """

    dtype: str
    shape: tuple[int, ...]
    data: bytes

    @classmethod
    def from_array(cls, array: Any, dtype: str | None = None) -> Tensor:
        """Return a copy of an array.

        Args:
            array: whatever has a buffer or `__dlpack__`, of any layout; on the host.
            dtype: "BF16" for uint16 bit patterns; else the array's own.

        Raises:
            InvalidArgument: TENSOR_DTYPE, TENSOR_DEVICE or TENSOR_SHAPE.
        """
        if isinstance(array, Tensor):
            parts = (array.dtype, array.shape, array.data)
        elif hasattr(array, "__array_interface__"):
            parts = _from_numpy(array)
        elif hasattr(array, "__dlpack__"):
            from tessera_client.dlpack import read

            parts = read(array)
        else:
            parts = _from_buffer(array)
        own, shape, data = parts
        name = "BF16" if (own, dtype) == ("U16", "BF16") else own
        if name not in SIZES:
            taken = ", ".join(SIZES)
            raise _refused(f"Arrays of dtype {name} are not taken; use one of {taken}.", "TENSOR_DTYPE")
        if dtype not in (None, name):
            raise _refused(f"An array of {name} is no tensor of {dtype}.", "TENSOR_DTYPE")
        if not 1 <= len(shape) <= MAX_RANK or min(shape) < 1:
            message = f"A tensor has 1 to {MAX_RANK} dimensions of at least 1, not {list(shape)}."
            raise _refused(message, "TENSOR_SHAPE")
        return cls(name, shape, data)

    @classmethod
    def from_proto(cls, message: types.Tensor) -> Tensor:
        """Return the tensor of a message."""
        return cls(types.DType.Name(message.dtype).removeprefix("D_TYPE_"), tuple(message.shape), message.data)

    def to_proto(self) -> types.Tensor:
        """Return its message."""
        dtype = types.DType.Value(f"D_TYPE_{self.dtype}")
        return types.Tensor(dtype=dtype, shape=self.shape, data=self.data)  # type: ignore[arg-type]  # the stubs call it int

    def to_array(self) -> Any:
        """Return a read-only ndarray over the bytes; BF16 as uint16 bit patterns."""
        import numpy as np

        return np.frombuffer(self.data, dtype=_TO_NUMPY[self.dtype]).reshape(self.shape)


def _from_numpy(array: Any) -> tuple[str, tuple[int, ...], bytes]:
    import numpy as np

    plain = np.asarray(array)
    name = _BY_NUMPY.get(plain.dtype.name, plain.dtype.name)
    if plain.dtype.byteorder == ">":
        plain = plain.astype(plain.dtype.newbyteorder("<"))
    return name, plain.shape, plain.tobytes() if name in SIZES or name == "U16" else b""


def _from_buffer(array: Any) -> tuple[str, tuple[int, ...], bytes]:
    try:
        view = memoryview(array)
    except TypeError:
        message = f"{type(array).__name__} is no array: it has neither a buffer nor __dlpack__."
        raise _refused(message, "TENSOR_SOURCE") from None
    code = view.format.lstrip("@=<")
    name = f"I{8 * view.itemsize}" if code in ("i", "l", "q") else _BY_FORMAT.get(code, view.format)
    return name, view.shape or (), view.tobytes()


def _refused(message: str, reason: str) -> InvalidArgument:
    return InvalidArgument(message, reason=reason)
