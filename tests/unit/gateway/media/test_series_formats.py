"""Time series files that are read: every format, type and layout."""

import struct
import sys

import numpy as np
import pytest

from gateway.media.options import TimeSeriesOptions
from gateway.media.problem import MediaProblem
from gateway.media.series.formats import read_series, series_formats
from gateway.media.series.samples import RawSeries
from gateway.media.series.work import SeriesWork, process_series
from tessera.hashing import content_hash
from tests.unit.gateway.media.series_files import LIMITS, chunk, npy, npy_header, sound, wav, wav_format, wave


def read(data: bytes, rate_is_given: bool = False) -> RawSeries:
    """Read a file as a pool process does."""
    return read_series(memoryview(data), LIMITS, rate_is_given)


@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f8", "<f2", "i1", "u1", ">i2", "<u2", "<i4", "<u4", "<i8", ">u8"])
def test_npy_types(dtype: str) -> None:
    """Integers and floats of every width and byte order are read."""
    array = (wave() * 100 + 100).astype(dtype)
    series = read(npy(array))
    assert np.array_equal(series.array, array)
    assert series.sampling_rate_hz == 0


def test_npy_layouts() -> None:
    """One dimension is one channel; Fortran order and views are put right."""
    array = wave(100, 3)
    assert read(npy(array[:, 0])).array.shape == (100, 1)
    assert np.array_equal(read(npy(np.asfortranarray(array))).array, array)
    assert np.array_equal(read(npy(array[::2])).array, array[::2])


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_npy_versions(version: tuple[int, int]) -> None:
    """All versions of the format are read."""
    header = "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 1), }\n"
    assert read(npy_header(header, struct.pack("<2f", 1, 2), version)).array.tolist() == [[1], [2]]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1\n2\n3\n", [[1], [2], [3]]),
        ("1,2\n3,4", [[1, 2], [3, 4]]),
        ("1;2\n3;4\n", [[1, 2], [3, 4]]),
        ("1\t2\n3\t4\n", [[1, 2], [3, 4]]),
        ("  1   2\n 3  4 \n", [[1, 2], [3, 4]]),
        ("1, 2\r\n3, 4\r\n", [[1, 2], [3, 4]]),
        ("1,2\r3,4\r", [[1, 2], [3, 4]]),
        ('"1","2"\n"3","4"\n', [[1, 2], [3, 4]]),
        ("left,right\n1,2\n3,4\n", [[1, 2], [3, 4]]),
        ('"left, far",right\n1,2\n', [[1, 2]]),
        ("\ufeffleft,right\n1,2\n", [[1, 2]]),
        ("\ufeff1,2\n", [[1, 2]]),
        ("# made by numpy.savetxt\n\n1e-3 -2E+1\n\n\n", [[0.001, -20]]),
        (".5,-.5\n+1,1.\n", [[0.5, -0.5], [1, 1]]),
        ("temperature °C\n1\n2\n", [[1], [2]]),
        ("a b\n1 2\n3 4\n", [[1, 2], [3, 4]]),
        ("time b\n1 2\n3 4\n", [[2], [4]]),
    ],
)
def test_text(text: str, expected: list[list[float]]) -> None:
    """A line is a sample and a column a channel, with any usual separator, with or without a header."""
    assert read(text.encode()).array.tolist() == expected


@pytest.mark.parametrize("name", ["time", "Time", "T", "time_s", "seconds", '"sec"'])
def test_text_with_times(name: str) -> None:
    """A first column headed as time is no channel and gives the rate."""
    rows = "\n".join(f"{10 + i * 0.01:.4f},{i},{-i}" for i in range(50))
    series = read(f"{name},a,b\n{rows}\n".encode())
    assert series.sampling_rate_hz == pytest.approx(100)
    assert series.array.tolist() == [[i, -i] for i in range(50)]


@pytest.mark.parametrize("rows", ["0,1\n1,2\n9,3\n", "yesterday,1\ntoday,2\n"])
def test_times_are_not_read_beside_a_given_rate(rows: str) -> None:
    """Where the caller gives the rate, a column of times may hold anything."""
    series = read(f"time,a\n{rows}".encode(), rate_is_given=True)
    assert series.array[:, 0].tolist() == [1, 2, 3][: len(series.array)]
    assert series.sampling_rate_hz == 0


