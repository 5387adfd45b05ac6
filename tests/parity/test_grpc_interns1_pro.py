"""InternS1-Pro over gRPC against the float64 reference: text, pictures, clips and series, under every pressure."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tessera.tensors import from_array
from tessera.v1 import inference_service_pb2 as pb
from tessera.v1 import types_pb2 as types
from tests.e2e.harness import Flags, Pair, Pairs
from tests.parity.cases import CLIP, CLIP_B, SMALL, TALL, WIDE, greedy
from tests.parity.compare import assert_continued
from tests.parity.interns1_pro_oracle import CLIP as MARKER
from tests.parity.interns1_pro_oracle import SERIES, TOKENS, InternOracle, Series, Turns, request_of
from tests.parity.test_grpc_pressure import BLOCK_SIZE, preemptions
from tests.tiny_interns1_pro import make_tiny_interns1_pro
from tests.tiny_interns1_pro_weights import FP8_BLOCK

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

ASK = "What do you see?"
SHORT, STEREO, SOUND = Series(83, seed=1), Series(180, 3, 100.0, seed=2), Series(1000, 2, 16_000.0, seed=3)
LONG = Series(641, 1, 2.0, seed=4)
SYSTEM = ("system", ("You are a helpful assistant.",))
MIXED: Turns = (("user", ("Compare ", SHORT, SMALL, STEREO, " with ", CLIP, SOUND, LONG, " please.")),)
CASES: dict[str, Turns] = {
    "text": (("user", ("Describe the image. Is it red?",)),),
    "system": (SYSTEM, ("user", ("Hello, who are you?",))),
    "image": (("user", ("Look: ", TALL, ASK)),),
    "images": (SYSTEM, ("user", (SMALL, WIDE, "Compare both.", TALL))),
    "video": (("user", (CLIP, "What happens?")),),
    "videos": (("user", (CLIP_B, CLIP, "Which came first?")),),
    "image_and_video": (("user", (SMALL, CLIP, ASK)),),
    "series": (("user", (STEREO, "What is this?")),),
    "series_without_rate": (("user", ("Look: ", SHORT)),),
    "sound": (("user", ("Listen: ", SOUND, ASK)),),
    "three_series": (("user", (SHORT, STEREO, " and ", SOUND, ASK)),),
    "series_and_image": (("user", (SOUND, SMALL, ASK)),),
    "video_and_series": (("user", (CLIP, LONG, ASK)),),
    "mixed": MIXED,
    "turns": (
        ("user", (SMALL, ASK)),
        ("assistant", ("a red circle.",)),
        ("user", ("And this? ", STEREO, CLIP)),
        ("assistant", ("it moves.",)),
        ("tool", ("found: ", WIDE, SHORT)),
        ("user", ("Which came first?",)),
    ),
    "words": (("user", ("a red circle and a blue square. " * 8,)),),
}
OracleOf = Callable[[], InternOracle]


@pytest.fixture
def pair(pairs: Pairs, tiny: Callable[[str], Path]) -> Pair:
    """The default pair."""
    return pairs.get(Flags(tiny("interns1_pro")))


@pytest.fixture(scope="module")
def computed(pairs: Pairs, tiny: Callable[[str], Path]) -> InternOracle:
    """The right answers."""
    path = tiny("interns1_pro")
    return InternOracle(path, pairs.get(Flags(path)).stub)


def run_all(pair: Pair, computed: InternOracle, names: Sequence[str] = tuple(CASES)) -> None:
    """Send cases at once and check each answer."""
    expected = [computed.answer(name, CASES[name]) for name in names]
    with ThreadPoolExecutor(len(names)) as threads:
        answers = list(threads.map(pair.stub.Chat, [request_of(CASES[name]) for name in names]))
    for want, answer in zip(expected, answers, strict=True):
        assert_continued(want, answer.choices[0])


@pytest.mark.parametrize("name", CASES)
def test_chat(name: str, computed: InternOracle) -> None:
    """Prompt, ids, ranges and greedy tokens with their probabilities are the reference's."""
    expected = computed.answer(name, CASES[name])
    assert len(expected.generated) == TOKENS


def test_sixteen_at_once(pair: Pair, computed: InternOracle) -> None:
    """Sixteen mixed requests that run together are answered as each alone."""
    assert len(CASES) == 16
    run_all(pair, computed)


def test_32_tokens_a_step_without_caches(pairs: Pairs, computed: InternOracle, tiny: Callable[[str], Path]) -> None:
    """Chunks of at most 32 tokens, which cut inside series and clips, change nothing; nor that no cache helps."""
    worker = ("--max-batched-tokens", "32", "--max-sequences", "16", "--no-prefix-cache", "--no-retain-encoded")
    run_all(pairs.get(Flags(tiny("interns1_pro"), worker, ("--processor-cache-bytes", "0"))), computed)


