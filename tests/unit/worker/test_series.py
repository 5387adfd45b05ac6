"""Time series in the worker: submissions and headers without a grid, and the engine's batches beside pictures."""

import dataclasses
import math

import numpy as np
import pytest

from tessera.errors import InvalidArgument, ServeError
from tessera.items import MultimodalItem, item_to_proto
from tessera.modality import Modality, PayloadKind
from tessera.tensors import from_array
from tessera.time_series import num_series_tokens
from tessera.v1 import types_pb2 as types
from tessera.v1 import worker_service_pb2 as pb
from tests.fakes.clock import ManualClock
from tests.unit.worker.engine.fakes import HIDDEN, PLACEHOLDER, FakeModel, Harness, greedy_tokens, make_item, place
from worker.engine.item_store import ItemStore
from worker.engine.sequence import SequenceItem, TokenSpan
from worker.models.base import ItemSize
from worker.staging import Upload
from worker.status import geometry_of
from worker.submission import SubmitReader

SERIES = 91
HASH = b"\2" * 32


class SeriesModel(FakeModel):
    """A fake model that takes time series too."""

    def __init__(self) -> None:
        super().__init__()
        self.info = dataclasses.replace(
            self.info, time_series_token_id=SERIES, modalities=("image", "video", "time_series")
        )

    def item_tokens(self, size: ItemSize) -> int:
        if size.modality == "time_series":
            return num_series_tokens(size.length, size.sampling_rate_hz)
        return math.prod(size.grid_thw or ()) // 4


INFO = SeriesModel().info


def series(
    number: int, length: int = 20, channels: int = 1, rate: float = 1.0, kind: PayloadKind = PayloadKind.SAMPLES
) -> MultimodalItem:
    """A series with bytes; at 1 Hz its stride is 2 samples, and four samples make half a token."""
    array = np.full((length, channels), number, np.float32)
    item = MultimodalItem(Modality.TIME_SERIES, kind, b"", "F32", array, sampling_rate_hz=rate)
    return dataclasses.replace(item, content_hash=item.compute_hash())


def tokens_of(item: MultimodalItem) -> int:
    """Tokens that a series owns."""
    assert item.array is not None
    return num_series_tokens(len(item.array), item.sampling_rate_hz)


def placed(item: MultimodalItem, offset: int, length: int | None = None) -> SequenceItem:
    """A series in a prompt."""
    return SequenceItem("time_series", item.content_hash, (TokenSpan(offset, length or tokens_of(item)),))


def message(*ranges: tuple[int, int], **fields: object) -> types.MultimodalItem:
    """A series as a submission names it."""
    spans = [types.PlaceholderRange(offset=offset, length=length) for offset, length in ranges]
    return types.MultimodalItem(modality=types.MODALITY_TIME_SERIES, content_hash=HASH, ranges=spans, **fields)


def submit(*items: types.MultimodalItem) -> pb.Submit:
    """A submission whose prompt has runs of three and of two series tokens."""
    ids = [1, SERIES, SERIES, SERIES, 2, SERIES, SERIES, PLACEHOLDER, PLACEHOLDER]
    return pb.Submit(request_id="a", prompt_token_ids=ids, items=items)


def test_a_submission_names_series_without_a_grid() -> None:
    """Series stand in a submission by their ranges alone, with rate and channels, beside pictures."""
    picture = types.MultimodalItem(
        modality=types.MODALITY_IMAGE,
        content_hash=HASH,
        grid_thw=types.GridThw(t=1, h=2, w=4),
        ranges=[types.PlaceholderRange(offset=7, length=2)],
    )
    items = (message((1, 3), sampling_rate_hz=100.0, channels=2), message((5, 2)), picture)
    group = SubmitReader(INFO, 64).read(submit(*items), owner=0, now_s=0.0)
    assert [(item.modality, item.ranges, item.grid_thw) for item in group.items] == [
        ("time_series", ((1, 3),), None),
        ("time_series", ((5, 2),), None),
        ("image", ((7, 2),), (1, 2, 4)),
    ]


@pytest.mark.parametrize(
    ("item", "reason", "field"),
    [
        (message(), "RANGE_COUNT", "ranges"),
        (message((1, 2), (5, 2)), "RANGE_COUNT", "ranges"),
        (message((0, 3)), "RANGE_TOKENS", "ranges[0]"),
        (message((7, 2)), "RANGE_TOKENS", "ranges[0]"),
        (message((1, 99)), "RANGE_BOUNDS", "ranges[0]"),
        (message((1, 0)), "RANGE_BOUNDS", "ranges[0]"),
        (message((1, 3), grid_thw=types.GridThw(t=1, h=2, w=2)), "GRID_FOREIGN", "grid_thw"),
        (message((1, 3), channels=-2), "SERIES_CHANNELS", "channels"),
        (message((1, 3), sampling_rate_hz=-1), "SAMPLING_RATE", "sampling_rate_hz"),
    ],
)
def test_submissions_with_a_wrong_series(item: types.MultimodalItem, reason: str, field: str) -> None:
    """What is wrong with a series' place shows before its bytes are here."""
    with pytest.raises(InvalidArgument) as caught:
        SubmitReader(INFO, 64).read(submit(item), owner=0, now_s=0.0)
    assert (caught.value.reason, caught.value.field) == (reason, f"items[0].{field}")


