# ruff: noqa: E501 - the tables have one row a line
"""What is wrong in one family alone gets its status, its reason and the path of its field, and hurts nobody.

The base of each family is a good expanded prompt with a picture and a clip, and a series where the family has them;
each row changes one thing. What all families share is in test_bad_generate.py and test_bad_chat.py.
The file is long for its tables.
"""

import json
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
from tests.e2e.test_bad_generate import both_empty, grid, item, ranges, tensor
from tests.parity.cases import CLIP, SMALL, Case, Turn, chat_request, greedy, user

NAN, INF = float("nan"), float("inf")
INVALID, PATCHES = "INVALID_ARGUMENT", types.PAYLOAD_KIND_PATCHES
SAMPLES, EMBEDDINGS = types.PAYLOAD_KIND_SAMPLES, types.PAYLOAD_KIND_EMBEDDINGS
GLM, QWEN, INTERN = ("glm4v",), ("qwen3_5",), ("interns1_pro",)
ALL = GLM + QWEN + INTERN  # one of each processor
SIX_BY_EIGHT = types.GridThw(t=1, h=6, w=8)
Edit = Callable[[pb.GenerateRequest], Any]


@pytest.fixture(scope="module")
def wells() -> dict[str, Well]:
    """How each family's pair looked before any bad request."""
    return {}


@pytest.fixture
def pair_of(pairs: Pairs, tiny: Callable[[str], Path], wells: dict[str, Well]) -> Iterator[Callable[[str], Pair]]:
    """The default pair of a family; after the test the same processes serve, and a canary yields its tokens."""
    used: dict[str, Pair] = {}

    def get(family: str) -> Pair:
        used[family] = pairs.get(Flags(tiny(family)))
        if family not in wells:
            wells[family] = Well.look(used[family])
        return used[family]

    yield get
    for family, pair in used.items():
        assert Well.look(pair) == wells[family]


@pytest.fixture(scope="module")
def bases(pairs: Pairs, tiny: Callable[[str], Path]) -> Callable[[str], pb.GenerateRequest]:
    """The good request of a family: final ids, and items with ranges."""
    made: dict[str, pb.GenerateRequest] = {}

    def make(family: str) -> pb.GenerateRequest:
        if family not in made:
            stub = pairs.get(Flags(tiny(family))).stub
            prepared = stub.Prepare(pb.PrepareRequest(chat=chat_of(family), include_tensors=True))
            ids = types.TokenIds(ids=prepared.token_ids)
            made[family] = pb.GenerateRequest(token_ids=ids, items=prepared.items, sampling=greedy(3))
        copy = pb.GenerateRequest()
        copy.CopyFrom(made[family])
        return copy

    return make


def chat_of(family: str) -> pb.ChatRequest:
    """A picture, a clip and, where the family has them, a series of 1000 samples in 2 channels."""
    request = chat_request(Case("base", (user("What is this? ", SMALL, CLIP, " and this?"),)), max_tokens=3)
    if family in INTERN:
        part = request.messages[0].parts.add().time_series
        part.media.data = b"\n".join(b"%d,%d" % (i % 7, i % 11) for i in range(1000))
        part.options.sampling_rate_hz = 100.0
    return request


def test_the_bases_are_good(pair_of: Callable[[str], Pair], bases: Callable[[str], pb.GenerateRequest]) -> None:
    """The requests that the rows change are answered."""
    for family in ALL:
        request = bases(family)
        assert [len(each.ranges) for each in request.items[:2]] == [1, 3]
        assert pair_of(family).stub.Generate(request).usage.completion_tokens == 3


# ---- raw prompts with ranges


def zeros(*shape: int) -> np.ndarray:
    """Floats that encode nothing."""
    return np.zeros(shape, np.float32)


def series(array: np.ndarray, kind: int = SAMPLES, **fields: Any) -> Edit:
    """An edit of the series' tensor and fields."""
    return item(2, tensor=from_array(array), payload_kind=kind, **fields)


