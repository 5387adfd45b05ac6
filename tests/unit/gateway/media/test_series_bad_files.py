"""Time series files that are refused: each with its reason, and without memory or time being spent on them."""

import pickle
import struct

import numpy as np
import pytest

from gateway.media.options import ServerLimits, TimeSeriesOptions
from gateway.media.problem import MediaProblem
from gateway.media.series.formats import read_series
from gateway.media.series.text import MAX_LINE_CHARS
from gateway.media.series.work import SeriesWork, process_series
from tests.unit.gateway.media.series_files import LIMITS, npy, npy_header, sound, wav, wav_format, wave

GOOD_HEADER = "{'descr': '<f4', 'fortran_order': False, 'shape': (4, 2), }\n"
NAN, INF = float("nan"), float("inf")


class Pickled:
    """What a hostile array of objects would run."""

    def __reduce__(self) -> tuple:
        return (pytest.fail, ("a pickle was loaded",))


def header(descr: str = "'<f4'", order: str = "False", shape: str = "(4, 2)", more: str = "") -> bytes:
    """An npy file of 32 bytes whose header says something else."""
    return npy_header(f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}{more}}}\n", bytes(32))


UNREADABLE, SHAPE, CHANNELS, VALUE, DTYPE, LARGE = (
    "SERIES_UNREADABLE",
    "SERIES_SHAPE",
    "SERIES_CHANNELS",
    "SERIES_VALUE",
    "SERIES_DTYPE",
    "SERIES_TOO_LARGE",
)
BAD_NPY: list[tuple[str, bytes, str, str]] = [
    ("magic alone", b"\x93NUMPY", UNREADABLE, "header is damaged"),
    ("no header", b"\x93NUMPY\x01\x00", UNREADABLE, "damaged"),
    ("cut header", npy(wave())[:40], UNREADABLE, "truncated"),
    ("unknown version", b"\x93NUMPY\x09\x00" + bytes(100), UNREADABLE, "damaged"),
    ("endless header", b"\x93NUMPY\x02\x00\xff\xff\xff\xff" + bytes(100), UNREADABLE, "too long"),
    ("no dictionary", npy_header("[1, 2]", bytes(32)), UNREADABLE, "damaged"),
    ("code in the header", npy_header("__import__('os')", bytes(32)), UNREADABLE, "damaged"),
    ("nested header", npy_header("(" * 3000, bytes(32)), UNREADABLE, "damaged"),
    ("NUL in the header", npy_header("\0", bytes(32)), UNREADABLE, "damaged"),
    ("another key", header(more=", 'x': 1"), UNREADABLE, "damaged"),
    ("shape of text", header(shape="'(4, 2)'"), UNREADABLE, "damaged"),
    ("negative shape", header(shape="(-4, -2)"), UNREADABLE, "damaged"),
    ("truth as shape", header(shape="(True, 8)"), UNREADABLE, "damaged"),
    ("truncated", npy(wave())[:-1], UNREADABLE, "announces 4800 bytes and 4799 follow"),
    ("more follows", npy(wave()) + b"!", UNREADABLE, "4801 follow"),
    ("huge length", header(shape="(1 << 62, 2)"), UNREADABLE, "damaged"),
    ("huge shape", header(shape="(4611686018427387904, 2)"), LARGE, "more than 65536"),
    ("huge channels", header(shape="(1, 4611686018427387904)"), CHANNELS, "at most 8 .* transposed"),
    ("objects", npy(np.array([1, "a", None], object), allow_pickle=True), DTYPE, "nothing is unpickled"),
    ("pickle", npy_header(GOOD_HEADER.replace("<f4", "|O"), pickle.dumps(Pickled())), DTYPE, "unpickled"),
    ("structured", npy(np.zeros(4, [("a", "f4")])), DTYPE, "integers or floats"),
    ("complex", npy(np.zeros((4, 2), complex)), DTYPE, "integers or floats"),
    ("text", npy(np.array(["1", "2"])), DTYPE, "integers or floats"),
    ("booleans", npy(np.zeros((4, 2), bool)), DTYPE, "integers or floats"),
    ("dates", npy(np.zeros(4, "M8[s]")), DTYPE, "integers or floats"),
    ("dtype of numbers", header(descr="4"), DTYPE, "integers or floats"),
    ("long double", header(descr="'<f16'"), DTYPE, "up to 64 bits"),
    ("no dimension", npy(np.float32(1)), SHAPE, "not 0"),
    ("three dimensions", npy(np.zeros((2, 3, 4), np.float32)), SHAPE, "not 3"),
    ("no samples", npy(np.zeros((0, 2), np.float32)), SHAPE, "no samples"),
    ("no channels", npy(np.zeros((5, 0), np.float32)), SHAPE, "no samples"),
    ("transposed", npy(np.zeros((2, 600), np.float32)), CHANNELS, "600 channels; at most 8 .* transposed"),
    ("too long", npy(np.zeros(LIMITS.max_series_samples + 1, np.int8)), LARGE, "more than 65536"),
    ("NaN", npy(np.array([[1, 2], [3, NAN]], np.float32)), VALUE, "Sample 1, channel 1 .* nan"),
    ("infinity", npy(np.array([1, -INF])), VALUE, "Sample 1, channel 0 .* -inf"),
    ("over float32", npy(np.array([1.0, 1e39])), VALUE, r"Sample 1, channel 0 .* 1e\+39"),
]

