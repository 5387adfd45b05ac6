"""Time series on the client's side: every form that a user may have, files both ways, and the command's flags."""

import base64
import io
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tessera.v1 import inference_service_pb2 as pb
from tessera_client import (
    Client,
    MediaId,
    Series,
    ServerPath,
    TimeSeries,
    encode_time_series_base64,
    errors,
    load_time_series,
)
from tessera_client.cli import main
from tessera_client.messages import write_messages
from tessera_client.uploads import Bag
from tests.fakes.inference import FakeInference, FakeServer

SAMPLES = np.sin(np.arange(600)[:, None] / 20 * [1, 2]).astype(np.float32) * 0.9


def part(value: Any) -> pb.TimeSeriesPart:
    """The contract's series of one value."""
    request, bag = pb.ChatRequest(), Bag()
    write_messages(request, [value], bag)
    bag.settle()
    return request.messages[0].parts[0].time_series


def decoded(data: bytes) -> np.ndarray:
    """The array of an npy file."""
    return np.load(io.BytesIO(data), allow_pickle=False)


def wav(samples: np.ndarray, rate: int = 8000) -> bytes:
    """A wave file of 16 bits."""
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(samples.shape[1])
        writer.setsampwidth(2)
        writer.setframerate(rate)
        writer.writeframes((samples * 2**15).astype("<i2").tobytes())
    return file.getvalue()


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """The same series in several formats."""
    paths = {name: tmp_path / f"series.{name}" for name in ("npy", "csv", "wav", "txt")}
    np.save(paths["npy"], SAMPLES)
    lines = [f"{index / 100},{a},{b}" for index, (a, b) in enumerate(SAMPLES)]
    paths["csv"].write_text("\n".join(["time,a,b", *lines]))
    paths["wav"].write_bytes(wav(SAMPLES))
    np.savetxt(paths["txt"], SAMPLES, header="made by numpy")
    return paths


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (SAMPLES, SAMPLES),
        (SAMPLES[:, 0], SAMPLES[:, :1]),
        (SAMPLES.astype(np.float64)[::2], SAMPLES[::2]),
        (np.asfortranarray(SAMPLES), SAMPLES),
        (SAMPLES[:, 0].tolist(), SAMPLES[:, :1]),
        (SAMPLES.tolist(), SAMPLES),
        ([1, 2, 3], np.array([[1], [2], [3]])),
        (Series(SAMPLES), SAMPLES),
    ],
    ids=["array", "1-D", "view", "Fortran", "list", "rows", "integers", "Series"],
)
def test_series_in_memory_go_as_npy(source: Any, expected: np.ndarray) -> None:
    """An array, a list or a Series arrives as float32 (length, channels)."""
    sent = part(TimeSeries(source, sampling_rate_hz=50))
    array = decoded(sent.media.data)
    assert array.dtype == np.float32 and np.array_equal(array, expected)
    assert sent.options.sampling_rate_hz == 50


def test_files_and_names_go_as_they_are(files: dict[str, Path]) -> None:
    """A file's bytes are for the server to read; names are names; no rate is made up."""
    for path in files.values():
        sent = part(TimeSeries(path))
        assert sent.media.data == path.read_bytes()
        assert not sent.HasField("options")
    assert part(TimeSeries(files["csv"].read_bytes())).media.data == files["csv"].read_bytes()
    assert part(TimeSeries("https://x/a.csv")).media.url == "https://x/a.csv"
    assert part(TimeSeries(MediaId("ab" * 32))).media.media_id == b"\xab" * 32
    assert part(TimeSeries(ServerPath("a.npy"))).media.path == "a.npy"


def test_a_series_brings_its_rate(files: dict[str, Path]) -> None:
    """What was loaded with a rate is sent with it; a part's own goes before."""
    series = load_time_series(files["csv"])
    assert part(series).options.sampling_rate_hz == pytest.approx(100)
    assert part(TimeSeries(series)).options.sampling_rate_hz == pytest.approx(100)
    assert part(TimeSeries(series, sampling_rate_hz=7)).options.sampling_rate_hz == 7


def test_bare_paths_and_dictionaries(files: dict[str, Path]) -> None:
    """A path tells its kind by its suffix; OpenAI-like dictionaries have a type, and options beside it."""
    assert part(files["csv"]).media.data == files["csv"].read_bytes()
    for dictionary in (
        {"type": "time_series", "time_series": files["csv"], "sampling_rate_hz": 10},
        {"type": "time_series", "path": files["csv"], "sampling_rate": 10},
        {"type": "time_series_url", "time_series_url": {"url": "https://x/a.csv", "sampling_rate": 10}},
        {"time_series": SAMPLES, "sampling_rate_hz": 10},
    ):
        assert part(dictionary).options.sampling_rate_hz == 10


BAD: list[tuple[str, Any, str]] = [
    ("three dimensions", np.zeros((2, 3, 4)), r"\(length,\) or \(length, channels\), not \(2, 3, 4\)"),
    ("no dimension", np.float32(1), "not"),
    ("empty", np.zeros((0, 2)), r"not \(0, 2\)"),
    ("NaN", np.array([1, np.nan]), "finite"),
    ("over float32", np.array([1, 1e39]), "finite"),
    ("words", np.array(["a", "b"]), "numbers"),
    ("objects", np.array([1, None], object), "numbers"),
    ("ragged", [[1, 2], [3]], "numbers"),
    ("complex", np.zeros(5, complex), "numbers"),
]


