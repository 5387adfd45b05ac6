"""Time series that are refused over gRPC: status, reason and field, and the next request is answered."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tessera.tensors import from_array
from tessera.v1 import inference_service_pb2 as pb
from tessera.v1 import types_pb2 as types
from tests.e2e.harness import Flags, Pair, Pairs
from tests.e2e.series import chat, generate, npy, part, prepare, text, tokens_of, wave
from tests.e2e.status import Status, assert_says_nothing_of_the_inside, outcome
from tests.parity.cases import SMALL


@pytest.fixture
def pair(pairs: Pairs, tiny: Callable[[str], Path]) -> Pair:
    """A pair with a small budget of samples."""
    return pairs.get(Flags(tiny("interns1_pro"), gateway=("--max-series-samples", "20000")))


FIELD = "messages[0].parts[0].time_series"
BAD: list[tuple[str, pb.ChatRequest, str, str, str]] = [
    ("word", chat(part(b"1\n2\nx\n")), "INVALID_ARGUMENT", "SERIES_VALUE", f"{FIELD}.media"),
    ("ragged", chat(part(b"1,2\n3\n")), "INVALID_ARGUMENT", "SERIES_SHAPE", f"{FIELD}.media"),
    ("truncated", chat(part(npy(wave(90))[:-1])), "INVALID_ARGUMENT", "SERIES_UNREADABLE", f"{FIELD}.media"),
    (
        "objects",
        chat(part(npy(np.array([None])[:0].astype("S1")))),
        "INVALID_ARGUMENT",
        "SERIES_DTYPE",
        f"{FIELD}.media",
    ),
    ("short", chat(part(npy(wave(4)))), "INVALID_ARGUMENT", "SERIES_TOO_SHORT", f"{FIELD}.media"),
    ("transposed", chat(part(npy(wave(2000).T))), "INVALID_ARGUMENT", "SERIES_CHANNELS", f"{FIELD}.media"),
    ("NaN", chat(part(npy(np.full(90, np.nan)))), "INVALID_ARGUMENT", "SERIES_VALUE", f"{FIELD}.media"),
    ("long", chat(part(npy(wave(20_001)))), "RESOURCE_EXHAUSTED", "SERIES_TOO_LARGE", f"{FIELD}.media"),
    ("picture", chat(part(SMALL.file)), "INVALID_ARGUMENT", "SERIES_UNREADABLE", f"{FIELD}.media"),
    *(
        (
            f"rate {rate}",
            chat(part(npy(wave(90)), rate)),
            "INVALID_ARGUMENT",
            "SAMPLING_RATE",
            f"{FIELD}.options.sampling_rate_hz",
        )
        for rate in (0.0, -1.0, float("inf"), float("nan"))
    ),
    (
        "system",
        pb.ChatRequest(messages=[pb.Message(role=pb.ROLE_SYSTEM, parts=[part(npy(wave(90)))])]),
        "INVALID_ARGUMENT",
        "MEDIA_ROLE",
        FIELD,
    ),
    (
        "audio",
        chat(pb.Part(audio=pb.AudioPart(media=pb.MediaSource(data=b"RIFF")))),
        "UNIMPLEMENTED",
        "MODALITY_UNSUPPORTED",
        "messages[0].parts[0].audio",
    ),
    (
        "unknown upload",
        chat(pb.Part(time_series=pb.TimeSeriesPart(media=pb.MediaSource(media_id=bytes(32))))),
        "FAILED_PRECONDITION",
        "ITEM_NOT_FOUND",
        f"{FIELD}.media.media_id",
    ),
    (
        "URL",
        chat(pb.Part(time_series=pb.TimeSeriesPart(media=pb.MediaSource(url="https://example.org/a.csv")))),
        "PERMISSION_DENIED",
        "URL_FORBIDDEN",
        f"{FIELD}.media.url",
    ),
]


def samples_item(shape: tuple[int, ...], **fields: object) -> types.MultimodalItem:
    """A series as an item."""
    values: dict = {
        "modality": types.MODALITY_TIME_SERIES,
        "payload_kind": types.PAYLOAD_KIND_SAMPLES,
        "tensor": from_array(np.ones(shape, np.float32)),
    }
    return types.MultimodalItem(**(values | fields))


BAD += [
    ("item of a word", chat(pb.Part(item=samples_item((90,)))), "INVALID_ARGUMENT", "TENSOR_SHAPE", "tensor.shape"),
    ("short item", chat(pb.Part(item=samples_item((4, 1)))), "INVALID_ARGUMENT", "SERIES_TOO_SHORT", "tensor.shape"),
    (
        "long item",
        chat(pb.Part(item=samples_item((20_001, 1)))),
        "RESOURCE_EXHAUSTED",
        "SERIES_TOO_LARGE",
        "tensor.shape",
    ),
    (
        "item with a grid",
        chat(pb.Part(item=samples_item((90, 1), grid_thw=types.GridThw(t=1, h=2, w=2)))),
        "INVALID_ARGUMENT",
        "GRID_FOREIGN",
        "grid_thw",
    ),
    (
        "item of other channels",
        chat(pb.Part(item=samples_item((90, 2), channels=3))),
        "INVALID_ARGUMENT",
        "SERIES_CHANNELS",
        "channels",
    ),
    (
        "narrow embeddings",
        chat(pb.Part(item=samples_item((9, 63), payload_kind=types.PAYLOAD_KIND_EMBEDDINGS))),
        "INVALID_ARGUMENT",
        "TENSOR_SHAPE",
        "tensor.shape",
    ),
]


@pytest.mark.parametrize(("request_", "code", "reason", "field"), [r[1:] for r in BAD], ids=[r[0] for r in BAD])
def test_refused(pair: Pair, request_: pb.ChatRequest, code: str, reason: str, field: str) -> None:
    """What cannot be served is refused with status, reason and field, and the next request is answered."""
    pids = pair.pids
    status = outcome(lambda: pair.stub.Chat(request_))
    if field[0] != "m":
        field = f"messages[0].parts[0].item.{field}"
    assert (status.code, status.reason, status.field) == (code, reason, field)
    assert_says_nothing_of_the_inside(status)
    assert len(tokens_of(pair.stub.Chat(chat(part(npy(wave(90))), max_tokens=2)))) == 2
    assert pair.pids == pids


def test_prompts_that_do_not_match_their_series(pair: Pair) -> None:
    """A range of another length, a missing placeholder and another rate than the held item's are refused."""
    prepared = prepare(pair, chat(part(npy(wave(180, 3, 2)), 100.0)))
    item, ids = prepared.items[0], list(prepared.token_ids)
    item.ranges[0].length -= 1
    assert refused(pair, generate(ids, [item])) == ("RANGE_LENGTH", "items[0].ranges[0]")
    item.ClearField("ranges")
    assert refused(pair, generate([11, 12], [item])) == ("PLACEHOLDER_COUNT", "items")
    named = types.MultimodalItem(
        modality=types.MODALITY_TIME_SERIES, content_hash=prepared.content_hashes[0], sampling_rate_hz=7.0
    )
    assert refused(pair, generate(ids, [named])) == ("ITEM_MISMATCH", "items[0].sampling_rate_hz")