def fill_clip_with_its_marker(request: pb.GenerateRequest) -> None:
    """GLM's frames as the token that marks a clip, in place of the picture's."""
    marker = GLM_MARKERS["<|video|>"]
    for span in request.items[1].ranges:
        request.token_ids.ids[span.offset : span.offset + span.length] = [marker] * span.length


def one_more(index: int) -> Edit:
    """An edit that adds a placeholder behind an item's last range, after the end marker."""

    def edit(request: pb.GenerateRequest) -> None:
        span = request.items[index].ranges[-1]
        request.token_ids.ids.append(request.token_ids.ids[span.offset])

    return edit


def one_less(index: int) -> Edit:
    """An edit that turns an item's last placeholder into a word."""

    def edit(request: pb.GenerateRequest) -> None:
        span = request.items[index].ranges[-1]
        request.token_ids.ids[span.offset + span.length - 1] = 40

    return edit


def swap_ranges(request: pb.GenerateRequest) -> None:
    """The picture's ranges for the clip, and the clip's for the picture."""
    first, second = ([(r.offset, r.length) for r in each.ranges] for each in request.items[:2])
    ranges(0, lambda _: second)(request)
    ranges(1, lambda _: first)(request)


def swap_items(request: pb.GenerateRequest) -> None:
    """The clip first, the picture second; ranges go with them."""
    first, second, *rest = list(request.items)
    del request.items[:]
    request.items.extend([second, first, *rest])


def tiny_ids(make: Callable[[], Any], *names: str) -> dict[str, int]:
    """Ids of special tokens of a tiny tokenizer."""
    tokenizer = make()
    return {name: tokenizer.token_to_id(name) for name in names}


def glm_tokenizer() -> Any:
    """GLM's."""
    from tests.tiny_glm4v import build_tokenizer

    return build_tokenizer()


GLM_MARKERS = tiny_ids(glm_tokenizer, "<|video|>", "<|begin_of_video|>", "<|end_of_video|>", "<|image|>")