def test_few_blocks(pairs: Pairs, computed: InternOracle, tiny: Callable[[str], Path]) -> None:
    """With blocks for little more than the longest request, requests are preempted, recomputed and answered alike."""
    longest = TOKENS + max(len(computed.answer(name, turns).token_ids) for name, turns in CASES.items())
    blocks = -(-longest // BLOCK_SIZE) + 2
    limits = ("--max-model-len", str(longest), "--block-size", str(BLOCK_SIZE), "--num-blocks", str(blocks))
    with pairs.fresh(Flags(tiny("interns1_pro"), worker=(*limits, "--log-level", "debug"))) as pair:
        long = [request_of((("user", (f"Tell me story {i}. ", STEREO)),), longest * 2 // 3) for i in range(3)]
        alone = [list(pair.stub.Chat(request).choices[0].token_ids) for request in long]
        for request in long:
            request.cache_salt = b"again"
        calls = [pair.stub.Chat.future(request) for request in long]
        run_all(pair, computed)
        assert [list(call.result().choices[0].token_ids) for call in calls] == alone
        assert preemptions(pair) > 0, "nothing was preempted: the test shows nothing"


def test_the_next_turn_begins_where_the_last_one_ended(pair: Pair, computed: InternOracle) -> None:
    """A conversation's second turn finds its first, series and all, in the prefix cache."""
    first = computed.answer("mixed", MIXED)
    turns: Turns = (*MIXED, ("assistant", ("They are alike.",)), ("user", ("And now, once more?",)))
    expected = computed.answer("second turn", turns)
    usage = pair.stub.Chat(request_of(turns)).usage
    assert len(expected.token_ids) > usage.cached_tokens > 0.9 * len(first.token_ids)


def items_of(pair: Pair, turns: Turns) -> pb.PrepareResponse:
    """The prompt and items of a conversation, with tensors."""
    return pair.stub.Prepare(pb.PrepareRequest(chat=request_of(turns), include_tensors=True))


def test_raw_prompts(pair: Pair, computed: InternOracle) -> None:
    """A raw prompt as text, as ids with one placeholder an item of every modality, and as expanded ids is one."""
    media = (CLIP, SHORT, TALL, STEREO)
    items = items_of(pair, (("user", media),)).items
    for item in items:
        item.ClearField("ranges")
    picture = "<|vision_start|><|image_pad|><|vision_end|>"
    # What stands before a clip's marker is encoded with the clip's first time: here a line's end, which never merges.
    text = f"a\n{MARKER} b {SERIES} c {picture}{SERIES}"
    request = pb.GenerateRequest(text=text, items=items, sampling=greedy(TOKENS))
    expected = computed.continuation("raw", request, media)
    request.token_ids.ids.extend(expected.short_ids)
    short = pair.stub.Generate(request)
    expanded = pb.GenerateRequest(
        token_ids=types.TokenIds(ids=expected.token_ids), items=items_with(items, short), sampling=greedy(TOKENS)
    )
    for response in (short, pair.stub.Generate(expanded)):
        assert tuple(response.prompt.token_ids) == expected.token_ids
        assert_continued(expected, response.choices[0])


def items_with(items: Sequence[types.MultimodalItem], response: pb.GenerateResponse) -> Sequence[types.MultimodalItem]:
    """Items with the ranges that a response has echoed."""
    for item, echoed in zip(items, response.prompt.items, strict=True):
        item.ranges.extend(echoed.ranges)
    return items


@pytest.mark.parametrize(
    "modalities",
    [
        (types.MODALITY_IMAGE,),
        (types.MODALITY_VIDEO,),
        (types.MODALITY_TIME_SERIES,),
        (types.MODALITY_IMAGE, types.MODALITY_VIDEO, types.MODALITY_TIME_SERIES),
    ],
)
def test_embeddings(modalities: tuple[int, ...], pair: Pair, computed: InternOracle) -> None:
    """Embeddings of the reference in place of what we compute, of each modality and of all, continue alike."""
    expected, prepared = computed.answer("mixed", MIXED), items_of(pair, MIXED)
    for item in prepared.items:
        if item.modality in modalities:
            rows = computed.embeddings(item).astype(np.float32)
            item.tensor.CopyFrom(from_array(rows))
            item.payload_kind = types.PAYLOAD_KIND_EMBEDDINGS
    request = pb.GenerateRequest(
        token_ids=types.TokenIds(ids=prepared.token_ids), items=prepared.items, sampling=greedy(TOKENS)
    )
    assert_continued(expected, pair.stub.Generate(request).choices[0])


def test_one_of_several_series_as_embeddings(pair: Pair, computed: InternOracle) -> None:
    """A series as embeddings stands beside series that are computed, and in a conversation."""
    expected, prepared = computed.answer("three_series", CASES["three_series"]), items_of(pair, CASES["three_series"])
    request = request_of(CASES["three_series"])
    item = prepared.items[1]
    item.tensor.CopyFrom(from_array(computed.embeddings(item).astype(np.float32)))
    item.payload_kind = types.PAYLOAD_KIND_EMBEDDINGS
    item.ClearField("ranges")
    request.messages[0].parts[1].item.CopyFrom(item)
    assert_continued(expected, pair.stub.Chat(request).choices[0])


def dequantised(path: Path) -> dict[str, torch.Tensor]:
    """The weights of an FP8 checkpoint: blocks of e4m3 under their scales."""
    stored = load_file(path / "model.safetensors")
    weights = {}
    for name, tensor in stored.items():
        scale = stored.get(f"{name}_scale_inv")
        if scale is not None:
            wide = scale.float().repeat_interleave(FP8_BLOCK[0], 0).repeat_interleave(FP8_BLOCK[1], 1)
            tensor = tensor.float() * wide[: tensor.shape[0], : tensor.shape[1]]
        weights[name] = tensor
    return weights


def test_fp8(pairs: Pairs, tmp_path: Path) -> None:
    """A checkpoint in FP8 blocks answers as the reference does with the weights that the blocks stand for."""
    path = make_tiny_interns1_pro(tmp_path / "fp8", fp8=True, eos_token_ids=(639,))
    weights = dequantised(path)
    assert any(name.endswith("_scale_inv") for name in weights)
    with pairs.fresh(Flags(path)) as pair:
        oracle = InternOracle(path, pair.stub, weights)
        oracle.answer("mixed", MIXED)
        oracle.answer("text", CASES["text"])
