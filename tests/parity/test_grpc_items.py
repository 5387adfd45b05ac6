"""Items in every form that the contract knows: embeddings with DeepStack, items in a conversation, data URLs."""

import base64
from collections.abc import Callable

import numpy as np
import pytest
import torch

from tessera.modality import Modality
from tessera.tensors import from_array
from tessera.v1 import inference_service_pb2 as pb
from tessera.v1 import types_pb2 as types
from tests.e2e.harness import Pair
from tests.parity.cases import Case, chat_cases, chat_request, greedy, png, raw_cases
from tests.parity.compare import assert_continued
from tests.parity.oracle import ExpectedItem, Oracle
from tests.parity.test_grpc_generate import item_of, request_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]
CHATS = {case.name: case for case in chat_cases()}
RAWS = {case.name: case for case in raw_cases()}
OracleOf, PairOf = Callable[[str], Oracle], Callable[..., Pair]


def embedded(computed: Oracle, item: ExpectedItem, dtype: str = "F32") -> types.MultimodalItem:
    """The item as transformers' vision tower returns it, with its DeepStack features."""
    grid = torch.tensor([item.grid_thw])
    with torch.no_grad():
        out = computed.model.model.visual(torch.from_numpy(item.patches), grid_thw=grid, return_dict=True)
    message = types.MultimodalItem(
        modality=Modality(item.modality).to_proto(),
        payload_kind=types.PAYLOAD_KIND_EMBEDDINGS,
        tensor=_tensor(out.pooler_output, dtype),
        grid_thw=types.GridThw(t=item.grid_thw[0], h=item.grid_thw[1], w=item.grid_thw[2]),
        timestamps=item.timestamps,
    )
    message.side_tensors["deepstack"].CopyFrom(_tensor(torch.stack(list(out.deepstack_features)), dtype))
    return message


def _tensor(values: torch.Tensor, dtype: str) -> types.Tensor:
    if dtype == "BF16":
        return from_array(values.to(torch.bfloat16).view(torch.uint16).numpy(), "BF16")
    return from_array(values.numpy().astype({"F32": np.float32, "F16": np.float16}[dtype]))


@pytest.mark.parametrize("name", ["raw_media_at_start", "raw_markers_mixed", "raw_run_of_one", "raw_video_at_end"])
def test_precomputed_embeddings(name: str, oracle: OracleOf, pair_of: PairOf) -> None:
    """Embeddings from another encoder, with DeepStack, continue as the pixels would."""
    computed, case = oracle("5.x"), RAWS[name]
    expected = computed.answer(case)
    request = pb.GenerateRequest(
        text=case.prompt, items=[embedded(computed, item) for item in expected.items], sampling=greedy()
    )
    response = pair_of("5.x").stub.Generate(request)
    assert tuple(response.prompt.token_ids) == expected.token_ids
    assert_continued(expected, response.choices[0])


def test_kinds_may_be_mixed(oracle: OracleOf, pair_of: PairOf) -> None:
    """Pixels, patches, embeddings and a hash in one request are four ways to say the same."""
    computed, case = oracle("5.x"), CHATS["image_video_image_video"]
    expected = computed.answer(case)
    stub = pair_of("5.x").stub
    prepared = stub.Prepare(pb.PrepareRequest(chat=chat_request(case), include_tensors=True))
    items = list(prepared.items)
    items[1].CopyFrom(_ranged(embedded(computed, expected.items[1]), items[1]))
    items[2].CopyFrom(item_of(expected.items[2], with_ranges=True))
    items[3].content_hash = prepared.content_hashes[3]
    request = pb.GenerateRequest(token_ids={"ids": prepared.token_ids}, items=items, sampling=greedy())
    assert_continued(expected, stub.Generate(request).choices[0])


