"""Compressed audio through soundfile, where it is installed; read block by block within the budget.

Next: gateway/media/series/formats.py
"""

import io
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gateway.media.options import ServerLimits
from gateway.media.problem import MediaProblem
from gateway.media.series.samples import RawSeries, check_size, too_large, unreadable

FORMATS = ("flac", "mp3", "ogg")
_BLOCK_VALUES = 1 << 16


def is_installed() -> bool:
    """Whether soundfile is there."""
    return find_spec("soundfile") is not None


def read_sound(data: memoryview, name: str, limits: ServerLimits) -> RawSeries:
    """Read a flac, mp3 or ogg file.

    Args:
        data: the whole file.
        name: of its format, for errors.
        limits: the server's.

    Raises:
        MediaProblem: SERIES_FORMAT_MISSING (UNIMPLEMENTED), SERIES_UNREADABLE, SERIES_SHAPE or SERIES_TOO_LARGE.
    """
    try:
        import soundfile
    except (ImportError, OSError) as error:  # OSError: the package is there, its library is not
        message = f"A series from {name} needs soundfile on the server: pip install soundfile."
        raise MediaProblem(message, reason="SERIES_FORMAT_MISSING", field="media", code="UNIMPLEMENTED") from error
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            check_size(1, file.channels, limits)
            samples = _read(file, limits)
            if len(samples) < file.frames and name != "mp3":  # mp3 headers estimate
                raise unreadable(f"the {name} file is truncated.")
            return RawSeries(samples, float(file.samplerate))
    except (soundfile.SoundFileError, RuntimeError) as error:
        raise unreadable(f"the {name} file is damaged or truncated.") from error


def _read(file: Any, limits: ServerLimits) -> NDArray[np.float32]:
    """All samples of an open file; the header's count is not believed."""
    frames = max(_BLOCK_VALUES // file.channels, 1)
    blocks, length = [], 0
    while len(block := file.read(frames, dtype="float32", always_2d=True)):
        length += len(block)
        if length * file.channels > limits.max_series_samples:
            raise too_large(limits)
        blocks.append(block)
    check_size(length, file.channels, limits)
    return np.concatenate(blocks)
