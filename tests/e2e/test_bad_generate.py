# ruff: noqa: E501 - the tables have one row a line
"""Every malformed raw prompt, item and upload gets its status, its reason and the path of its field.

The base is a good expanded prompt with the patches of a picture and of a clip; each row changes one thing.
The file is long for its table.
"""

import hashlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tessera.tensors import from_array
from tessera.v1 import inference_service_pb2 as pb
from tessera.v1 import types_pb2 as types
from tests.e2e.harness import Flags, Pair, Pairs
from tests.e2e.status import Well, assert_says_nothing_of_the_inside, outcome
from tests.parity.cases import CLIP, SMALL, Case, chat_request, greedy, user

NAN, INF = float("nan"), float("inf")
BASE = Case("base", (user("What is this? ", SMALL, CLIP, " and this?"),))
INVALID = "INVALID_ARGUMENT"
Edit = Callable[[pb.GenerateRequest], Any]


@pytest.fixture(scope="module")
def pair(pairs: Pairs, tiny: Callable[[str], Path]) -> Pair:
    """The default pair on the tiny checkpoint."""
    return pairs.get(Flags(tiny("5.x")))


@pytest.fixture(scope="module")
def well(pair: Pair) -> Well:
    """How the pair looked before any bad request."""
    return Well.look(pair)


@pytest.fixture(autouse=True)
def unharmed(pair: Pair, well: Well, pairs: Pairs) -> Iterator[None]:
    """After each bad request: the same processes, SERVING, and a canary yields its tokens."""
    pairs.get(pair.flags)
    yield
    assert Well.look(pair) == well


@pytest.fixture(scope="module")
def base(pair: Pair) -> pb.GenerateRequest:
    """The good request: final ids, a picture of 12 tokens at some place, a clip of 3 runs of 6, as pixels."""
    prepared = pair.stub.Prepare(pb.PrepareRequest(chat=chat_request(BASE), include_tensors=True))
    assert [len(item.ranges) for item in prepared.items] == [1, 3]
    return pb.GenerateRequest(
        token_ids=types.TokenIds(ids=prepared.token_ids), items=prepared.items, sampling=greedy(3)
    )


@pytest.fixture(scope="module")
def short(pair: Pair, base: pb.GenerateRequest) -> pb.GenerateRequest:
    """The same prompt before expansion: one marker for each item, items without ranges."""
    request = pb.GenerateRequest(
        text="a <|vision_start|><|image_pad|><|vision_end|> b <|vision_start|><|video_pad|><|vision_end|> c",
        items=base.items,
        sampling=greedy(3),
    )
    for item in request.items:
        item.ClearField("ranges")
    return request


def item(index: int, **fields: Any) -> Edit:
    """An edit of one item."""

    def edit(request: pb.GenerateRequest) -> None:
        target = request.items[index]
        for name, value in fields.items():
            if isinstance(value, list):
                target.ClearField(name)
                getattr(target, name).extend(value)
            elif hasattr(value, "SerializeToString"):
                getattr(target, name).CopyFrom(value)
            else:
                setattr(target, name, value)

    return edit


def tensor(array: np.ndarray, kind: int = types.PAYLOAD_KIND_PIXELS_U8, dtype: str | None = None) -> Edit:
    """An edit of the picture's tensor."""
    return item(0, tensor=from_array(array, dtype), payload_kind=kind)


def grid(t: int, h: int, w: int, index: int = 0) -> Edit:
    """An edit of an item's grid."""
    return item(index, grid_thw=types.GridThw(t=t, h=h, w=w))


def ranges(index: int, change: Callable[[list[tuple[int, int]]], list[tuple[int, int]]]) -> Edit:
    """An edit of an item's ranges, as pairs of offset and length."""

    def edit(request: pb.GenerateRequest) -> None:
        target = request.items[index]
        spans = change([(span.offset, span.length) for span in target.ranges])
        target.ClearField("ranges")
        target.ranges.extend(types.PlaceholderRange(offset=offset, length=length) for offset, length in spans)

    return edit


def swap_items(request: pb.GenerateRequest) -> None:
    """The clip first, the picture second; ranges go with them."""
    first, second = list(request.items)
    del request.items[:]
    request.items.extend([second, first])


