"""Time series over gRPC on a tiny InternS1-Pro: every format, several at once, beside pictures and clips.

What is generated is compared with the float64 reference of the family, which shares nothing with the servers.
"""

import base64
import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from tessera.tensors import from_array, to_array
from tessera.time_series import num_series_tokens
from tessera.v1 import inference_service_pb2 as pb
from tessera.v1 import types_pb2 as types
from tessera_client.cli import main
from tests.e2e.harness import Flags, Pair, Pairs
from tests.e2e.series import chat, generate, npy, part, prepare, text, tokens_of, wave
from tests.e2e.status import outcome
from tests.parity.cases import CLIP, SMALL, clip_source, picture
from tests.parity.interns1_pro_reference import Reference

MARGIN = 2e-4


@pytest.fixture(scope="module")
def reference(tiny: Callable[[str], Path]) -> Reference:
    """The family in float64."""
    return Reference(tiny("interns1_pro"))


@pytest.fixture
def pair(pairs: Pairs, tiny: Callable[[str], Path]) -> Pair:
    """A pair with a small budget of samples."""
    return pairs.get(Flags(tiny("interns1_pro"), gateway=("--max-series-samples", "20000")))


def assert_reference(reference: Reference, prepared: pb.PrepareResponse, tokens: list[int]) -> None:
    """Each token is the reference's choice after all before it, or a near tie of it."""
    rows: dict[int, np.ndarray] = {}
    for item in prepared.items:
        array = to_array(item.tensor)
        series = item.modality == types.MODALITY_TIME_SERIES
        values = reference.series(array, item.sampling_rate_hz) if series else reference.vision(array)
        places = [row for span in item.ranges for row in range(span.offset, span.offset + span.length)]
        rows |= dict(zip(places, values, strict=True))
    ids = list(prepared.token_ids)
    logits = reference.logits(ids + tokens, rows)[len(ids) - 1 : -1]
    chosen = np.take_along_axis(logits, np.array(tokens)[:, None], 1)[:, 0]
    assert (logits.max(-1) - chosen < MARGIN).all()


MIXED = [
    (part(npy(wave(83, 1, 1))), 83, 1, 0.0),
    (part(npy(wave(180, 3, 2)), 100.0), 180, 3, 100.0),
    (part(npy(wave(1000, 2, 3)), 16_000.0), 1000, 2, 16_000.0),
    (part(npy(wave(641, 1, 4)), 1.0), 641, 1, 1.0),
]


def mixed_request() -> pb.ChatRequest:
    """Four series of different length, rate and channels, beside a picture and a clip."""
    image = pb.Part(image=pb.ImagePart(media=pb.MediaSource(data=SMALL.file)))
    video = pb.Part(video=pb.VideoPart(media=clip_source(CLIP)))
    first, second, third, fourth = (row[0] for row in MIXED)
    return chat(text("Compare "), first, image, second, text(" with "), video, third, fourth, text(" please."))


def test_several_series_beside_a_picture_and_a_clip(pair: Pair, reference: Reference) -> None:
    """Each series is told in the report and counted in the usage; the answer is the reference's."""
    request = mixed_request()
    prepared, answer = prepare(pair, request), pair.stub.Chat(request)
    assert_reference(reference, prepared, tokens_of(answer))
    reports = [report for report in answer.media if report.modality == types.MODALITY_TIME_SERIES]
    assert [(r.num_samples, r.used_samples, r.num_channels, r.sampling_rate_hz) for r in reports] == [
        (length, length, channels, rate) for _, length, channels, rate in MIXED
    ]
    counts = [num_series_tokens(length, rate) for _, length, _, rate in MIXED]
    assert [report.num_tokens for report in reports] == counts
    assert answer.usage.time_series_tokens == sum(counts)
    assert answer.usage.image_tokens and answer.usage.video_tokens
    assert prepared.usage.time_series_tokens == sum(counts)


def test_requests_at_once(pair: Pair) -> None:
    """Eight requests at once, each with other series and some with a picture, answer as each alone."""
    requests = []
    for number in range(8):
        parts = [part(npy(wave(60 + 45 * number, 1 + number % 3, number)), [None, 100.0, 1.0][number % 3])]
        if number % 2:
            media = pb.MediaSource(data=picture(number, 70, 90).file)
            parts.append(pb.Part(image=pb.ImagePart(media=media)))
        requests.append(chat(*parts, text(f"Number {number}?")))
    alone = [tokens_of(pair.stub.Chat(request)) for request in requests]
    for index, request in enumerate(requests):
        request.cache_salt = bytes([index + 1])  # nothing of the first round is found
    with ThreadPoolExecutor(8) as threads:
        assert [tokens_of(answer) for answer in threads.map(pair.stub.Chat, requests)] == alone


