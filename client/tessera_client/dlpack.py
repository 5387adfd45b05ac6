"""Reads arrays through DLPack: torch's and others', bfloat16 too, by the protocol's C structures.

Next: items.py.
"""

from __future__ import annotations

import ctypes
from typing import Any

from tessera_client.errors import InvalidArgument

# Source: DLPack 1.0, dlpack.h.
_ON_HOST = (1, 3)  # kDLCPU, kDLCUDAHost
_NAMES = {
    (0, 32): "I32",
    (0, 64): "I64",
    (1, 8): "U8",
    (1, 16): "U16",
    (2, 16): "F16",
    (2, 32): "F32",
    (2, 64): "F64",
    (4, 16): "BF16",
}
_CODES = {0: "int", 1: "uint", 2: "float", 4: "bfloat", 5: "complex", 6: "bool"}


class _Device(ctypes.Structure):
    _fields_ = (("type", ctypes.c_int32), ("id", ctypes.c_int32))


class _DataType(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16))


class _DLTensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device", _Device),
        ("ndim", ctypes.c_int32),
        ("dtype", _DataType),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


_get_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_get_pointer.restype = ctypes.c_void_p
_get_pointer.argtypes = (ctypes.py_object, ctypes.c_char_p)


def read(array: Any) -> tuple[str, tuple[int, ...], bytes]:
    """Return dtype ("U16", and names that the contract lacks, too), shape and a copy of the elements in C order.

    Raises:
        InvalidArgument: TENSOR_DEVICE where it is not on the host; TENSOR_SOURCE where its library does not give it.
    """
    try:
        kind, number = (int(part) for part in array.__dlpack_device__())
    except (ValueError, RuntimeError, BufferError) as error:  # torch has devices that DLPack does not know
        raise InvalidArgument(f"The array is on a device without memory: {error}.", reason="TENSOR_DEVICE") from None
    if kind not in _ON_HOST:
        message = f"The array is on a device (DLPack type {kind}, number {number}): copy it to the host first."
        raise InvalidArgument(message, reason="TENSOR_DEVICE")
    try:
        capsule = array.__dlpack__()
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        raise InvalidArgument(f"The array cannot be exported: {error}.", reason="TENSOR_SOURCE") from None
    # The capsule is only looked into: its own destructor frees what it holds.
    tensor = _DLTensor.from_address(_get_pointer(capsule, b"dltensor"))
    shape = tuple(tensor.shape[axis] for axis in range(tensor.ndim))
    bits = tensor.dtype.bits
    name = _NAMES.get((tensor.dtype.code, bits)) if tensor.dtype.lanes == 1 else None
    if name is None:
        return f"{_CODES.get(tensor.dtype.code, 'other')}{bits}", shape, b""
    return name, shape, _copy(tensor, shape, bits // 8) if 0 not in shape else b""


def _copy(tensor: _DLTensor, shape: tuple[int, ...], size: int) -> bytes:
    import numpy as np

    if tensor.strides:
        steps = [tensor.strides[axis] * size for axis in range(len(shape))]
    else:
        steps = [int(np.prod(shape[axis + 1 :], dtype=int)) * size for axis in range(len(shape))]
    # An array may be walked backwards: its lowest byte then lies before its first element.
    before = sum(-step * (extent - 1) for step, extent in zip(steps, shape, strict=True) if step < 0)
    behind = sum(step * (extent - 1) for step, extent in zip(steps, shape, strict=True) if step > 0) + size
    memory = (ctypes.c_char * (before + behind)).from_address(tensor.data + tensor.byte_offset - before)
    return np.ndarray(shape, np.dtype(f"V{size}"), memory, offset=before, strides=steps).tobytes()