def _ranged(item: types.MultimodalItem, like: types.MultimodalItem) -> types.MultimodalItem:
    item.ranges.extend(like.ranges)
    return item


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_embeddings_in_half_precision(dtype: str, oracle: OracleOf, pair_of: PairOf) -> None:
    """Embeddings in half precision are taken; the first token's probabilities stay near."""
    computed, case = oracle("5.x"), RAWS["raw_media_at_start"]
    expected = computed.answer(case)
    item = embedded(computed, expected.items[0], dtype)
    request = pb.GenerateRequest(text=case.prompt, items=[item], sampling=greedy())
    first = pair_of("5.x").stub.Generate(request).choices[0].logprobs[0].top[:3]
    assert [abs(token.logprob - expected.logprobs[0][token.token_id]) < 0.2 for token in first] == [True] * 3


@pytest.mark.parametrize("by_hash", [False, True])
def test_preprocessed_items_in_a_conversation(by_hash: bool, oracle: OracleOf, pair_of: PairOf) -> None:
    """A part may be an item that the caller has processed, by tensor or by hash; the answer is the medium's."""
    case = CHATS["several_turns"]
    expected = oracle("5.x").answer(case)
    stub = pair_of("5.x").stub
    prepared = stub.Prepare(pb.PrepareRequest(chat=chat_request(case), include_tensors=not by_hash))
    request = chat_request(case)
    items = iter(prepared.items)
    for message in request.messages:
        for part in message.parts:
            if part.WhichOneof("part") != "text":
                item = next(items)
                item.ClearField("ranges")
                part.item.CopyFrom(item)
    response = stub.Chat(request)
    assert_continued(expected, response.choices[0])
    assert [report.preprocessed for report in response.media] == [True, True]
    assert [report.num_tokens for report in response.media] == [
        sum(span.length for span in item.ranges) for item in expected.items
    ]


def test_a_list_of_jpegs_as_a_data_url(pair_of: PairOf) -> None:
    """`data:video/jpeg` is a list of frames at two a second."""
    case = CHATS["frames_with_source_fps"]
    (clip,) = case.shown()
    stub = pair_of("5.x").stub
    listed = stub.Prepare(pb.PrepareRequest(chat=chat_request(case)))
    request = chat_request(case)
    media = request.messages[0].parts[0].video.media
    media.url = "data:video/jpeg;base64," + ",".join(base64.b64encode(frame).decode() for frame in clip.frames)
    encoded = stub.Prepare(pb.PrepareRequest(chat=request))
    assert list(encoded.token_ids) == list(listed.token_ids)
    assert encoded.content_hashes == listed.content_hashes
    assert encoded.media[0].sampling.source_fps == 2.0


def test_generated_placeholders_are_words(oracle: OracleOf, pair_of: PairOf) -> None:
    """A placeholder's id that the model itself draws is a token like others, before and after real placeholders."""
    computed = oracle("5.x")
    expected = computed.answer(RAWS["raw_media_at_start"])
    pad = computed.model.config.image_token_id
    request = request_of(RAWS["raw_media_at_start"], expected, "text")
    request.sampling.logit_bias[pad] = 100.0
    request.sampling.max_tokens = 6
    choice = pair_of("5.x").stub.Generate(request).choices[0]
    assert list(choice.token_ids) == [pad] * 6
    assert choice.text == computed.tokenizer.decode([pad] * 6, skip_special_tokens=True)


def test_pixels_of_a_callers_own_processor(pair_of: PairOf) -> None:
    """uint8 pixels that a caller has resized are the picture itself, where it needs no resize."""
    array = np.random.default_rng(3).integers(0, 256, (96, 128, 3), np.uint8)
    stub = pair_of("5.x").stub
    from tests.parity.cases import Picture, user

    case = Case("own_pixels", (user(Picture(png(array)), "What?"),))
    prepared = stub.Prepare(pb.PrepareRequest(chat=chat_request(case)))
    item = types.MultimodalItem(
        modality=types.MODALITY_IMAGE,
        payload_kind=types.PAYLOAD_KIND_PIXELS_U8,
        tensor=from_array(array[None]),
        grid_thw=types.GridThw(t=1, h=6, w=8),
    )
    request = chat_request(case)
    request.messages[0].parts[0].item.CopyFrom(item)
    own = stub.Prepare(pb.PrepareRequest(chat=request))
    assert own.content_hashes == prepared.content_hashes
    assert list(own.token_ids) == list(prepared.token_ids)
