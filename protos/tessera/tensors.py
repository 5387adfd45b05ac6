"""The codec between protobuf tensors and numpy arrays.

numpy has no bfloat16: BF16 arrays are held as their uint16 bit patterns and
carry the dtype's name beside them.

Next: items.py.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from tessera.errors import InvalidArgument
from tessera.v1 import types_pb2 as pb

MAX_RANK = 8
NUMPY_DTYPES: dict[str, np.dtype] = {
    "U8": np.dtype("u1"),
    "I32": np.dtype("<i4"),
    "I64": np.dtype("<i8"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
}
FLOAT_DTYPES = frozenset({"F16", "BF16", "F32"})


def dtype_name(value: int) -> str:
    """Return the safetensors spelling of a protobuf dtype, such as "F32".

    Raises:
        InvalidArgument: for UNSPECIFIED, unknown and reserved types; field "dtype".
    """
    name = pb.DType.Name(value).removeprefix("D_TYPE_") if value in pb.DType.values() else str(value)  # type: ignore[arg-type]
    if name not in NUMPY_DTYPES:
        raise InvalidArgument(
            f"Tensor dtype {name} is not taken; use one of {', '.join(NUMPY_DTYPES)}.",
            reason="TENSOR_DTYPE",
            field="dtype",
        )
    return name


def dtype_value(name: str) -> pb.DType:
    """Return the protobuf dtype of a safetensors spelling."""
    return pb.DType.Value(f"D_TYPE_{name}")  # type: ignore[return-value]


def check_shape(shape: tuple[int, ...]) -> int:
    """Return the number of elements of a shape.

    Raises:
        InvalidArgument: rank 0 or above 8, or an extent below 1; field "shape".
    """
    if not 1 <= len(shape) <= MAX_RANK:
        raise InvalidArgument(
            f"A tensor has 1 to {MAX_RANK} dimensions, not {len(shape)}.", reason="TENSOR_SHAPE", field="shape"
        )
    if min(shape) < 1:
        raise InvalidArgument(
            f"Every extent of a tensor is at least 1; got {list(shape)}.", reason="TENSOR_SHAPE", field="shape"
        )
    return math.prod(shape)


def to_array(tensor: pb.Tensor) -> NDArray:
    """Return a read-only array over a tensor's bytes, without copying them.

    Args:
        tensor: dtype, shape and exactly as many bytes as they say.

    Returns:
        The array in the tensor's shape; BF16 as uint16 bit patterns.

    Raises:
        InvalidArgument: dtype, shape or byte length is wrong; field "dtype", "shape" or "data".
    """
    name = dtype_name(tensor.dtype)
    shape = tuple(tensor.shape)
    expected = check_shape(shape) * NUMPY_DTYPES[name].itemsize
    if len(tensor.data) != expected:
        raise InvalidArgument(
            f"Tensor of shape {list(shape)} and dtype {name} has {expected} bytes, not {len(tensor.data)}.",
            reason="TENSOR_SIZE",
            field="data",
        )
    return np.frombuffer(tensor.data, dtype=NUMPY_DTYPES[name]).reshape(shape)


def from_array(array: NDArray, dtype: str | None = None, *, with_data: bool = True) -> pb.Tensor:
    """Return the protobuf tensor of an array.

    Args:
        array: any layout; it is copied to C order.
        dtype: safetensors spelling where numpy's dtype does not say ("BF16" for uint16 patterns).
        with_data: False leaves `data` empty (headers of uploads).

    Raises:
        InvalidArgument: the array's dtype has no counterpart.
    """
    name = dtype or array_dtype_name(array)
    data = np.ascontiguousarray(array, dtype=NUMPY_DTYPES[name]).tobytes() if with_data else b""
    return pb.Tensor(dtype=dtype_value(name), shape=array.shape, data=data)


def array_dtype_name(array: NDArray) -> str:
    """Return the safetensors spelling of an array's dtype.

    Raises:
        InvalidArgument: it has none.
    """
    plain = array.dtype.newbyteorder("<")
    for name, dtype in NUMPY_DTYPES.items():
        if name != "BF16" and dtype == plain:
            return name
    raise InvalidArgument(f"Arrays of dtype {array.dtype} are not taken.", reason="TENSOR_DTYPE", field="dtype")


def all_finite(array: NDArray, dtype: str) -> bool:
    """Return whether no element is NaN or infinite."""
    if dtype == "BF16":
        # Exponent bits all ones: infinity or NaN.
        return not bool(np.any((array & np.uint16(0x7F80)) == 0x7F80))
    if array.dtype.kind != "f":
        return True
    return bool(np.isfinite(array).all())
