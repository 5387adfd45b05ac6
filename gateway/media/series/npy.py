"""NumPy's file format, read by hand: the header is checked before anything is allocated, and nothing is unpickled.

Source: numpy/lib/format.py (format versions 1.0 to 3.0).

Next: gateway/media/series/text.py
"""

import ast
import re
import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gateway.media.options import ServerLimits
from gateway.media.problem import MediaProblem
from gateway.media.series.samples import RawSeries, check_size, unreadable

MAGIC = b"\x93NUMPY"
MAX_HEADER_BYTES = 4096
_DTYPE = re.compile(r"[<>|=]?([iu][1248]|f[248])")
_KEYS = {"descr", "fortran_order", "shape"}


def read_npy(data: memoryview, limits: ServerLimits) -> RawSeries:
    """Read an array (length,) or (length, channels) of integers or floats.

    Args:
        data: the whole file.
        limits: the server's.

    Returns:
        The series over `data`, not copied.

    Raises:
        MediaProblem: SERIES_UNREADABLE, SERIES_SHAPE or SERIES_TOO_LARGE.
    """
    descr, fortran_order, shape, start = _header(data)
    if not isinstance(descr, str) or not _DTYPE.fullmatch(descr):
        message = "A series is an array of integers or floats of up to 64 bits; nothing is unpickled."
        raise MediaProblem(message, reason="SERIES_DTYPE", field="media")
    if not 1 <= len(shape) <= 2:
        message = f"A series has 1 or 2 dimensions (length, channels), not {len(shape)}."
        raise MediaProblem(message, reason="SERIES_SHAPE", field="media")
    length, channels = shape if len(shape) == 2 else (shape[0], 1)
    check_size(length, channels, limits)
    dtype = np.dtype(descr)
    expected, there = length * channels * dtype.itemsize, len(data) - start
    if there != expected:
        raise unreadable(f"its header announces {expected} bytes and {there} follow.")
    flat: NDArray[Any] = np.frombuffer(data, dtype, offset=start)
    return RawSeries(flat.reshape((length, channels), order="F" if fortran_order else "C"))


def _header(data: memoryview) -> tuple[Any, bool, tuple[int, ...], int]:
    """The header's three values, and where the array begins."""
    major = data[6] if len(data) > 8 else 0
    if major not in (1, 2, 3):
        raise unreadable("the npy header is damaged.")
    layout = "<H" if major == 1 else "<I"
    at = 8 + struct.calcsize(layout)
    size = struct.unpack_from(layout, data, 8)[0] if len(data) >= at else MAX_HEADER_BYTES + 1
    if size > MAX_HEADER_BYTES or at + size > len(data):
        raise unreadable("the npy header is truncated, or too long.")
    try:
        fields = ast.literal_eval(bytes(data[at : at + size]).decode("utf-8" if major == 3 else "latin-1").strip())
        if not isinstance(fields, dict) or set(fields) != _KEYS:
            raise ValueError("other keys")
        shape = fields["shape"]
        if not isinstance(shape, tuple) or not all(type(side) is int and side >= 0 for side in shape):
            raise ValueError("no shape")
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError) as error:
        raise unreadable("the npy header is damaged.") from error
    return fields["descr"], bool(fields["fortran_order"]), shape, at + size