def test_caches(pair: Pair) -> None:
    """The second time the series come from the processor cache, and the prompt from the prefix cache."""
    request = chat(part(npy(wave(640, 2, 31)), 2.0), part(npy(wave(300, 1, 32)), 2.0), text("What do they show?"))
    cold, warm = pair.stub.Chat(request), pair.stub.Chat(request)
    assert tokens_of(cold) == tokens_of(warm)
    assert (cold.usage.processor_cache_hits, warm.usage.processor_cache_hits) == (0, 2)
    assert cold.usage.cached_tokens == 0
    assert warm.usage.cached_tokens >= warm.usage.prompt_tokens - 32
    other = chat(part(npy(wave(640, 2, 31)), 3.0), part(npy(wave(300, 1, 32)), 2.0), text("What do they show?"))
    partly = pair.stub.Chat(other).usage
    assert (partly.processor_cache_hits, partly.cached_tokens < 32) == (1, True)


def test_token_prompts(pair: Pair) -> None:
    """One placeholder an item is expanded, an expanded prompt is taken as it is; hashes and tensors are alike."""
    request = mixed_request()
    expected, prepared = tokens_of(pair.stub.Chat(request)), prepare(pair, request)
    held = [
        types.MultimodalItem(modality=item.modality, content_hash=digest, ranges=item.ranges)
        for item, digest in zip(prepared.items, prepared.content_hashes, strict=True)
    ]
    ids = list(prepared.token_ids)
    assert tokens_of(pair.stub.Generate(generate(ids, held))) == expected
    assert tokens_of(pair.stub.Generate(generate(ids, list(prepared.items)))) == expected
    series = [item for item in prepared.items if item.modality == types.MODALITY_TIME_SERIES]
    (placeholder,) = {ids[item.ranges[0].offset] for item in series}
    start, end = ids[series[0].ranges[0].offset - 1], ids[series[0].ranges[0].offset + series[0].ranges[0].length]
    short = [11, start, placeholder, end, 12, start, placeholder, end, placeholder, 13]
    plain = [types.MultimodalItem() for _ in range(3)]
    for item, whole in zip(plain, series, strict=False):
        item.CopyFrom(whole)
        item.ClearField("ranges")
    answer = pair.stub.Generate(generate(short, plain))
    echoed = list(answer.prompt.token_ids)
    assert len(echoed) == len(short) - 3 + sum(item.ranges[0].length for item in series[:3])
    again = pair.stub.Generate(generate(echoed, list(answer.prompt.items)))
    assert tokens_of(again) == tokens_of(answer)
    assert [item.channels for item in answer.prompt.items] == [1, 3, 2]


def test_adjacent_series_without_a_separator(pair: Pair, reference: Reference) -> None:
    """Two series whose runs touch are told apart by their ranges."""
    prepared = prepare(pair, chat(MIXED[0][0], text("a"), MIXED[1][0]))
    first, second = prepared.items
    placeholder = prepared.token_ids[first.ranges[0].offset]
    counts = [first.ranges[0].length, second.ranges[0].length]
    ids = [11, 12, *[placeholder] * sum(counts), 13]
    first.ranges[0].offset, second.ranges[0].offset = 2, 2 + counts[0]
    answer = pair.stub.Generate(generate(ids, [first, second]))
    del prepared.token_ids[:]
    prepared.token_ids.extend(ids)
    assert_reference(reference, prepared, tokens_of(answer))


def test_embeddings_beside_samples(pair: Pair, reference: Reference) -> None:
    """A series that the caller has encoded stands beside one that the server encodes."""
    rows = reference.series(wave(180, 3, 2), 100.0).astype(np.float32)
    embedded = types.MultimodalItem(
        modality=types.MODALITY_TIME_SERIES,
        payload_kind=types.PAYLOAD_KIND_EMBEDDINGS,
        tensor=from_array(rows),
    )
    computed = chat(MIXED[1][0], MIXED[0][0], text("Which?"))
    expected = pair.stub.Chat(computed)
    answer = pair.stub.Chat(chat(pb.Part(item=embedded), MIXED[0][0], text("Which?")))
    assert tokens_of(answer) == tokens_of(expected)
    assert (answer.media[0].preprocessed, answer.media[0].num_samples) == (True, 0)
    assert answer.usage.time_series_tokens == expected.usage.time_series_tokens


