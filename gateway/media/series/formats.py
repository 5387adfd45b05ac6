"""Which format a file has, told by its first bytes, and the reader for it.

Next: gateway/media/series/samples.py
"""

from gateway.media.options import ServerLimits
from gateway.media.series import sound
from gateway.media.series.npy import MAGIC, read_npy
from gateway.media.series.samples import RawSeries, unreadable
from gateway.media.series.text import read_text
from gateway.media.series.wav import read_wav

_LOOKED_AT_BYTES = 4096


def series_formats() -> tuple[str, ...]:
    """Names of the formats that are read here."""
    return ("npy", "csv", "wav", *(sound.FORMATS if sound.is_installed() else ()))


def read_series(data: memoryview, limits: ServerLimits, rate_is_given: bool = False) -> RawSeries:
    """Read a series of any format.

    Args:
        data: the whole file.
        limits: the server's.
        rate_is_given: the caller gives the rate.

    Raises:
        MediaProblem: The file cannot be served.
    """
    head = bytes(data[:_LOOKED_AT_BYTES])
    if head[:6] == MAGIC:
        return read_npy(data, limits)
    if head[:4] == b"RIFF" and head[8:12] == b"WAVE":
        return read_wav(data, limits)
    if (name := _sound_format(head)) is not None:
        return sound.read_sound(data, name, limits)
    if b"\0" in head:
        raise unreadable(f"it is none of {', '.join(series_formats())}.")
    return read_text(data, limits, rate_is_given)


def _sound_format(head: bytes) -> str | None:
    if head[:4] == b"fLaC":
        return "flac"
    if head[:4] == b"OggS":
        return "ogg"
    # A tag, or a frame's sync bits of layer III.
    if head[:3] == b"ID3" or (len(head) > 1 and head[0] == 0xFF and head[1] & 0xE6 == 0xE2):
        return "mp3"
    return None