BAD_TEXT: list[tuple[str, bytes, str, str]] = [
    ("header alone", b"a,b\n", SHAPE, "no samples"),
    ("comments alone", b"# a\n\n  \n", SHAPE, "no samples"),
    ("blanks alone", b" \n \n", SHAPE, "no samples"),
    ("ragged", b"1,2\n3\n", SHAPE, "Row 2 .* has 1 columns, the first has 2"),
    ("ragged after a comment", b"# x\n1,2\n\n3,4,5\n", SHAPE, "Row 4 .* has 3 columns"),
    ("header of other columns", b"a,b\n1\n", SHAPE, "Row 2"),
    ("empty cell", b"1,2\n3,\n", VALUE, "Row 2, column 2 of the series is empty"),
    ("named empty cell", b"a,b\n1,2\n3, \n", VALUE, r"Row 3, column 2 \('b'\) of the series is empty"),
    ("word", b"1,2\n3,four\n", VALUE, "Row 2, column 2 of the series is 'four'"),
    ("word in the first line", b"1,two\n3,4\n", VALUE, "Row 1, column 2 of the series is 'two'"),
    ("long word", b"1\n" + b"x" * 5000, VALUE, "Row 2, column 1 of the series is 'x{20}', not"),
    ("two headers", b"a,b\nV,A\n1,2\n", VALUE, r"Row 2, column 1 \('a'\)"),
    ("NaN", b"1,2\nNaN,4\n", VALUE, "Row 2, column 1 of the series is 'NaN'"),
    ("infinity", b"1\n-inf\n", VALUE, "Row 2, column 1 of the series is '-inf'"),
    ("over float32", b"1\n1e39\n", VALUE, "Row 2, column 1 of the series is '1e39'"),
    ("decimal comma", b"1,5;2,5\n1,5;2,5\n", VALUE, "Row 2, column 1 .* '1,5', not a finite float32"),
    ("underscore", b"1\n1_000\n", VALUE, "Row 2, column 1 of the series is '1_000'"),
    ("hexadecimal", b"1\n0x10\n", VALUE, "Row 2"),
    ("too many channels", b"1,2,3,4,5,6,7,8,9\n", CHANNELS, "9 channels; at most 8"),
    ("one line of everything", b"1," * MAX_LINE_CHARS, SHAPE, f"Line 1 .* more than {MAX_LINE_CHARS} characters"),
    ("quote without end", b'1,2\n"3,4\n', UNREADABLE, "quoted cell"),
    ("quote that swallows", b'1,2\n"' + b"3,4\n" * 50_000, UNREADABLE, "quoted cell"),
    ("UTF-16", "1,2\n3,4\n".encode("utf-16"), UNREADABLE, "none of npy, csv, wav"),
    ("Latin-1", "höhe\n1\n".encode("latin-1"), UNREADABLE, "not UTF-8"),
    ("binary later", b"1\n" * 3000 + b"\x00\x01\n", VALUE, "Row 3001"),
    ("picture", b"\x89PNG\r\n\x1a\n\0\0\0\r", UNREADABLE, "none of npy"),
    ("too long", b"1\n" * (LIMITS.max_series_samples + 1), LARGE, "more than 65536"),
    ("uneven times", b"time,a\n0,1\n1,2\n5,3\n", "SERIES_TIME", "even steps"),
    ("descending times", b"time,a\n2,1\n1,2\n0,3\n", "SERIES_TIME", "even steps"),
    ("equal times", b"time,a\n1,1\n1,2\n", "SERIES_TIME", "even steps"),
    ("dates", b"time,a\n2026-01-01,1\n2026-01-02,2\n", VALUE, r"Row 2, column 1 \('time'\)"),
    ("infinite times", b"time,a\n0,1\ninf,2\n", "SERIES_TIME", "even steps"),
    ("tiny steps", b"time,a\n0,1\n5e-324,2\n", "SERIES_TIME", "even steps"),
    ("times alone", b"time\n0\n1\n", SHAPE, "no samples"),
]