def refused(pair: Pair, request: pb.GenerateRequest) -> tuple[str, str]:
    """Reason and field of a refusal."""
    status: Status = outcome(lambda: pair.stub.Generate(request))
    assert status.code == "INVALID_ARGUMENT"
    return status.reason, status.field


def test_a_model_without_the_modality(pairs: Pairs, tiny: Callable[[str], Path]) -> None:
    """A series for a model that takes none is unimplemented, before its URL is looked at."""
    pair = pairs.get(Flags(tiny("5.x")))
    source = pb.MediaSource(url="https://example.org/a.csv")
    request = chat(text("What?"), pb.Part(time_series=pb.TimeSeriesPart(media=source)))
    status = outcome(lambda: pair.stub.Chat(request))
    field = "messages[0].parts[1].time_series"
    assert (status.code, status.reason, status.field) == ("UNIMPLEMENTED", "MODALITY_UNSUPPORTED", field)
    status = outcome(lambda: pair.stub.Generate(generate([11], [samples_item((90, 1))])))
    assert (status.code, status.field) == ("UNIMPLEMENTED", "items[0].modality")
    model = pair.model()
    assert types.MODALITY_TIME_SERIES not in model.modalities
    assert (list(model.series_formats), model.limits.max_series_samples) == ([], 0)
    assert not model.default_media_options.HasField("time_series")
