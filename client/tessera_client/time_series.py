"""Time series on the client's side: from files, arrays and lists to samples, and to what the server reads.

A TimeSeries part sends a file as it is, for the server to read; arrays and lists go as npy. `load_time_series` reads
files here, for callers who want the numbers themselves; flac, mp3 and ogg need soundfile.

Next: messages.py.
"""

from __future__ import annotations

import base64
import io
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tessera.v1 import inference_service_pb2 as pb
from tessera_client.errors import InvalidArgument
from tessera_client.media import write_source
from tessera_client.parts import TimeSeries
from tessera_client.uploads import Bag, Blob

if TYPE_CHECKING:
    from numpy.typing import NDArray

SERIES_SUFFIXES = frozenset({".npy", ".csv", ".tsv", ".wav", ".flac", ".mp3", ".ogg"})
_NPY_MAGIC = b"\x93NUMPY"


@dataclass(frozen=True)
class Series:
    """A series in memory; numpy takes it for its samples.

    Attributes:
        samples: (length, channels) float32.
        sampling_rate_hz: samples a second; None = the source did not say.
    """

    samples: NDArray[Any]
    sampling_rate_hz: float | None = None

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return self.samples.astype(dtype or self.samples.dtype, copy=bool(copy))

    def __len__(self) -> int:
        return len(self.samples)


def load_time_series(source: Any) -> Any:
    """Return a Series, or a list of them for a list of sources.

    Args:
        source: path or bytes of an npy, csv, wav, flac, mp3 or ogg file; an array (length,) or (length, channels); a
            list of numbers, or of rows of numbers; a Series; or a list of such sources.

    Raises:
        InvalidArgument: it is no series of finite numbers.
        OSError: a file cannot be read.
        ImportError: soundfile is needed and not installed.
    """
    return [_load(one) for one in source] if _is_many(source) else _load(source)


def encode_time_series_base64(source: Any) -> Any:
    """Return the base64 of an npy file of float32, or a list of them for a list of sources; see load_time_series."""
    if _is_many(source):
        return [encode_time_series_base64(one) for one in source]
    return base64.b64encode(encode_npy(_load(source).samples)).decode("ascii")


def encode_npy(samples: Any) -> bytes:
    """Return an array as an npy file; nothing is pickled."""
    import numpy as np

    file = io.BytesIO()
    np.save(file, np.asarray(samples, np.float32), allow_pickle=False)
    return file.getvalue()


def write_series(target: pb.TimeSeriesPart, part: TimeSeries, bag: Bag, field: str) -> None:
    """Write a series' source, and the rate that comes with an array.

    Args:
        target: being written; options that the part sets are written later.
        part: its source is a file of any kind, or an array, list or Series.
        bag: takes bytes, which go inline or ahead of the request.
        field: path of `target` in the request, for errors.

    Raises:
        InvalidArgument: the source cannot be used.
        OSError: its file cannot be read.
    """
    source = part.source
    if not _is_in_memory(source):
        write_source(target.media, source, bag, f"{field}.media")
        return
    try:
        series = _load(source)
    except InvalidArgument as error:
        raise InvalidArgument(error.message, reason=error.reason, field=f"{field}.media") from None
    bag.add_media(target.media, Blob("series.npy", encode_npy(series.samples), mime_type="application/x-npy"))
    if series.sampling_rate_hz:
        target.options.sampling_rate_hz = series.sampling_rate_hz


def _load(source: Any) -> Series:
    if isinstance(source, Series):
        return source
    if _is_in_memory(source):
        return Series(_samples(source))
    if isinstance(source, str | os.PathLike):
        path = Path(os.fspath(source).removeprefix("file://")).expanduser()
        return _read(path.read_bytes(), path.suffix.lower())
    if isinstance(source, bytes | bytearray | memoryview):
        return _read(bytes(source), "")
    if hasattr(source, "read"):
        return _read(source.read(), "")
    raise _invalid(f"Cannot read {type(source).__name__} as a time series: give a path, bytes, an array or a list.")


