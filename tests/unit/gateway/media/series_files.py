"""Files of time series, made by hand or by the libraries that people use."""

import io
import struct

import numpy as np

from gateway.media.options import ServerLimits

LIMITS = ServerLimits(max_series_samples=1 << 16, max_series_channels=8)


def wave(length: int = 600, channels: int = 2) -> np.ndarray:
    """(length, channels) float32 in [-1, 1): a different sine in each channel."""
    steps = np.arange(length)[:, None] / 50
    return np.sin(steps * (1 + np.arange(channels))).astype(np.float32) * 0.9


def npy(array: np.ndarray, **kwargs: bool) -> bytes:
    """What numpy.save writes."""
    file = io.BytesIO()
    np.save(file, array, **kwargs)  # type: ignore[arg-type]
    return file.getvalue()


def npy_header(text: str, body: bytes = b"", version: tuple[int, int] = (1, 0)) -> bytes:
    """An npy file with any header."""
    head = text.encode("latin-1")
    size = struct.pack("<H" if version[0] == 1 else "<I", len(head))
    return b"\x93NUMPY" + bytes(version) + size + head + body


def chunk(name: bytes, body: bytes, size: int | None = None) -> bytes:
    """A chunk of a wave file; `size` is what its header says."""
    return name + struct.pack("<I", len(body) if size is None else size) + body + b"\0" * (len(body) % 2)


def wav_format(tag: int = 1, channels: int = 2, rate: int = 8000, bits: int = 16, block: int | None = None) -> bytes:
    """The format chunk's bytes."""
    block = channels * bits // 8 if block is None else block
    return struct.pack("<HHIIHH", tag, channels, rate, rate * block, block, bits)


def wav(body: bytes, form: bytes | None = None, *, size: int | None = None, before: bytes = b"") -> bytes:
    """A wave file; `size` is what the header of its samples says, `before` are chunks between format and samples."""
    content = b"WAVE" + chunk(b"fmt ", form or wav_format()) + before + chunk(b"data", body, size)
    return b"RIFF" + struct.pack("<I", len(content)) + content


def sound(samples: np.ndarray, name: str, rate: int = 16_000, subtype: str | None = None) -> bytes:
    """What soundfile writes."""
    import soundfile

    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=name.upper(), subtype=subtype)
    return file.getvalue()