FRAME = struct.pack("<2h", 1, 2)
BAD_WAV: list[tuple[str, bytes, str, str]] = [
    ("head alone", b"RIFF\0\0\0\0WAVE", UNREADABLE, "no format"),
    ("no samples chunk", wav(b"")[:36], UNREADABLE, "no format or no samples"),
    ("samples before the format", b"RIFF\0\0\0\0WAVEdata\x04\0\0\0" + FRAME, UNREADABLE, "no format"),
    ("short format", wav(FRAME, wav_format()[:10]), UNREADABLE, "truncated"),
    ("no samples", wav(b""), SHAPE, "no samples"),
    ("cut frame", wav(FRAME[:3]), UNREADABLE, "last sample .* cut"),
    ("truncated", wav(FRAME, size=400), UNREADABLE, "truncated"),
    ("zero channels", wav(FRAME, wav_format(channels=0)), SHAPE, "no channels"),
    ("many channels", wav(bytes(18), wav_format(channels=9, bits=16)), CHANNELS, "9 channels; at most 8"),
    ("zero bits", wav(FRAME, wav_format(bits=0)), DTYPE, "not 0 bits"),
    ("12 bits", wav(FRAME, wav_format(bits=12)), DTYPE, "not 12 bits"),
    ("64-bit integers", wav(bytes(16), wav_format(bits=64)), DTYPE, "not 64 bits of type 1"),
    ("A-law", wav(FRAME, wav_format(tag=6, bits=8)), DTYPE, "of type 6"),
    ("half floats", wav(FRAME, wav_format(tag=3, bits=16)), DTYPE, "not 16 bits of type 3"),
    ("other block", wav(FRAME, wav_format(block=7)), UNREADABLE, "contradicts itself"),
    ("NaN", wav(struct.pack("<2f", 1, NAN), wav_format(tag=3, bits=32)), VALUE, "Sample 0, channel 1 .* nan"),
    ("over float32", wav(struct.pack("<2d", 1, 1e39), wav_format(tag=3, bits=64)), VALUE, "channel 1"),
    ("too long", wav(bytes(4 * LIMITS.max_series_samples)), LARGE, "more than"),
    ("endless chunks", b"RIFF\0\0\0\0WAVE" + b"junk\0\0\0\0" * 2000, UNREADABLE, "no format"),
]


def check(data: bytes, reason: str, text: str) -> None:
    """A file is refused for a reason, with a text."""
    with pytest.raises(MediaProblem, match=text) as problem:
        process_series(
            memoryview(data), SeriesWork(TimeSeriesOptions(), LIMITS), lambda shape: np.empty(shape, np.uint8)
        )
    assert (problem.value.reason, problem.value.field) == (reason, "media")
    assert problem.value.code == ("RESOURCE_EXHAUSTED" if reason == LARGE else "INVALID_ARGUMENT")


@pytest.mark.parametrize(("data", "reason", "text"), [row[1:] for row in BAD_NPY], ids=[r[0] for r in BAD_NPY])
def test_bad_npy(data: bytes, reason: str, text: str) -> None:
    """An npy file that is damaged, hostile or no series is refused before anything is allocated or unpickled."""
    check(data, reason, text)


@pytest.mark.parametrize(("data", "reason", "text"), [row[1:] for row in BAD_TEXT], ids=[r[0] for r in BAD_TEXT])
def test_bad_text(data: bytes, reason: str, text: str) -> None:
    """A text that is no table of finite numbers is refused, with the row and column at fault."""
    check(data, reason, text)


@pytest.mark.parametrize(("data", "reason", "text"), [row[1:] for row in BAD_WAV], ids=[r[0] for r in BAD_WAV])
def test_bad_wav(data: bytes, reason: str, text: str) -> None:
    """A wave file that is damaged, truncated or of another encoding is refused."""
    check(data, reason, text)


@pytest.mark.parametrize("name", ["flac", "ogg", "mp3"])
def test_bad_sound(name: str) -> None:
    """Compressed audio that is damaged, cut or too long is refused."""
    pytest.importorskip("soundfile")
    data = sound(wave(30_000), name)
    check(data[:60], UNREADABLE, name)
    if name != "mp3":  # whose header does not know its length
        check(data[: len(data) // 2], UNREADABLE, f"{name} file is .*truncated")
    with pytest.raises(MediaProblem, match="more than 1000 samples"):
        read_series(memoryview(data), ServerLimits(max_series_samples=1000))


def outcome(data: bytes) -> str:
    """SERIES and what went wrong, or nothing more."""
    try:
        process_series(
            memoryview(data), SeriesWork(TimeSeriesOptions(), LIMITS), lambda shape: np.empty(shape, np.uint8)
        )
    except MediaProblem as problem:
        return problem.reason
    return "SERIES_"


def test_random_bytes() -> None:
    """Whatever the bytes, the answer is a series or a typed problem."""
    rng = np.random.default_rng(0)
    heads = [b"", b"\x93NUMPY\x01\x00", b"RIFF\x10\0\0\0WAVEfmt ", b"fLaC", b"OggS", b"ID3", b"\xff\xfb"]
    for number in range(300):
        data = heads[number % len(heads)] + rng.bytes(int(rng.integers(1, 300)))
        assert outcome(data).startswith("SERIES_")


@pytest.mark.parametrize("name", ["npy", "flac", "wav"])
def test_mutants(name: str) -> None:
    """A good file with some bytes changed gives a series or a typed problem."""
    if name != "npy":
        pytest.importorskip("soundfile")
    rng = np.random.default_rng(1)
    good = npy(wave(200)) if name == "npy" else sound(wave(200), name)
    for _ in range(150):
        data = bytearray(good)
        for at in rng.integers(0, len(data), 4):
            data[at] = rng.integers(0, 256)
        assert outcome(bytes(data)).startswith("SERIES_")
