"""Embeddings from another encoder, for every family: transformers' own tower in front of our language model."""

from collections.abc import Callable

import pytest
import torch

from tessera.modality import Modality
from tessera.tensors import from_array
from tessera.v1 import inference_service_pb2 as pb
from tessera.v1 import types_pb2 as types
from tests.e2e.harness import Pair
from tests.e2e.status import outcome
from tests.parity.cases import Case, chat_cases, chat_request, greedy, raw_cases
from tests.parity.compare import assert_continued
from tests.parity.families import FAMILIES
from tests.parity.oracle import ExpectedItem, Oracle
from tests.parity.test_grpc_generate import item_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]
CHATS = {case.name: case for case in chat_cases()}
RAWS = {case.name: case for case in raw_cases()}
WITHOUT_DEEPSTACK = tuple(family for family in FAMILIES if family != "qwen3_vl_moe")
OracleOf, PairOf = Callable[[str], Oracle], Callable[..., Pair]


def embedded(computed: Oracle, item: ExpectedItem) -> types.MultimodalItem:
    """The item as transformers' vision tower returns it, without ranges; with DeepStack where the family has it."""
    patches, grid = torch.from_numpy(item.patches), torch.tensor([item.grid_thw])
    encode = computed.model.model.get_image_features if item.modality == "image" else None
    with torch.no_grad():
        out = (encode or computed.model.model.get_video_features)(patches, grid, return_dict=True)
    message = types.MultimodalItem(
        modality=Modality(item.modality).to_proto(),
        payload_kind=types.PAYLOAD_KIND_EMBEDDINGS,
        tensor=from_array(torch.cat(list(out.pooler_output)).numpy()),
        grid_thw=types.GridThw(t=item.grid_thw[0], h=item.grid_thw[1], w=item.grid_thw[2]),
        timestamps=item.timestamps,
    )
    features = getattr(out, "deepstack_features", None)
    if features:
        stacked = torch.stack([torch.cat(list(layer)) for layer in features])
        message.side_tensors["deepstack"].CopyFrom(from_array(stacked.numpy()))
    return message


def request_with(computed: Oracle, case: Case, embed: tuple[int, ...]) -> pb.GenerateRequest:
    """The case as text with one marker an item; the items of these indices as embeddings, the others as patches."""
    expected = computed.answer(case)
    items = [
        embedded(computed, item) if index in embed else item_of(item, with_ranges=False)
        for index, item in enumerate(expected.items)
    ]
    return pb.GenerateRequest(text=expected.prompt, items=items, sampling=greedy())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("embed", [(0, 1, 2, 3), (0, 2), (1, 3)], ids=["all", "first_of_each", "second_of_each"])
def test_embeddings_beside_computed_items(
    family: str, embed: tuple[int, ...], oracle: OracleOf, pair_of: PairOf
) -> None:
    """Pictures and clips as embeddings, alone or beside computed ones of their kind, continue as the pixels would."""
    computed, case = oracle(family), RAWS["raw_markers_mixed"]
    assert [item.modality for item in computed.answer(case).items] == ["image", "video", "video", "image"]
    response = pair_of(family).stub.Generate(request_with(computed, case, embed))
    assert tuple(response.prompt.token_ids) == computed.answer(case).token_ids
    assert_continued(computed.answer(case), response.choices[0])


@pytest.mark.parametrize("family", FAMILIES)
def test_embeddings_in_a_conversation(family: str, oracle: OracleOf, pair_of: PairOf) -> None:
    """A clip's embeddings as a part of a conversation stand where the clip would."""
    computed, case = oracle(family), CHATS["image_then_video"]
    expected = computed.answer(case)
    request = chat_request(case)
    [index] = [i for i, part in enumerate(request.messages[0].parts) if part.WhichOneof("part") == "video"]
    request.messages[0].parts[index].item.CopyFrom(embedded(computed, expected.items[1]))
    assert_continued(expected, pair_of(family).stub.Chat(request).choices[0])