ROWS: list[tuple[str, tuple[str, ...], Edit, str, str, str]] = [
    # grids and shapes: GLM's patches are 14 pixels wide, the others' 16
    ("odd_grid", ALL, grid(1, 3, 16), INVALID, "GRID_INVALID", "items[0].grid_thw"),
    ("pixels_of_patches_of_16", GLM, item(0, tensor=from_array(np.zeros((1, 96, 128, 3), np.uint8)), grid_thw=SIX_BY_EIGHT), INVALID, "GRID_MISMATCH", "items[0].tensor.shape"),
    ("pixels_of_patches_of_14", QWEN + INTERN, item(0, tensor=from_array(np.zeros((1, 84, 112, 3), np.uint8)), grid_thw=SIX_BY_EIGHT), INVALID, "GRID_MISMATCH", "items[0].tensor.shape"),
    ("patches_of_1536", GLM, item(0, tensor=from_array(zeros(48, 1536)), payload_kind=PATCHES, grid_thw=SIX_BY_EIGHT), INVALID, "GRID_MISMATCH", "items[0].tensor.shape"),
    ("patches_of_1176", QWEN + INTERN, item(0, tensor=from_array(zeros(48, 1176)), payload_kind=PATCHES, grid_thw=SIX_BY_EIGHT), INVALID, "GRID_MISMATCH", "items[0].tensor.shape"),
    ("still_of_two_patches_of_time", ALL, grid(2, 6, 8), INVALID, "GRID_INVALID", "items[0].grid_thw.t"),
    ("width_of_embeddings", ALL, tensor(zeros(12, 63), EMBEDDINGS), INVALID, "GRID_MISMATCH", "items[0].tensor.shape"),
    ("nan_embeddings", ALL, tensor(np.full((12, 64), NAN, np.float32), EMBEDDINGS), INVALID, "TENSOR_NOT_FINITE", "items[0].tensor.data"),
    # ranges
    ("clip_of_markers", GLM, fill_clip_with_its_marker, INVALID, "RANGE_TOKENS", "items[1].ranges[0]"),
    ("frames_reversed", ALL, ranges(1, lambda s: s[::-1]), INVALID, "RANGE_ORDER", "items[1].ranges[1]"),
    ("frame_missing", ALL, ranges(1, lambda s: s[1:]), INVALID, "RANGE_COUNT", "items[1].ranges"),
    ("frames_as_one_range", GLM, ranges(1, lambda s: [(s[0][0], sum(n for _, n in s))]), INVALID, "RANGE_COUNT", "items[1].ranges"),
    ("ranges_swapped", ALL, swap_ranges, INVALID, "RANGE_COUNT", "items[0].ranges"),
    ("items_swapped", ALL, swap_items, INVALID, "RANGE_ORDER", "items[1].ranges[0]"),
    ("no_ranges_but_expanded", ALL, both_empty, INVALID, "PLACEHOLDER_COUNT", "items"),
    ("placeholder_too_many", ALL, one_more(1), INVALID, "PLACEHOLDER_UNCOVERED", "token_ids.ids["),
    ("placeholder_too_few", ALL, one_less(1), INVALID, "RANGE_TOKENS", "items[1].ranges[2]"),
    ("clip_missing", QWEN + GLM, lambda r: r.items.pop(), INVALID, "PLACEHOLDER_UNCOVERED", "token_ids.ids["),
    # a series where there is none
    ("series", QWEN + GLM, item(0, modality=types.MODALITY_TIME_SERIES, tensor=from_array(zeros(900, 1)), payload_kind=SAMPLES), "UNIMPLEMENTED", "MODALITY_UNSUPPORTED", "items[0].modality"),
    ("rate_of_a_picture", ALL, item(0, sampling_rate_hz=100.0), INVALID, "FIELD_FOREIGN", "items[0].sampling_rate_hz"),
    ("channels_of_a_clip", ALL, item(1, channels=3), INVALID, "FIELD_FOREIGN", "items[1].channels"),
    ("samples_of_a_picture", ALL, tensor(zeros(9, 2), SAMPLES), INVALID, "PAYLOAD_KIND", "items[0].payload_kind"),
    # series
    ("series_too_short", INTERN, series(zeros(48, 2)), INVALID, "SERIES_TOO_SHORT", "items[2].tensor.shape"),
    ("series_of_one_sample", INTERN, series(zeros(1, 1), channels=0), INVALID, "SERIES_TOO_SHORT", "items[2].tensor.shape"),
    ("series_with_nan", INTERN, series(np.full((1000, 2), NAN, np.float32)), INVALID, "TENSOR_NOT_FINITE", "items[2].tensor.data"),
    ("series_with_infinity", INTERN, series(np.full((1000, 2), -INF, np.float32)), INVALID, "TENSOR_NOT_FINITE", "items[2].tensor.data"),
    ("series_of_many_channels", INTERN, series(zeros(1000, 1025), channels=0), INVALID, "SERIES_CHANNELS", "items[2].tensor.shape"),
    ("series_transposed", INTERN, series(zeros(2, 3000), channels=0), INVALID, "SERIES_CHANNELS", "items[2].tensor.shape"),
    ("series_of_other_channels", INTERN, item(2, channels=3), INVALID, "SERIES_CHANNELS", "items[2].channels"),
    ("series_of_negative_channels", INTERN, item(2, channels=-1), INVALID, "SERIES_CHANNELS", "items[2].channels"),
    ("series_of_doubles", INTERN, series(np.zeros((1000, 2))), INVALID, "TENSOR_DTYPE", "items[2].tensor.dtype"),
    ("series_of_halves", INTERN, series(np.zeros((1000, 2), np.float16)), INVALID, "TENSOR_DTYPE", "items[2].tensor.dtype"),
    ("series_of_rank_1", INTERN, series(zeros(1000)), INVALID, "TENSOR_SHAPE", "items[2].tensor.shape"),
    ("series_of_rank_3", INTERN, series(zeros(1, 1000, 2)), INVALID, "TENSOR_SHAPE", "items[2].tensor.shape"),
    ("series_with_grid", INTERN, grid(1, 2, 2, index=2), INVALID, "GRID_FOREIGN", "items[2].grid_thw"),
    ("series_as_patches", INTERN, series(zeros(1000, 2), PATCHES), INVALID, "PAYLOAD_KIND", "items[2].payload_kind"),
    ("negative_rate", INTERN, item(2, sampling_rate_hz=-1.0), INVALID, "SAMPLING_RATE", "items[2].sampling_rate_hz"),
    ("nan_rate", INTERN, item(2, sampling_rate_hz=NAN), INVALID, "SAMPLING_RATE", "items[2].sampling_rate_hz"),
    ("infinite_rate", INTERN, item(2, sampling_rate_hz=INF), INVALID, "SAMPLING_RATE", "items[2].sampling_rate_hz"),
    ("another_rate", INTERN, item(2, sampling_rate_hz=5.0), INVALID, "RANGE_LENGTH", "items[2].ranges[0]"),
    ("another_length", INTERN, series(zeros(2000, 2)), INVALID, "RANGE_LENGTH", "items[2].ranges[0]"),
    ("series_of_two_ranges", INTERN, ranges(2, lambda s: [(s[0][0], 2), (s[0][0] + 2, s[0][1] - 2)]), INVALID, "RANGE_COUNT", "items[2].ranges"),
    ("series_placeholder_too_many", INTERN, one_more(2), INVALID, "PLACEHOLDER_UNCOVERED", "token_ids.ids["),
    ("series_placeholder_too_few", INTERN, one_less(2), INVALID, "RANGE_TOKENS", "items[2].ranges[0]"),
    ("series_missing", INTERN, lambda r: r.items.pop(), INVALID, "PLACEHOLDER_UNCOVERED", "token_ids.ids["),
    ("series_embeddings_of_another_width", INTERN, series(zeros(11, 63), EMBEDDINGS), INVALID, "TENSOR_SHAPE", "items[2].tensor.shape"),
    ("series_embeddings_of_another_count", INTERN, series(zeros(5, 64), EMBEDDINGS), INVALID, "RANGE_LENGTH", "items[2].ranges[0]"),
]  # fmt: skip
CASES = [(f"{row[0]}-{family}", family, *row[2:]) for row in ROWS for family in row[1]]


