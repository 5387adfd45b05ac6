"""RIFF wave files: integers scaled to [-1, 1), floats as they are, the rate from the header.

Read by hand: the standard library's `wave` takes neither floats nor the extensible header.

Source: Microsoft's Multimedia Programming Interface and Data Specifications 1.0, and WAVEFORMATEXTENSIBLE.

Next: gateway/media/series/sound.py
"""

import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gateway.media.options import ServerLimits
from gateway.media.problem import MediaProblem
from gateway.media.series.samples import RawSeries, check_size, unreadable

_PCM, _FLOAT, _EXTENSIBLE = 0x0001, 0x0003, 0xFFFE
_STREAMED = 0xFFFFFFFF  # the size of a chunk whose writer could not come back to it
_MAX_CHUNKS = 1024
_Format = tuple[int, int, int, int]


def read_wav(data: memoryview, limits: ServerLimits) -> RawSeries:
    """Read a wave file.

    Args:
        data: the whole file.
        limits: the server's.

    Raises:
        MediaProblem: SERIES_UNREADABLE, SERIES_DTYPE, SERIES_SHAPE or SERIES_TOO_LARGE.
    """
    (tag, channels, rate, bits), body = _chunks(data)
    if not channels:
        raise MediaProblem("The wave file has no channels.", reason="SERIES_SHAPE", field="media")
    if (tag, bits) not in _READERS:
        message = f"Wave files hold PCM of 8, 16, 24 or 32 bits, or floats of 32 or 64; not {bits} bits of type {tag}."
        raise MediaProblem(message, reason="SERIES_DTYPE", field="media")
    length, rest = divmod(len(body), channels * bits // 8)
    if rest:
        raise unreadable("the last sample of the wave file is cut.")
    check_size(length, channels, limits)
    return RawSeries(_READERS[tag, bits](body).reshape(length, channels), float(rate))


def _chunks(data: memoryview) -> tuple[_Format, memoryview]:
    """The format and the samples' bytes."""
    at, form = 12, None
    for _ in range(_MAX_CHUNKS):
        if at + 8 > len(data):
            break
        name, size = bytes(data[at : at + 4]), struct.unpack_from("<I", data, at + 4)[0]
        body = data[at + 8 : at + 8 + size]
        if name == b"data":
            if form is None:
                break
            if len(body) < size != _STREAMED:
                raise unreadable("the wave file is truncated.")
            return form, body
        if name == b"fmt ":
            form = _format(body)
        at += 8 + size + size % 2
    raise unreadable("the wave file has no format or no samples.")


def _format(body: memoryview) -> _Format:
    """(type, channels, rate, bits of a sample)."""
    if len(body) < 16:
        raise unreadable("the wave file's format is truncated.")
    tag, channels, rate, _, block, bits = struct.unpack_from("<HHIIHH", body)
    if tag == _EXTENSIBLE and len(body) >= 26:
        tag = struct.unpack_from("<H", body, 24)[0]
    if block != channels * bits // 8:
        raise unreadable("the wave file's format contradicts itself.")
    return tag, channels, rate, bits


def _pcm_8(body: memoryview) -> NDArray[Any]:
    return (np.frombuffer(body, np.uint8).astype(np.float32) - 128) / 128


def _pcm_16(body: memoryview) -> NDArray[Any]:
    return np.frombuffer(body, "<i2").astype(np.float32) / 2**15


def _pcm_24(body: memoryview) -> NDArray[Any]:
    wide = np.zeros((len(body) // 3, 4), np.uint8)
    wide[:, 1:] = np.frombuffer(body, np.uint8).reshape(-1, 3)
    return wide.view("<i4")[:, 0].astype(np.float32) / 2**31  # 24 bits are exact in float32, also as the upper ones


def _pcm_32(body: memoryview) -> NDArray[Any]:
    return (np.frombuffer(body, "<i4") / 2**31).astype(np.float32)


_READERS = {
    (_PCM, 8): _pcm_8,
    (_PCM, 16): _pcm_16,
    (_PCM, 24): _pcm_24,
    (_PCM, 32): _pcm_32,
    (_FLOAT, 32): lambda body: np.frombuffer(body, "<f4"),
    (_FLOAT, 64): lambda body: np.frombuffer(body, "<f8"),
}