@pytest.mark.parametrize(("source", "text"), [row[1:] for row in BAD], ids=[row[0] for row in BAD])
def test_what_is_no_series(source: Any, text: str) -> None:
    """What cannot be a series is refused before anything is sent, with its path."""
    with pytest.raises(errors.InvalidArgument, match=text) as caught:
        part(TimeSeries(source))
    assert caught.value.field == "messages[0].parts[0].time_series.media"
    with pytest.raises(errors.InvalidArgument, match="Unknown option"):
        part({"type": "time_series", "time_series": [1.0], "fps": 2})


@pytest.mark.parametrize(("name", "rate"), [("npy", None), ("csv", 100.0), ("wav", 8000.0), ("txt", None)])
def test_loading(files: dict[str, Path], name: str, rate: float | None) -> None:
    """A path, its string, a URL of it, its bytes and an open file all load; numpy takes the result."""
    path = files[name]
    for source in (path, str(path), f"file://{path}", path.read_bytes(), io.BytesIO(path.read_bytes())):
        series = load_time_series(source)
        assert np.allclose(series, SAMPLES, atol=1e-4)
        assert series.sampling_rate_hz == (None if rate is None else pytest.approx(rate))
        assert len(series) == 600


@pytest.mark.parametrize("name", ["flac", "ogg", "mp3", "wav"])
def test_loading_sound(name: str) -> None:
    """What the standard library cannot read, soundfile does."""
    soundfile = pytest.importorskip("soundfile")
    file = io.BytesIO()
    soundfile.write(file, np.tile(SAMPLES, (20, 1)), 16_000, format=name, subtype="FLOAT" if name == "wav" else None)
    series = load_time_series(file.getvalue())
    assert (series.samples.shape, series.sampling_rate_hz) == ((12_000, 2), 16_000)


@pytest.mark.parametrize("data", [b"\x93NUMPY\x01", b"a,b\n1\n2,3\n", b"\xff\xfe1\x00", b"fLaC", b"RIFF1234"])
def test_files_that_do_not_load(data: bytes) -> None:
    """A damaged file is a typed error."""
    pytest.importorskip("soundfile")
    with pytest.raises(errors.InvalidArgument):
        load_time_series(data)


def test_base64_round_trip(files: dict[str, Path]) -> None:
    """What is encoded comes back close to what it was, one or many, from every kind of source."""
    for source in (SAMPLES, SAMPLES.tolist(), files["csv"], files["wav"].read_bytes(), Series(SAMPLES, 5)):
        text = encode_time_series_base64(source)
        assert np.allclose(load_time_series(base64.b64decode(text)), SAMPLES, atol=1e-4)
    many = encode_time_series_base64([SAMPLES, files["npy"], SAMPLES[:, 0]])
    loaded = load_time_series([base64.b64decode(text) for text in many])
    assert [series.samples.shape for series in loaded] == [(600, 2), (600, 2), (600, 1)]


def test_large_series_are_uploaded(client: Client, service: FakeInference) -> None:
    """A series above the threshold goes ahead of the request, and the request names it."""
    client.chat([TimeSeries(np.zeros(2 << 20), sampling_rate_hz=1000), "What is it?"])
    sent = service.last.messages[0].parts[0].time_series
    assert sent.media.WhichOneof("source") == "media_id"
    assert decoded(service.uploads[sent.media.media_id]).shape == (2 << 20, 1)
    assert sent.options.sampling_rate_hz == 1000


def test_chat_flags(server: FakeServer, service: FakeInference, files: dict[str, Path], picture: Path) -> None:
    """--time-series keeps its place among the media; --rate is of the series before it, or of all."""
    csv, npy = str(files["csv"]), str(files["npy"])
    flags = ["--server", server.address, "--rate", "9", "--time-series", csv, "--rate", "100"]
    assert main(["chat", *flags, "--image", str(picture), "--time-series", npy, "--time-series", csv, "hi"]) == 0
    parts = service.last.messages[0].parts
    assert [p.WhichOneof("part") for p in parts] == ["time_series", "image", "time_series", "time_series", "text"]
    assert parts[0].time_series.options.sampling_rate_hz == 100
    assert not parts[2].time_series.HasField("options")
    assert service.last.media_options.time_series.sampling_rate_hz == 9


def test_prepare_tells_samples_and_rate(
    server: FakeServer, files: dict[str, Path], capsys: pytest.CaptureFixture
) -> None:
    """`tessera prepare` writes a series' samples, what is used of them, and the rate where it is known."""
    flags = ["--server", server.address, "--time-series", str(files["csv"]), "--rate", "50", "--time-series"]
    assert main(["prepare", *flags, str(files["npy"]), "hi"]) == 0
    out = capsys.readouterr().out
    assert "300000x2\t240000x2\t50 Hz" in out
    assert "300000x2\t240000x2\trate unknown" in out