@pytest.mark.parametrize(
    ("family", "edit", "code", "reason", "field"), [c[1:] for c in CASES], ids=[c[0] for c in CASES]
)
def test_bad_prompts(
    family: str,
    edit: Edit,
    code: str,
    reason: str,
    field: str,
    pair_of: Callable[[str], Pair],
    bases: Callable[[str], pb.GenerateRequest],
) -> None:
    """One wrong thing gives its status, reason and field within a second, and says nothing of the inside."""
    stub, request = pair_of(family).stub, bases(family)
    edit(request)
    started = time.monotonic()
    status = outcome(lambda: stub.Generate(request, timeout=20))
    assert (status.code, status.reason) == (code, reason), status.text
    assert status.field == field or (field.endswith("[") and status.field.startswith(field)), status
    assert time.monotonic() - started < 1
    assert_says_nothing_of_the_inside(status)


# ---- raw prompts with markers


def said(text: str, *kept: int) -> Edit:
    """An edit that asks with markers in text, and the items of these indices without ranges."""

    def edit(request: pb.GenerateRequest) -> None:
        items = [request.items[index] for index in kept]
        del request.items[:]
        request.items.extend(items)
        for each in request.items:
            each.ClearField("ranges")
        request.text = text

    return edit


def swapped_frames(request: pb.GenerateRequest) -> None:
    """A picture where a frame of the clip stands: both have one token, and one range of it."""
    ids = tuple(GLM_MARKERS[name] for name in ("<|image|>", "<|begin_of_video|>", "<|image|>", "<|end_of_video|>"))
    picture, clip = request.items[:2]
    del request.items[:]
    for each, index in ((clip, 0), (picture, 2)):
        each.ClearField("ranges")
        frames = 2 if each.modality == types.MODALITY_VIDEO else 1
        each.grid_thw.CopyFrom(types.GridThw(t=1, h=2, w=2))
        each.tensor.CopyFrom(from_array(np.zeros((frames, 28, 28, 3), np.uint8)))
        del each.timestamps[frames:]
        each.ranges.add(offset=index, length=1)
        request.items.add().CopyFrom(each)
    request.token_ids.ids[:] = ids