def formats(samples: np.ndarray) -> dict[str, bytes]:
    """The same samples, exact in 16 bits, in every lossless format."""
    soundfile = pytest.importorskip("soundfile")
    rows = "\n".join(f"{index / 1000:.3f},{','.join(map(repr, row))}" for index, row in enumerate(samples.tolist()))
    files = {"npy": npy(samples), "csv": f"time,a,b\n{rows}\n".encode()}
    for name in ("wav", "flac"):
        file = io.BytesIO()
        soundfile.write(file, samples, 1000, format=name, subtype="PCM_16")
        files[name] = file.getvalue()
    return files


def test_formats_give_one_item(pair: Pair) -> None:
    """npy, wav and flac of equal samples and rate are one item; the rate comes from the file, or from the option."""
    samples = (np.round(np.sin(np.arange(400)[:, None] / [9, 5]) * 20_000) / 2**15).astype(np.float32)
    reports = {}
    for name, data in formats(samples).items():
        given = 1000.0 if name == "npy" else None
        reports[name] = prepare(pair, chat(part(data, given))).media[0]
    assert {name: report.sampling_rate_hz for name, report in reports.items()} == dict.fromkeys(
        reports, pytest.approx(1000.0)
    )
    exact = {reports[name].content_hash for name in ("npy", "wav", "flac")}
    assert len(exact) == 1
    slower = prepare(pair, chat(part(formats(samples)["wav"], 10.0))).media[0]
    assert (slower.sampling_rate_hz, slower.num_tokens) == (10.0, num_series_tokens(400, 10.0))


def test_sources(pair: Pair) -> None:
    """Bytes, data URL and upload of one file give one answer; the request's rate holds for all."""
    data = npy(wave(300, 2))
    header = pb.UploadMediaRequest(header=pb.UploadHeader(media=pb.MediaFile(), size_bytes=len(data)))
    media_id = pair.stub.UploadMedia(iter([header, pb.UploadMediaRequest(chunk=data)])).media_id
    sources = (
        pb.MediaSource(data=data),
        pb.MediaSource(url="data:application/x-npy;base64," + base64.b64encode(data).decode()),
        pb.MediaSource(media_id=media_id),
    )
    answers = []
    for source in sources:
        request = chat(pb.Part(time_series=pb.TimeSeriesPart(media=source)), text("What is it?"))
        request.media_options.time_series.sampling_rate_hz = 50
        answers.append(pair.stub.Chat(request))
    assert len({tuple(tokens_of(answer)) for answer in answers}) == 1
    assert [answer.media[0].sampling_rate_hz for answer in answers] == [50.0] * 3


def test_what_is_announced(pair: Pair) -> None:
    """GetModel says that series are taken, in which formats and up to which size."""
    model = pair.model()
    assert types.MODALITY_TIME_SERIES in model.modalities
    assert list(model.series_formats)[:3] == ["npy", "csv", "wav"]
    assert (model.limits.max_series_samples, model.limits.max_series_channels) == (20_000, 1024)
    assert model.default_media_options.HasField("time_series")


def test_the_command(pair: Pair, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`tessera chat --time-series f.csv --rate 100` answers; `tessera prepare` tells samples and rate."""
    (tmp_path / "f.csv").write_text("\n".join(map(str, range(90))))
    arguments = ["--server", pair.gateway.address, "--time-series", str(tmp_path / "f.csv"), "--rate", "100"]
    assert main(["chat", *arguments, "--max-tokens", "4", "--temperature", "0", "Rising?"]) == 0
    assert capsys.readouterr().out.strip()
    assert main(["prepare", *arguments, "Rising?"]) == 0
    assert "90x1\t90x1\t100 Hz\t1" in capsys.readouterr().out


def test_without_the_vision_encoder(pairs: Pairs, pair: Pair, tiny: Callable[[str], Path]) -> None:
    """Series are answered alike where the vision encoder was left out, and announced alone; a picture is refused."""
    blind = pairs.get(Flags(tiny("interns1_pro"), worker=("--disable-vision-encoder",)))
    request = chat(MIXED[1][0], text("What is it?"))
    assert tokens_of(blind.stub.Chat(request)) == tokens_of(pair.stub.Chat(request))
    assert list(blind.model().modalities) == [types.MODALITY_TIME_SERIES]
    status = outcome(lambda: blind.stub.Chat(mixed_request()))
    assert (status.code, status.reason) == ("FAILED_PRECONDITION", "VISION_DISABLED")