def _read(data: bytes, suffix: str) -> Series:
    import numpy as np

    if data.startswith(_NPY_MAGIC) or suffix == ".npy":
        try:
            array = np.load(io.BytesIO(data), allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise _invalid(f"Not an npy file of numbers: {error}.") from None
        return Series(_samples(array))
    sound = (b"RIFF", b"fLaC", b"OggS", b"ID3", b"\xff\xfb", b"\xff\xf3", b"\xff\xf2")
    return _read_sound(data) if data.startswith(sound) else _read_text(data)


def _read_text(data: bytes) -> Series:
    """Rows of numbers; a header's first column called time gives the rate, as on the server."""
    import numpy as np

    try:
        lines = [line for line in data.decode("utf-8-sig").splitlines() if line.strip() and line.strip()[0] != "#"]
    except UnicodeDecodeError:
        raise _invalid("Not a series: neither a known format nor UTF-8 text.") from None
    separator = next((char for char in "\t;," if lines and char in lines[0].strip(" ")), None)
    rows = [[cell.strip().strip('"') for cell in line.split(separator)] for line in lines]
    header = rows.pop(0) if rows and not any(map(_is_number, rows[0])) else []
    try:
        table = np.array(rows, np.float64)
    except ValueError as error:
        raise _invalid(f"Not a table of numbers: {error}.") from None
    if header and header[0].lower() in ("time", "t", "time_s", "seconds", "sec") and table.ndim == 2:
        seconds = table[-1, 0] - table[0, 0]
        return Series(_samples(table[:, 1:]), (len(table) - 1) / seconds if seconds > 0 else None)
    return Series(_samples(table))


def _read_sound(data: bytes) -> Series:
    if data.startswith(b"RIFF"):
        import wave

        import numpy as np

        try:
            with wave.open(io.BytesIO(data)) as file:
                if file.getsampwidth() == 2:
                    samples = np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.float32) / 2**15
                    return Series(_samples(samples.reshape(-1, file.getnchannels())), float(file.getframerate()))
        except (wave.Error, EOFError):
            pass  # of a kind that the standard library does not know: soundfile may
    try:
        import soundfile
    except ImportError as error:
        raise ImportError("soundfile is needed to read this file here: pip install soundfile") from error
    try:
        samples, rate = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
    except soundfile.SoundFileError as error:
        raise _invalid(f"Not a file of sound: {error}.") from None
    return Series(_samples(samples), float(rate))


def _samples(values: Any) -> NDArray[Any]:
    """Return values as (length, channels) float32."""
    import numpy as np

    try:
        array = np.asarray(values)
        if array.dtype.kind not in "iuf":
            raise ValueError(f"its elements are {array.dtype}")
        with np.errstate(over="ignore"):
            samples = np.ascontiguousarray(array, np.float32)
    except (TypeError, ValueError) as error:
        raise _invalid(f"Not a series of numbers: {error}.") from None
    if array.ndim == 1:
        samples = samples[:, None]
    if array.ndim not in (1, 2) or not array.size:
        raise _invalid(f"A series has shape (length,) or (length, channels), not {array.shape}.")
    if not np.isfinite(samples).all():
        raise _invalid("Every value of a series is a finite float32.")
    return samples


def _is_many(source: Any) -> bool:
    """A list of sources, rather than a list of numbers or rows."""
    if not isinstance(source, list | tuple) or not source:
        return False
    return not isinstance(source[0], list | tuple) and not _is_scalar(source[0])


def _is_in_memory(source: Any) -> bool:
    numbers = isinstance(source, list | tuple) and not _is_many(source)
    return numbers or isinstance(source, Series) or _is_array(source)


def _is_array(value: Any) -> bool:
    # Tensors of other libraries come as arrays through numpy's own protocols.
    return hasattr(value, "__array_interface__") or hasattr(value, "__dlpack__")


def _is_scalar(value: Any) -> bool:
    numpy = sys.modules.get("numpy")
    return isinstance(value, int | float) or (numpy is not None and isinstance(value, numpy.number))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _invalid(message: str) -> InvalidArgument:
    return InvalidArgument(message, reason="MEDIA_SOURCE")