IMAGE_OF = {"glm4v": "<|image|>", "qwen3_5": "<|image_pad|>", "interns1_pro": "<|image_pad|>"}
CLIP_MARKER, SERIES_MARKER = "<|begin_of_video|><|video|><|end_of_video|>", "<|ts|><TS_CONTEXT><|/ts|>"
MARKED: list[tuple[str, tuple[str, ...], Edit, str, str, str]] = [
    ("marker_too_many", GLM, said(f"<|image|>{CLIP_MARKER}<|image|>", 0, 1), INVALID, "PLACEHOLDER_COUNT", "items"),
    ("marker_too_few", QWEN, said("<|image_pad|>", 0, 1), INVALID, "PLACEHOLDER_COUNT", "items"),
    ("no_series_marker", INTERN, said("<|image_pad|>", 0, 2), INVALID, "PLACEHOLDER_COUNT", "items"),
    ("markers_swapped", GLM, said(f"{CLIP_MARKER}<|image|>", 0, 1), INVALID, "PLACEHOLDER_MODALITY", "items[0].modality"),
    ("series_for_a_picture", INTERN, said("<|image_pad|>", 2), INVALID, "PLACEHOLDER_MODALITY", "items[0].modality"),
    ("picture_for_a_series", INTERN, said(SERIES_MARKER, 0), INVALID, "PLACEHOLDER_MODALITY", "items[0].modality"),
    ("clip_without_its_markers", GLM, said("a <|video|> b", 1), INVALID, "PLACEHOLDER_MODALITY", "items[0].modality"),
    ("clip_behind_its_markers", GLM, said(f"{CLIP_MARKER}<|video|>", 1, 1), INVALID, "PLACEHOLDER_MODALITY", "items[1].modality"),
    ("picture_in_a_clip", GLM, said("<|begin_of_video|><|image|><|end_of_video|>", 0), INVALID, "PLACEHOLDER_MODALITY", "items[0].modality"),
    ("frame_and_picture_swapped", GLM, swapped_frames, INVALID, "PLACEHOLDER_MODALITY", "items[0].modality"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("family", "edit", "code", "reason", "field"),
    [(family, *row[2:]) for row in MARKED for family in row[1]],
    ids=[f"{row[0]}-{family}" for row in MARKED for family in row[1]],
)
def test_bad_markers(
    family: str,
    edit: Edit,
    code: str,
    reason: str,
    field: str,
    pair_of: Callable[[str], Pair],
    bases: Callable[[str], pb.GenerateRequest],
) -> None:
    """Markers that do not match the items, or stand where the family has no place for them, are refused."""
    stub, request = pair_of(family).stub, bases(family)
    edit(request)
    status = outcome(lambda: list(stub.StreamGenerate(request, timeout=20)))
    assert (status.code, status.reason, status.field) == (code, reason, field), status.text
    assert_says_nothing_of_the_inside(status)


# ---- conversations


def args(**values: Any) -> Callable[[pb.ChatRequest], Any]:
    """An edit of the template's arguments."""
    return lambda request: request.template_args.update(values)


def turns(*turns: Turn) -> Callable[[pb.ChatRequest], Any]:
    """An edit of the whole conversation."""

    def edit(request: pb.ChatRequest) -> None:
        request.messages.clear()
        request.messages.extend(chat_request(Case("turns", turns)).messages)

    return edit


SYSTEM, USER = Turn("system", ("Be brief.",)), user("Hello.")
SAID = "messages"
DEEP = '[{"a": ' + "[" * 70 + "]" * 70 + "}]"
TOLD: list[tuple[str, tuple[str, ...], Callable[[pb.ChatRequest], Any], str, str, str]] = [
    # arguments of the template
    ("thinking_as_text", ALL, args(enable_thinking="false"), INVALID, "TEMPLATE_ARGUMENT_INVALID", "template_args.enable_thinking"),
    ("thinking_as_null", QWEN, args(enable_thinking=None), INVALID, "TEMPLATE_ARGUMENT_INVALID", "template_args.enable_thinking"),
    ("thinking_as_list", INTERN, args(enable_thinking=[True]), INVALID, "TEMPLATE_ARGUMENT_INVALID", "template_args.enable_thinking"),
    ("tools_of_no_json", ALL, args(tools="[{"), INVALID, "TEMPLATE_ARGUMENT_INVALID", "template_args.tools"),
    ("tools_of_one_object", ALL, args(tools='{"type": "function"}'), INVALID, "TEMPLATE_ARGUMENT_INVALID", "template_args.tools"),
    ("tools_of_numbers", QWEN, args(tools=[1, 2]), INVALID, "TEMPLATE_ARGUMENT_INVALID", "template_args.tools"),
    ("tools_too_deep", QWEN, args(tools=DEEP), INVALID, "NESTED_TOO_DEEPLY", "template_args"),
    ("a_name_of_the_template", QWEN + INTERN, args(namespace=2), INVALID, "TEMPLATE_ERROR", SAID),
    # conversations that a template refuses
    ("system_not_first", QWEN, turns(USER, SYSTEM, USER), INVALID, "TEMPLATE_ERROR", SAID),
    ("two_systems", QWEN, turns(SYSTEM, SYSTEM, USER), INVALID, "TEMPLATE_ERROR", SAID),
    ("nobody_asks", QWEN, turns(SYSTEM, Turn("assistant", ("Yes.",))), INVALID, "TEMPLATE_ERROR", SAID),
    ("media_of_the_system", ALL, turns(Turn("system", (SMALL,)), USER), INVALID, "MEDIA_ROLE", "messages[0].parts[0].image"),
    ("media_of_the_assistant", ALL, turns(USER, Turn("assistant", ("see", CLIP)), USER), INVALID, "MEDIA_ROLE", "messages[1].parts[1].video"),
    # series; test_bad_time_series.py has their files
    ("no_series_here", GLM + QWEN, lambda r: r.messages[0].parts.add().time_series.media.MergeFrom(pb.MediaSource(data=b"1\n2")), "UNIMPLEMENTED", "MODALITY_UNSUPPORTED", "messages[0].parts[4].time_series"),
    ("series_without_source", INTERN, lambda r: r.messages[0].parts[4].time_series.media.Clear(), INVALID, "FIELD_REQUIRED", "messages[0].parts[4].time_series.media.data"),
    ("series_of_the_assistant", INTERN, lambda r: setattr(r.messages[0], "role", pb.ROLE_ASSISTANT), INVALID, "MEDIA_ROLE", "messages[0].parts[1].image"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("family", "edit", "code", "reason", "field"),
    [(family, *row[2:]) for row in TOLD for family in row[1]],
    ids=[f"{row[0]}-{family}" for row in TOLD for family in row[1]],
)
def test_bad_conversations(
    family: str,
    edit: Callable[[pb.ChatRequest], Any],
    code: str,
    reason: str,
    field: str,
    pair_of: Callable[[str], Pair],
) -> None:
    """A conversation that a family's template or readers cannot take is refused by name, without a trace."""
    stub, request = pair_of(family).stub, chat_of(family)
    edit(request)
    status = outcome(lambda: stub.Chat(request, timeout=20))
    assert (status.code, status.reason, status.field) == (code, reason, field), status.text
    assert_says_nothing_of_the_inside(status)


@pytest.mark.parametrize("family", ALL)
def test_empty_messages_are_taken(family: str, pair_of: Callable[[str], Pair]) -> None:
    """No text at all, from the user or the system, is a conversation like others."""
    for said in (user(""), Turn("user", ())):
        request = chat_request(Case("empty", (Turn("system", ("",)), said)), max_tokens=2)
        assert pair_of(family).stub.Chat(request).usage.completion_tokens == 2


@pytest.mark.parametrize("family", ALL)
def test_thinking_can_be_switched(family: str, pair_of: Callable[[str], Pair]) -> None:
    """enable_thinking = false closes the thought that the prompt ends with; true is the family's own way."""

    def rendered(**values: Any) -> str:
        request = chat_request(Case("think", (USER,)))
        request.template_args.update(values)
        return pair_of(family).stub.Prepare(pb.PrepareRequest(chat=request)).rendered_prompt

    assert rendered(enable_thinking=True) == rendered()
    assert rendered(enable_thinking=False).rstrip().endswith("</think>")
    assert not rendered().rstrip().endswith("</think>")


@pytest.mark.parametrize("family", ALL)
def test_tools_as_text_or_values(family: str, pair_of: Callable[[str], Pair]) -> None:
    """Tools as a list and as its JSON text are one prompt, where the keys are in their usual order."""
    tools = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}]
    prompts = []
    for given in (tools, json.dumps(tools)):
        request = chat_request(Case("tools", (SYSTEM, USER)))
        request.template_args.update({"tools": given})
        prompts.append(pair_of(family).stub.Prepare(pb.PrepareRequest(chat=request)).rendered_prompt)
    assert prompts[0] == prompts[1]
    assert json.dumps(tools[0]) in prompts[0]