def test_one_time_gives_no_rate() -> None:
    """One sample tells nothing of the rate."""
    assert read(b"time,a\n5,1\n").sampling_rate_hz == 0


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"])
@pytest.mark.parametrize("name", ["WAV", "WAVEX"])
def test_wav(subtype: str, name: str) -> None:
    """Every sample format gives what soundfile reads, and the rate of the header."""
    soundfile = pytest.importorskip("soundfile")
    data = sound(wave(), name, rate=44_100, subtype=subtype)
    series = read(data)
    import io

    expected, _ = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
    assert np.array_equal(series.array.astype(np.float32), expected)
    assert series.sampling_rate_hz == 44_100


def test_wav_by_hand() -> None:
    """Chunks of odd length are skipped with their padding; a streamed file ends where it ends."""
    body = struct.pack("<4h", 0, 16384, -32768, 32767)
    expected = [[0, 0.5], [-1, 32767 / 32768]]
    assert read(wav(body, before=chunk(b"LIST", b"odd"))).array.tolist() == expected
    assert read(wav(body, size=0xFFFFFFFF)).array.tolist() == expected
    assert read(wav(body, wav_format(rate=0))).sampling_rate_hz == 0


@pytest.mark.parametrize(("name", "tolerance"), [("flac", 1e-4), ("ogg", 0.1), ("mp3", 0.1)])
def test_sound(name: str, tolerance: float) -> None:
    """Compressed audio is read where soundfile is installed, with its rate."""
    pytest.importorskip("soundfile")
    samples = wave(8000)
    series = read(sound(samples, name))
    assert series.sampling_rate_hz == 16_000
    assert series.array.shape == samples.shape
    assert np.abs(series.array - samples)[500:-500].max() < tolerance


@pytest.mark.parametrize("head", [b"fLaC", b"OggS", b"ID3\x04", b"\xff\xfb\x90\x00"])
def test_sound_without_soundfile(head: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where soundfile is not installed, its formats are unimplemented, with the remedy."""
    monkeypatch.setitem(sys.modules, "soundfile", None)
    with pytest.raises(MediaProblem, match="pip install soundfile") as problem:
        read(head + bytes(100))
    assert (problem.value.reason, problem.value.code) == ("SERIES_FORMAT_MISSING", "UNIMPLEMENTED")


def test_format_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is announced follows what is installed."""
    monkeypatch.setattr("gateway.media.series.sound.is_installed", lambda: False)
    assert series_formats() == ("npy", "csv", "wav")
    monkeypatch.setattr("gateway.media.series.sound.is_installed", lambda: True)
    assert series_formats() == ("npy", "csv", "wav", "flac", "mp3", "ogg")


def allocate(shape: tuple[int, ...]) -> np.ndarray:
    """Memory for a result."""
    return np.zeros(shape, np.uint8)


@pytest.mark.parametrize(("given", "rate"), [(None, 8000.0), (50.0, 50.0)])
def test_process(given: float | None, rate: float) -> None:
    """The option's rate goes before the file's; the result is float32 with its hash."""
    work = SeriesWork(TimeSeriesOptions(given), LIMITS)
    done = process_series(memoryview(wav(struct.pack("<4h", 0, 1, 2, 3))), work, allocate)
    assert (done.array.dtype, done.array.shape, done.sampling_rate_hz) == (np.float32, (2, 2), rate)
    assert done.content_hash == content_hash("time_series", "samples", "F32", done.array, sampling_rate_hz=rate)


def test_the_same_samples_have_the_same_name() -> None:
    """Formats differ, the item does not."""
    work = SeriesWork(TimeSeriesOptions(100.0), LIMITS)
    array = np.round(wave(100) * 1000)
    text = "\n".join(",".join(str(value) for value in row) for row in array.tolist())
    files = (npy(array), npy(array.astype(np.float64)), npy(np.asfortranarray(array)), text.encode())
    assert len({process_series(memoryview(data), work, allocate).content_hash for data in files}) == 1
