"""Token-in, token-out over gRPC against transformers: raw prompts, ids and items in every form."""

from collections.abc import Callable, Sequence

import pytest

from tessera.modality import Modality
from tessera.tensors import from_array
from tessera.v1 import inference_service_pb2 as pb
from tessera.v1 import types_pb2 as types
from tests.e2e.harness import Pair
from tests.parity.cases import LAYOUTS, Case, chat_cases, chat_request, greedy, raw_cases
from tests.parity.compare import assert_continued, assert_items
from tests.parity.conftest import STYLES
from tests.parity.oracle import Expected, ExpectedItem, Oracle

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]
RAW = {case.name: case for case in raw_cases()}
CHATS = {case.name: case for case in chat_cases()}
FORMS = ("text", "short_ids", "expanded_ids")
OracleOf, PairOf = Callable[[str], Oracle], Callable[..., Pair]


def item_of(item: ExpectedItem, *, with_ranges: bool) -> types.MultimodalItem:
    """The item as a caller with its own Hugging Face processor sends it."""
    return types.MultimodalItem(
        modality=Modality(item.modality).to_proto(),
        payload_kind=types.PAYLOAD_KIND_PATCHES,
        tensor=from_array(item.patches),
        grid_thw=types.GridThw(t=item.grid_thw[0], h=item.grid_thw[1], w=item.grid_thw[2]),
        timestamps=item.timestamps,
        ranges=[types.PlaceholderRange(offset=r.offset, length=r.length) for r in item.ranges] if with_ranges else (),
    )


def request_of(case: Case, expected: Expected, form: str) -> pb.GenerateRequest:
    """The case as a raw request: its text, its ids with one marker an item, or its final ids with ranges."""
    request = pb.GenerateRequest(
        items=[item_of(item, with_ranges=form == "expanded_ids") for item in expected.items],
        sampling=greedy(),
        video_layout=LAYOUTS[case.layout],
    )
    if form == "text":
        request.text = expected.prompt
    else:
        request.token_ids.ids.extend(expected.token_ids if form == "expanded_ids" else expected.short_ids)
    return request


@pytest.mark.parametrize("name", RAW)
@pytest.mark.parametrize("form", FORMS)
def test_generate_continues_as_transformers(form: str, name: str, oracle: OracleOf, pair_of: PairOf) -> None:
    """Text with markers, ids with markers and expanded ids with ranges are one prompt with one continuation."""
    expected = oracle("5.x").answer(RAW[name])
    response = pair_of("5.x").stub.Generate(request_of(RAW[name], expected, form))
    assert tuple(response.prompt.token_ids) == expected.token_ids
    assert_items(expected, _with_times(response.prompt.items, expected))
    assert_continued(expected, response.choices[0])


def _with_times(items: Sequence[types.MultimodalItem], expected: Expected) -> Sequence[types.MultimodalItem]:
    for item, want in zip(items, expected.items, strict=True):
        if not item.timestamps:
            item.timestamps.extend(want.timestamps)
    return items


@pytest.mark.parametrize("name", ["raw_markers_mixed", "raw_prompt_ends_in_placeholder", "raw_run_of_one"])
def test_the_older_config_continues_alike(name: str, oracle: OracleOf, pair_of: PairOf) -> None:
    """A checkpoint in the style of 4.57 answers raw prompts as transformers does."""
    expected = oracle("4.57").answer(RAW[name])
    response = pair_of("4.57").stub.Generate(request_of(RAW[name], expected, "text"))
    assert_continued(expected, response.choices[0])


@pytest.mark.parametrize("name", ["text", "one_image", "image_video_image_video", "one_frame_in_a_list", "alpha"])
@pytest.mark.parametrize("style", STYLES)
def test_what_prepare_returns_generates_the_same(style: str, name: str, oracle: OracleOf, pair_of: PairOf) -> None:
    """Generate with the ids and items of Prepare, by tensor and by hash, is Chat."""
    expected = oracle(style).answer(CHATS[name])
    stub = pair_of(style).stub
    for include_tensors in (True, False):
        prepared = stub.Prepare(pb.PrepareRequest(chat=chat_request(CHATS[name]), include_tensors=include_tensors))
        payloads = {item.WhichOneof("payload") for item in prepared.items}
        assert payloads <= {"tensor" if include_tensors else "content_hash"}
        assert len(prepared.content_hashes) == len(prepared.items)
        request = pb.GenerateRequest(
            token_ids=types.TokenIds(ids=prepared.token_ids), items=prepared.items, sampling=greedy()
        )
        response = stub.Generate(request)
        assert [item.content_hash for item in response.prompt.items] == list(prepared.content_hashes)
        assert tuple(response.prompt.token_ids) == expected.token_ids
        assert_continued(expected, response.choices[0])