def nested(depth: int) -> pb.ChatRequest:
    """A conversation whose template arguments are nested so deep that no parser takes them."""
    deep: list[Any] = []
    for _ in range(depth):
        deep = [deep]
    request = chat_request(Case("deep", (USER,)))
    request.template_args.update({"tools": deep})
    return request


def test_what_is_no_message(pair_of: Callable[[str], Pair]) -> None:
    """Bytes that are no request, or one that is nested without end, are the caller's mistake, everywhere."""
    pair = pair_of("qwen3_5")
    gateway, worker = pair.gateway.channel, pair.workers[0].channel
    for channel, method in ((gateway, "InferenceService/Chat"), (worker, "WorkerService/Describe")):
        for data in (b"\xff" * 9, b"\x0a\xff\xff\xff\xff\x0f"):
            status = outcome(lambda c=channel, m=method, d=data: c.unary_unary(f"/tessera.v1.{m}")(d, timeout=5))
            assert (status.code, status.reason) == (INVALID, "MESSAGE_MALFORMED")
            assert_says_nothing_of_the_inside(status)
    upload = gateway.stream_unary("/tessera.v1.InferenceService/UploadMedia")
    status = outcome(lambda: upload(iter([b"\xff" * 9]), timeout=5))
    assert (status.code, status.reason) == (INVALID, "MESSAGE_MALFORMED")
    status = outcome(lambda: list(pair.stub.StreamChat(nested(200), timeout=5)))
    assert (status.code, status.reason) == (INVALID, "MESSAGE_MALFORMED")


def test_long_names_of_side_tensors(pair_of: Callable[[str], Pair], bases: Callable[[str], pb.GenerateRequest]) -> None:
    """A name of any length is refused with its path, which is cut before it outgrows a status."""
    request = bases("glm4v")
    tensor(zeros(12, 64), EMBEDDINGS)(request)
    for array, reason in (
        (np.full((1, 1), NAN, np.float32), "TENSOR_NOT_FINITE"),
        (zeros(1, 1), "SIDE_TENSOR_FOREIGN"),
    ):
        request.items[0].side_tensors["n" * 50_000].CopyFrom(from_array(array))
        request.items[0].grid_thw.CopyFrom(SIX_BY_EIGHT)
        status = outcome(lambda: pair_of("glm4v").stub.Generate(request, timeout=20))
        assert (status.code, status.reason) == (INVALID, reason)
        assert status.field.startswith("items[0].side_tensors[nnn")
        assert len(status.field) <= 500