def both_empty(request: pb.GenerateRequest) -> None:
    """An edit that takes the ranges of all items away from an expanded prompt."""
    for each in request.items:
        each.ClearField("ranges")


def share_a_range(request: pb.GenerateRequest) -> None:
    """An edit that lets the clip's first run be its second."""
    request.items[1].ranges[0].CopyFrom(request.items[1].ranges[1])


GOOD = np.zeros((1, 96, 128, 3), np.uint8)
ROWS: list[tuple[str, Edit, str, str, str]] = [
    # the prompt
    ("no_prompt", lambda r: r.ClearField("token_ids"), INVALID, "FIELD_REQUIRED", "token_ids"),
    ("no_ids", lambda r: r.token_ids.ClearField("ids"), INVALID, "FIELD_REQUIRED", "token_ids.ids"),
    ("empty_text", lambda r: setattr(r, "text", ""), INVALID, "FIELD_REQUIRED", "text"),
    ("unknown_id", lambda r: r.token_ids.ids.insert(2, 640), INVALID, "TOKEN_ID_RANGE", "token_ids.ids[2]"),
    ("negative_id", lambda r: r.token_ids.ids.insert(0, -1), INVALID, "TOKEN_ID_RANGE", "token_ids.ids[0]"),
    ("huge_id", lambda r: r.token_ids.ids.insert(0, 2**31 - 1), INVALID, "TOKEN_ID_RANGE", "token_ids.ids[0]"),
    ("too_long", lambda r: r.token_ids.ids.extend([30] * 5000), INVALID, "PROMPT_TOO_LONG", "token_ids"),
    ("unknown_layout", lambda r: setattr(r, "video_layout", 7), INVALID, "VIDEO_LAYOUT", "video_layout"),
    ("unknown_model", lambda r: setattr(r, "model", "other"), "NOT_FOUND", "MODEL_NOT_FOUND", "model"),
    ("long_salt", lambda r: setattr(r, "cache_salt", bytes(300)), INVALID, "SALT_SIZE", "cache_salt"),
    ("too_many_items", lambda r: r.items.extend([r.items[0]] * 64), INVALID, "TOO_MANY_ITEMS", "items"),
    ("nan_temperature", lambda r: setattr(r.sampling, "temperature", NAN), INVALID, "SAMPLING_PARAMS_INVALID", "sampling.temperature"),
    # ranges
    ("ranges_mixed", lambda r: r.items[1].ClearField("ranges"), INVALID, "RANGES_MIXED", "items[1].ranges"),
    ("ranges_with_text", lambda r: setattr(r, "text", "<|image_pad|><|video_pad|>"), INVALID, "RANGES_WITH_TEXT", "items[0].ranges"),
    ("no_ranges_but_expanded", both_empty, INVALID, "PLACEHOLDER_COUNT", "items"),
    ("item_missing", lambda r: r.items.pop(), INVALID, "PLACEHOLDER_UNCOVERED", "token_ids.ids["),
    ("negative_offset", ranges(0, lambda s: [(-1, s[0][1])]), INVALID, "RANGE_BOUNDS", "items[0].ranges[0]"),
    ("empty_range", ranges(0, lambda s: [(s[0][0], 0)]), INVALID, "RANGE_BOUNDS", "items[0].ranges[0]"),
    ("negative_length", ranges(0, lambda s: [(s[0][0], -3)]), INVALID, "RANGE_BOUNDS", "items[0].ranges[0]"),
    ("past_the_end", ranges(1, lambda s: [*s[:2], (10_000, s[2][1])]), INVALID, "RANGE_BOUNDS", "items[1].ranges[2]"),
    ("overflowing_range", ranges(0, lambda s: [(2**31 - 1, 2**31 - 1)]), INVALID, "RANGE_BOUNDS", "items[0].ranges[0]"),
    ("reversed_ranges", ranges(1, lambda s: s[::-1]), INVALID, "RANGE_ORDER", "items[1].ranges[1]"),
    ("shared_range", share_a_range, INVALID, "RANGE_ORDER", "items[1].ranges[1]"),
    ("overlapping_range", ranges(1, lambda s: [s[0], (s[0][0] + 1, s[1][1]), s[2]]), INVALID, "RANGE_ORDER", "items[1].ranges[1]"),
    ("short_range", ranges(0, lambda s: [(s[0][0], s[0][1] - 1)]), INVALID, "RANGE_LENGTH", "items[0].ranges[0]"),
    ("range_over_text", ranges(0, lambda s: [(s[0][0] - 1, s[0][1])]), INVALID, "RANGE_TOKENS", "items[0].ranges[0]"),
    ("one_range_too_few", ranges(1, lambda s: s[:2]), INVALID, "RANGE_COUNT", "items[1].ranges"),
    ("one_range_too_many", ranges(0, lambda s: [*s, (s[0][0] + 50, 4)]), INVALID, "RANGE_COUNT", "items[0].ranges"),
    ("items_out_of_order", swap_items, INVALID, "RANGE_ORDER", "items[1].ranges[0]"),
    ("wrong_modality", item(0, modality=types.MODALITY_VIDEO), INVALID, "RANGE_TOKENS", "items[0].ranges[0]"),
    # items
    ("no_modality", lambda r: r.items[0].ClearField("modality"), INVALID, "FIELD_REQUIRED", "items[0].modality"),
    ("audio", item(0, modality=types.MODALITY_AUDIO), "UNIMPLEMENTED", "MODALITY_UNSUPPORTED", "items[0].modality"),
    ("series", item(0, modality=types.MODALITY_TIME_SERIES), "UNIMPLEMENTED", "MODALITY_UNSUPPORTED", "items[0].modality"),
    ("no_payload", lambda r: r.items[0].ClearField("tensor"), INVALID, "FIELD_REQUIRED", "items[0].tensor"),
    ("no_kind", lambda r: r.items[0].ClearField("payload_kind"), INVALID, "FIELD_REQUIRED", "items[0].payload_kind"),
    ("kind_of_a_series", tensor(np.zeros((9, 2), np.float32), types.PAYLOAD_KIND_SAMPLES), INVALID, "PAYLOAD_KIND", "items[0].payload_kind"),
    ("unknown_hash", item(0, content_hash=b"x" * 32), "FAILED_PRECONDITION", "ITEM_NOT_FOUND", "items[0].content_hash"),
    ("short_hash", item(1, content_hash=b"x" * 31), INVALID, "HASH_SIZE", "items[1].content_hash"),
    ("empty_hash", item(1, content_hash=b""), INVALID, "HASH_SIZE", "items[1].content_hash"),
    # grids
    ("no_grid", lambda r: r.items[0].ClearField("grid_thw"), INVALID, "GRID_REQUIRED", "items[0].grid_thw"),
    ("zero_grid", grid(1, 0, 8), INVALID, "GRID_INVALID", "items[0].grid_thw"),
    ("negative_grid", grid(1, -6, 8), INVALID, "GRID_INVALID", "items[0].grid_thw"),
    ("huge_grid", grid(1, 2**31 - 2, 2**31 - 2), INVALID, "GRID_INVALID", "items[0].grid_thw"),
    ("odd_grid", grid(1, 3, 16), INVALID, "GRID_INVALID", "items[0].grid_thw"),
    ("turned_grid", grid(1, 8, 6), INVALID, "GRID_MISMATCH", "items[0].tensor.shape"),
    ("image_of_two", grid(2, 6, 8), INVALID, "GRID_INVALID", "items[0].grid_thw.t"),
    ("clip_of_fewer", grid(2, 4, 6, index=1), INVALID, "GRID_MISMATCH", "items[1].grid_thw.t"),
    # tensors
    ("rank_0", lambda r: r.items[0].tensor.ClearField("shape"), INVALID, "TENSOR_SHAPE", "items[0].tensor.shape"),
    ("rank_9", item(0, tensor=types.Tensor(dtype=1, shape=[1] * 9, data=b"1")), INVALID, "TENSOR_SHAPE", "items[0].tensor.shape"),
    ("rank_3", tensor(GOOD[0]), INVALID, "TENSOR_SHAPE", "items[0].tensor.shape"),
    ("zero_extent", item(0, tensor=types.Tensor(dtype=1, shape=[1, 0, 128, 3])), INVALID, "TENSOR_SHAPE", "items[0].tensor.shape"),
    ("negative_extent", item(0, tensor=types.Tensor(dtype=1, shape=[-1, -96, 128, 3])), INVALID, "TENSOR_SHAPE", "items[0].tensor.shape"),
    ("short_tensor", item(0, tensor=types.Tensor(dtype=1, shape=[1, 96, 128, 3], data=b"12")), INVALID, "TENSOR_SIZE", "items[0].tensor.data"),
    ("long_tensor", item(0, tensor=types.Tensor(dtype=1, shape=[1, 96, 128, 3], data=bytes(36865))), INVALID, "TENSOR_SIZE", "items[0].tensor.data"),
    ("claims_an_exabyte", item(0, tensor=types.Tensor(dtype=6, shape=[2**62, 2**62], data=b"1")), INVALID, "TENSOR_SIZE", "items[0].tensor.data"),
    ("no_dtype", item(0, tensor=types.Tensor(shape=[1, 96, 128, 3], data=bytes(36864))), INVALID, "TENSOR_DTYPE", "items[0].tensor.dtype"),
    ("float8", item(0, tensor=types.Tensor(dtype=8, shape=[1, 96, 128, 3], data=bytes(36864))), INVALID, "TENSOR_DTYPE", "items[0].tensor.dtype"),
    ("float_pixels", tensor(GOOD.astype(np.float32)), INVALID, "TENSOR_DTYPE", "items[0].tensor.dtype"),
    ("wrong_height", tensor(GOOD[:, :64]), INVALID, "GRID_MISMATCH", "items[0].tensor.shape"),
    ("four_channels", tensor(np.zeros((1, 96, 128, 4), np.uint8)), INVALID, "GRID_MISMATCH", "items[0].tensor.shape"),
    ("rows_of_patches", tensor(np.zeros((47, 1536), np.float32), types.PAYLOAD_KIND_PATCHES), INVALID, "GRID_MISMATCH", "items[0].tensor.shape"),
    ("width_of_patches", tensor(np.zeros((48, 1535), np.float32), types.PAYLOAD_KIND_PATCHES), INVALID, "GRID_MISMATCH", "items[0].tensor.shape"),
    ("nan_patches", tensor(np.full((48, 1536), NAN, np.float32), types.PAYLOAD_KIND_PATCHES), INVALID, "TENSOR_NOT_FINITE", "items[0].tensor.data"),
    ("infinite_patches", tensor(np.full((48, 1536), INF, np.float16), types.PAYLOAD_KIND_PATCHES), INVALID, "TENSOR_NOT_FINITE", "items[0].tensor.data"),
    ("double_patches", tensor(np.zeros((48, 1536)), types.PAYLOAD_KIND_PATCHES), INVALID, "TENSOR_DTYPE", "items[0].tensor.dtype"),
    ("hidden_size", tensor(np.zeros((12, 63), np.float32), types.PAYLOAD_KIND_EMBEDDINGS), INVALID, "GRID_MISMATCH", "items[0].tensor.shape"),
    ("no_deepstack", tensor(np.zeros((12, 64), np.float32), types.PAYLOAD_KIND_EMBEDDINGS), INVALID, "SIDE_TENSOR_REQUIRED", "items[0].side_tensors[deepstack]"),
    # times
    ("few_times", item(1, timestamps=[0.0, 1.0]), INVALID, "TIMESTAMPS_MISMATCH", "items[1].timestamps"),
    ("descending_times", item(1, timestamps=[3.0, 2.0, 1.0, 0.5, 0.2, 0.1]), INVALID, "TIMESTAMPS_INVALID", "items[1].timestamps"),
    ("nan_time", item(1, timestamps=[0.0, 1.0, 2.0, 3.0, 4.0, NAN]), INVALID, "TIMESTAMPS_INVALID", "items[1].timestamps"),
]  # fmt: skip