def test_prepare_of_a_raw_prompt(oracle: OracleOf, pair_of: PairOf) -> None:
    """Prepare expands a raw prompt exactly as Generate runs it."""
    case = RAW["raw_markers_mixed"]
    expected = oracle("5.x").answer(case)
    request = pb.PrepareRequest(generate=request_of(case, expected, "text"))
    prepared = pair_of("5.x").stub.Prepare(request)
    assert tuple(prepared.token_ids) == expected.token_ids
    assert_items(expected, prepared.items)
    assert prepared.max_completion_tokens == 4096 - len(expected.token_ids)


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_half_precision_patches_are_taken(dtype: str, oracle: OracleOf, pair_of: PairOf) -> None:
    """Patches in half precision give an answer, and another content hash than those in full."""
    import numpy as np

    expected = oracle("5.x").answer(RAW["raw_media_at_start"])
    request = request_of(RAW["raw_media_at_start"], expected, "text")
    full = pair_of("5.x").stub.Generate(request)
    patches = expected.items[0].patches
    bits = (patches.view(np.uint32) >> 16).astype(np.uint16) if dtype == "BF16" else patches.astype(np.float16)
    request.items[0].tensor.CopyFrom(from_array(bits, dtype))
    half = pair_of("5.x").stub.Generate(request)
    assert half.prompt.items[0].content_hash != full.prompt.items[0].content_hash
    assert len(half.choices[0].token_ids) == 24


def test_uploaded_items_are_named_by_hash(oracle: OracleOf, pair_of: PairOf) -> None:
    """An item's tensor that came through UploadMedia, in chunks, serves Generate by its hash."""
    expected = oracle("5.x").answer(RAW["raw_markers_mixed"])
    request = request_of(RAW["raw_markers_mixed"], expected, "expanded_ids")
    stub = pair_of("5.x").stub
    for item in request.items:
        whole = types.MultimodalItem.FromString(item.SerializeToString())
        whole.ClearField("ranges")
        data = whole.tensor.data
        whole.tensor.data = b""
        header = pb.UploadHeader(item=pb.ItemTensor(item=whole), size_bytes=len(data))
        messages = [pb.UploadMediaRequest(header=header)]
        messages += [pb.UploadMediaRequest(chunk=data[i : i + 50_000]) for i in range(0, len(data), 50_000)]
        answer = stub.UploadMedia(iter(messages))
        assert answer.held_for.seconds > 0
        item.content_hash = answer.content_hash
    response = stub.Generate(request)
    assert_continued(expected, response.choices[0])


def test_uploaded_media_are_named_by_id(oracle: OracleOf, pair_of: PairOf) -> None:
    """A file that was uploaded is the same medium as its bytes in the message; uploading it again is idempotent."""
    case = CHATS["image_video_image_video"]
    stub = pair_of("5.x").stub
    request = chat_request(case)
    for part in request.messages[0].parts:
        if part.WhichOneof("part") == "text":
            continue
        media = getattr(part, part.WhichOneof("part")).media
        data = media.data
        header = pb.UploadMediaRequest(header=pb.UploadHeader(media=pb.MediaFile(), size_bytes=len(data)))
        chunks = [pb.UploadMediaRequest(chunk=data[i : i + 9000]) for i in range(0, len(data), 9000)]
        first = stub.UploadMedia(iter([header, *chunks]))
        again = stub.UploadMedia(iter([header, *chunks]))
        assert (first.media_id, first.size_bytes) == (again.media_id, len(data))
        assert again.existed
        media.media_id = first.media_id
    assert_continued(oracle("5.x").answer(case), stub.Chat(request).choices[0])