def upload(item: MultimodalItem, max_tokens: int = 8, **fields: object) -> MultimodalItem:
    """Stage an item and return what the worker keeps; `fields` replace the header's."""
    header = item_to_proto(item.without_bytes())
    header.tensor.CopyFrom(from_array(item.array, item.dtype, with_data=False))  # type: ignore[arg-type]
    for name, value in fields.items():
        setattr(header, name, value)
    staged = pb.StageItemHeader(item=header, content_hash=item.content_hash, size_bytes=item.size_bytes)
    begun = Upload(staged, ItemStore(1 << 16, 60.0, ManualClock()), SubmitReader(INFO, 64), max_tokens)
    begun.feed(item.array.tobytes())  # type: ignore[union-attr]
    return begun.build()


def test_series_are_staged() -> None:
    """Samples and embeddings come in chunks like any item; the rate is part of what names them."""
    samples, rows = series(1, channels=3), series(1, 5, HIDDEN, kind=PayloadKind.EMBEDDINGS)
    assert upload(samples).channels == 3
    assert upload(rows).array is not None
    with pytest.raises(InvalidArgument) as caught:
        upload(samples, sampling_rate_hz=2.0)
    assert caught.value.reason == "HASH_MISMATCH"


@pytest.mark.parametrize(
    ("item", "fields", "reason", "field"),
    [
        (series(1, 4), {}, "SERIES_TOO_SHORT", "item.tensor.shape"),
        (series(1, 20, 1025), {}, "SERIES_CHANNELS", "item.tensor.shape"),
        (series(1, 200), {}, "ITEM_TOO_LARGE", "item.tensor.shape"),
        (series(1, 9, HIDDEN, kind=PayloadKind.EMBEDDINGS), {}, "ITEM_TOO_LARGE", "item.tensor.shape"),
        (series(1, 5, HIDDEN + 1, kind=PayloadKind.EMBEDDINGS), {}, "TENSOR_SHAPE", "tensor.shape"),
        (series(1, 20, 2), {"channels": 3}, "SERIES_CHANNELS", "channels"),
        (series(1), {"payload_kind": types.PAYLOAD_KIND_PATCHES}, "PAYLOAD_KIND", "payload_kind"),
        (series(1), {"sampling_rate_hz": math.inf}, "SAMPLING_RATE", "item.sampling_rate_hz"),
    ],
)
def test_series_that_are_not_staged(item: MultimodalItem, fields: dict[str, object], reason: str, field: str) -> None:
    """A header that announces what cannot be encoded is refused before bytes come, the rest when they have."""
    with pytest.raises(ServeError) as caught:
        upload(item, **fields)
    assert (caught.value.reason, caught.value.field) == (reason, field)


def test_geometry_says_whether_series_are_taken() -> None:
    """Items are checked against what the model takes."""
    assert geometry_of(INFO).time_series
    assert not geometry_of(FakeModel().info).time_series


def test_several_series_beside_a_picture_in_one_batch() -> None:
    """Series of other length, rate and channels, and a picture, are encoded together and land in their places."""
    model = SeriesModel()
    first, second, third = series(1, 20), series(2, 33, 3, rate=0.0), series(3, 400, 2, rate=100.0)
    counts = [tokens_of(item) for item in (first, second, third)]
    assert len(set(counts)) == 3
    picture = make_item(4, 3)
    prompt, items = [5], []
    for item in (first, picture, second, third):
        offset = len(prompt)
        if item is picture:
            items.append((item, place(item, (offset, 3))))
            prompt += [PLACEHOLDER] * 3 + [6]
        else:
            items.append((item, placed(item, offset)))
            prompt += [SERIES] * tokens_of(item) + [7]
    harness = Harness(model, max_batched_tokens=64, max_model_len=64)
    harness.stage(*(item for item, _ in items))
    harness.add("a", prompt, [where for _, where in items])
    harness.add("b", [9, *[SERIES] * counts[0]], [placed(first, 1)])
    harness.run()
    assert harness.tokens["a", 0] == greedy_tokens(prompt, items)
    assert harness.tokens["b", 0] == greedy_tokens([9, *[SERIES] * counts[0]], [(first, placed(first, 1))])
    assert len(model.encoded) == 4


@pytest.mark.slow  # the failure is logged with its traceback
def test_ranges_that_are_not_the_series_tokens() -> None:
    """A series whose bytes own other tokens than its range covers fails its request, typed, and no other."""
    model = SeriesModel()
    good, bad = series(1), series(2)
    harness = Harness(model)
    harness.stage(good, bad)
    harness.add("good", [5, *[SERIES] * tokens_of(good)], [placed(good, 1)])
    harness.add("bad", [5, SERIES, SERIES, SERIES], [placed(bad, 1, 3)])
    assert tokens_of(bad) == 2
    harness.run()
    failure = harness.ends["bad", 0].failure
    assert failure is not None and failure.reason == "RANGE_LENGTH"
    prompt = [5, *[SERIES] * tokens_of(good)]
    assert harness.tokens["good", 0] == greedy_tokens(prompt, [(good, placed(good, 1))])


@pytest.mark.slow  # the failure is logged with its traceback
def test_embeddings_of_a_series_count_their_rows() -> None:
    """Precomputed rows are counted, whatever the rate would give."""
    rows = series(1, 5, HIDDEN, rate=100.0, kind=PayloadKind.EMBEDDINGS)
    harness = Harness(SeriesModel())
    harness.stage(rows)
    harness.add("short", [5, *[SERIES] * 4], [placed(rows, 1, 4)])
    harness.run()
    failure = harness.ends["short", 0].failure
    assert failure is not None and failure.reason == "RANGE_LENGTH"