def test_the_base_is_good(pair: Pair, base: pb.GenerateRequest, short: pb.GenerateRequest) -> None:
    """Both requests that the rows change are answered, and alike."""
    for request in (base, short):
        assert pair.stub.Generate(request).usage.completion_tokens == 3


@pytest.mark.parametrize(("edit", "code", "reason", "field"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS])
def test_bad_prompts(pair: Pair, base: pb.GenerateRequest, edit: Edit, code: str, reason: str, field: str) -> None:
    """One wrong thing gives its status, reason and field within a second, and says nothing of the inside."""
    request = pb.GenerateRequest.FromString(base.SerializeToString())
    edit(request)
    started = time.monotonic()
    status = outcome(lambda: pair.stub.Generate(request, timeout=20))
    assert (status.code, status.reason) == (code, reason), status.text
    assert status.field == field or (field.endswith("[") and status.field.startswith(field))
    assert time.monotonic() - started < 1
    assert_says_nothing_of_the_inside(status)


SHORT_ROWS: list[tuple[str, Edit, str, str, str]] = [
    ("marker_too_many", lambda r: setattr(r, "text", r.text + "<|image_pad|>"), INVALID, "PLACEHOLDER_COUNT", "items"),
    ("marker_too_few", lambda r: setattr(r, "text", "<|image_pad|>"), INVALID, "PLACEHOLDER_COUNT", "items"),
    ("no_marker", lambda r: setattr(r, "text", "words"), INVALID, "PLACEHOLDER_COUNT", "items"),
    ("no_item", lambda r: r.ClearField("items"), INVALID, "PLACEHOLDER_COUNT", "items"),
    ("markers_swapped", lambda r: setattr(r, "text", "<|video_pad|><|image_pad|>"), INVALID, "PLACEHOLDER_MODALITY", "items[0].modality"),
    ("clip_without_times", lambda r: r.items[1].ClearField("timestamps"), INVALID, "TIMESTAMPS_REQUIRED", "items[1].timestamps"),
    ("enormous_time", item(1, timestamps=[0.0, 1.0, 2.0, 3.0, 4.0, 1e300]), INVALID, "TIMESTAMPS_INVALID", "items[1].timestamps"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("edit", "code", "reason", "field"), [row[1:] for row in SHORT_ROWS], ids=[row[0] for row in SHORT_ROWS]
)
def test_bad_markers(pair: Pair, short: pb.GenerateRequest, edit: Edit, code: str, reason: str, field: str) -> None:
    """A prompt whose markers do not match its items is refused before anything runs."""
    request = pb.GenerateRequest.FromString(short.SerializeToString())
    edit(request)
    status = outcome(lambda: list(pair.stub.StreamGenerate(request, timeout=20)))
    assert (status.code, status.reason, status.field) == (code, reason, field), status.text
    assert_says_nothing_of_the_inside(status)


def test_a_hash_of_another_modality_or_grid(pair: Pair, base: pb.GenerateRequest) -> None:
    """A held item named with another modality, grid or kind than its own is refused."""
    hashes = pair.stub.Prepare(pb.PrepareRequest(chat=chat_request(BASE))).content_hashes
    for fields, field in (
        ({"modality": types.MODALITY_VIDEO}, "items[0].modality"),
        ({"grid_thw": types.GridThw(t=1, h=8, w=6)}, "items[0].grid_thw"),
        ({"payload_kind": types.PAYLOAD_KIND_EMBEDDINGS}, "items[0].payload_kind"),
    ):
        request = pb.GenerateRequest.FromString(base.SerializeToString())
        item(0, content_hash=hashes[0], **fields)(request)
        status = outcome(lambda request=request: pair.stub.Generate(request, timeout=20))
        assert (status.code, status.reason, status.field) == (INVALID, "ITEM_MISMATCH", field)


def test_prepare_of_nothing(pair: Pair) -> None:
    """Prepare needs to be told what to prepare."""
    status = outcome(lambda: pair.stub.Prepare(pb.PrepareRequest()))
    assert (status.code, status.reason, status.field) == (INVALID, "FIELD_REQUIRED", "chat")


def header(**fields: Any) -> pb.UploadMediaRequest:
    """An upload's first message, of a file of 4 bytes unless told otherwise."""
    fields = {"media": pb.MediaFile(mime_type="image/png"), "size_bytes": 4} | fields
    return pb.UploadMediaRequest(header=pb.UploadHeader(**fields))


def chunk(data: bytes = b"1234") -> pb.UploadMediaRequest:
    """A piece of an upload."""
    return pb.UploadMediaRequest(chunk=data)


PIXELS = types.Tensor(dtype=types.D_TYPE_U8, shape=[1, 32, 32, 3])
ITEM = types.MultimodalItem(
    modality=1, payload_kind=types.PAYLOAD_KIND_PIXELS_U8, tensor=PIXELS, grid_thw={"t": 1, "h": 2, "w": 2}
)
RANGED = types.MultimodalItem.FromString(ITEM.SerializeToString())
RANGED.ranges.add(offset=0, length=1)
UPLOADS: list[tuple[str, list[pb.UploadMediaRequest], str, str, str]] = [
    ("nothing", [], INVALID, "FIELD_REQUIRED", "header"),
    ("empty_message", [pb.UploadMediaRequest()], INVALID, "FIELD_REQUIRED", "header"),
    ("chunk_first", [chunk(), header()], INVALID, "FIELD_REQUIRED", "header"),
    ("no_kind", [pb.UploadMediaRequest(header={"size_bytes": 4}), chunk()], INVALID, "FIELD_REQUIRED", "header.media"),
    ("no_size", [header(size_bytes=0), chunk()], INVALID, "UPLOAD_SIZE", "header.size_bytes"),
    ("negative_size", [header(size_bytes=-4), chunk()], INVALID, "UPLOAD_SIZE", "header.size_bytes"),
    ("too_few_bytes", [header(size_bytes=5), chunk()], INVALID, "UPLOAD_SIZE", "header.size_bytes"),
    ("too_many_bytes", [header(size_bytes=3), chunk()], INVALID, "UPLOAD_SIZE", "header.size_bytes"),
    ("header_twice", [header(), header(), chunk()], INVALID, "UPLOAD_ORDER", "chunk"),
    ("huge_chunk", [header(size_bytes=(1 << 20) + 1), chunk(bytes((1 << 20) + 1))], INVALID, "CHUNK_TOO_LARGE", "chunk"),
    ("short_sha", [header(sha256=b"x"), chunk()], INVALID, "HASH_SIZE", "header.sha256"),
    ("wrong_sha", [header(sha256=bytes(32)), chunk()], INVALID, "HASH_MISMATCH", "header.sha256"),
    ("too_large", [header(size_bytes=1 << 40), chunk()], "RESOURCE_EXHAUSTED", "MEDIA_TOO_LARGE", "header.size_bytes"),
    ("item_of_other_size", [header(item={"item": ITEM}), chunk()], INVALID, "TENSOR_SIZE", "header.item.item.tensor.data"),
    (
        "item_with_ranges",
        [header(item={"item": RANGED}, size_bytes=3072), chunk(bytes(3072))],
        INVALID,
        "RANGES_IN_UPLOAD",
        "header.item.item.ranges",
    ),
]  # fmt: skip


@pytest.mark.parametrize(
    ("messages", "code", "reason", "field"), [row[1:] for row in UPLOADS], ids=[row[0] for row in UPLOADS]
)
def test_bad_uploads(pair: Pair, messages: list[Any], code: str, reason: str, field: str) -> None:
    """An upload that does not keep to its header is refused, with the field's path."""
    status = outcome(lambda: pair.stub.UploadMedia(iter(messages), timeout=20))
    assert (status.code, status.reason, status.field) == (code, reason, field), status.text
    assert_says_nothing_of_the_inside(status)


def test_an_upload_is_answered_before_its_bytes(pair: Pair) -> None:
    """A file that is held already is answered at its header, where that says the hash."""
    data = b"some bytes that are no picture"
    digest = hashlib.sha256(data).digest()
    first = pair.stub.UploadMedia(iter([header(size_bytes=len(data)), chunk(data)]))
    assert (first.media_id, first.existed) == (digest, False)
    again = pair.stub.UploadMedia(iter([header(size_bytes=len(data), sha256=digest)]))
    assert (again.media_id, again.existed) == (digest, True)


def test_good_neighbours_do_not_notice(pair: Pair, base: pb.GenerateRequest) -> None:
    """A good request gives its tokens while bad ones fail beside it."""
    alone = list(pair.stub.Generate(base).choices[0].token_ids)
    calls = []
    for name, edit, *_ in ROWS:
        if name in ("nan_patches", "turned_grid", "reversed_ranges", "huge_grid", "hidden_size"):
            request = pb.GenerateRequest.FromString(base.SerializeToString())
            edit(request)
            calls += [pair.stub.Generate.future(request), pair.stub.Generate.future(base)]
    assert [list(call.result().choices[0].token_ids) for call in calls[1::2]] == [alone] * 5
    assert all(call.exception() is not None for call in calls[::2])