@pytest.mark.parametrize("family", FAMILIES)
def test_embeddings_of_another_width(family: str, oracle: OracleOf, pair_of: PairOf) -> None:
    """Embeddings that are not as wide as the language model are refused by their shape."""
    computed, case = oracle(family), RAWS["raw_media_at_start"]
    request = request_with(computed, case, (0,))
    narrow = torch.zeros(request.items[0].tensor.shape[0], request.items[0].tensor.shape[1] - 1)
    request.items[0].tensor.CopyFrom(from_array(narrow.numpy()))
    status = outcome(lambda: pair_of(family).stub.Generate(request))
    assert (status.code, status.reason) == ("INVALID_ARGUMENT", "GRID_MISMATCH")
    assert status.field == "items[0].tensor.shape"


@pytest.mark.parametrize("family", WITHOUT_DEEPSTACK)
def test_deepstack_where_the_family_has_none(family: str, oracle: OracleOf, pair_of: PairOf) -> None:
    """Features that the model has no place for are refused by name: they are another encoder's."""
    computed, case = oracle(family), RAWS["raw_media_at_start"]
    request = request_with(computed, case, (0,))
    assert not request.items[0].side_tensors
    request.items[0].side_tensors["deepstack"].CopyFrom(from_array(torch.zeros(2, 4, 64).numpy()))
    status = outcome(lambda: pair_of(family).stub.Generate(request))
    assert (status.code, status.reason) == ("INVALID_ARGUMENT", "SIDE_TENSOR_FOREIGN")
    assert status.field == "items[0].side_tensors[deepstack]"


def test_deepstack_must_be_whole(oracle: OracleOf, pair_of: PairOf) -> None:
    """Where the family has DeepStack, features that are missing, of another shape or misspelled are refused by name."""
    computed, case = oracle("qwen3_vl_moe"), RAWS["raw_media_at_start"]
    whole = request_with(computed, case, (0,)).items[0].side_tensors["deepstack"]
    layers, tokens, hidden = whole.shape
    for shape in ((layers - 1, tokens, hidden), (layers, tokens - 1, hidden), (layers, tokens, hidden + 1)):
        request = request_with(computed, case, (0,))
        request.items[0].side_tensors["deepstack"].CopyFrom(from_array(torch.zeros(shape).numpy()))
        status = outcome(lambda request=request: pair_of("qwen3_vl_moe").stub.Generate(request))
        assert (status.reason, status.field) == ("TENSOR_SHAPE", "items[0].side_tensors[deepstack].shape")
    request = request_with(computed, case, (0,))
    del request.items[0].side_tensors["deepstack"]
    status = outcome(lambda: pair_of("qwen3_vl_moe").stub.Generate(request))
    assert (status.reason, status.field) == ("SIDE_TENSOR_REQUIRED", "items[0].side_tensors[deepstack]")
    request = request_with(computed, case, (0,))
    request.items[0].side_tensors["deepstacks"].CopyFrom(whole)
    status = outcome(lambda: pair_of("qwen3_vl_moe").stub.Generate(request))
    assert (status.reason, status.field) == ("SIDE_TENSOR_FOREIGN", "items[0].side_tensors[deepstacks]")


def test_side_tensors_of_pixels(pair_of: PairOf) -> None:
    """A picture as pixels or patches has no side tensors: those of embeddings would be ignored."""
    stub = pair_of("qwen3_5").stub
    prepared = stub.Prepare(pb.PrepareRequest(chat=chat_request(CHATS["one_image"]), include_tensors=True))
    item = prepared.items[0]
    item.side_tensors["deepstack"].CopyFrom(from_array(torch.zeros(2, 4, 64).numpy()))
    request = pb.GenerateRequest(token_ids={"ids": prepared.token_ids}, items=[item], sampling=greedy())
    status = outcome(lambda: stub.Generate(request))
    assert (status.code, status.reason) == ("INVALID_ARGUMENT", "SIDE_TENSOR_FOREIGN")
    assert status.field == "items[0].side_tensors[deepstack]"
