"""Every family that transformers has, over gRPC against transformers: same prompts, same items, same continuations.

Families that share a processor with a sibling compare the sixteen mixed cases; the others compare all of them.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tessera.v1 import inference_service_pb2 as pb
from tests.e2e.harness import Flags, Pair, Pairs
from tests.parity.cases import CLIP, NEW_TOKENS, SMALL, TALL, Case, chat_cases, chat_request, raw_cases, user
from tests.parity.compare import assert_continued, assert_items, assert_prepared
from tests.parity.families import FAMILIES
from tests.parity.oracle import Oracle
from tests.parity.test_grpc_generate import FORMS, item_of, request_of
from tests.parity.test_grpc_pressure import BLOCK_SIZE, SIXTEEN, preemptions, run_all

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]
CHATS = {case.name: case for case in chat_cases()}
RAWS = {case.name: case for case in raw_cases()}
# GLM's layout is one; a bare marker of a clip is none of its prompts.
NOT_GLM = ("layout_of_4_57", "raw_video_of_4_57", "raw_one_video_placeholder")
LONG_TOKENS = 64
MIXED = ("image_video_image_video", "several_turns", "raw_markers_mixed", "raw_adjacent_images")
OracleOf, PairOf = Callable[[str], Oracle], Callable[..., Pair]


def cases(kind: dict[str, Case]) -> list[tuple[str, str]]:
    """Return (family, case) for each case that a family compares."""
    return [
        (family, name)
        for family, entry in FAMILIES.items()
        for name in kind
        if (entry.sibling is None or name in SIXTEEN) and not (family.startswith("glm") and name in NOT_GLM)
    ]


@pytest.mark.parametrize(("family", "name"), cases(CHATS))
def test_chat(family: str, name: str, oracle: OracleOf, pair_of: PairOf) -> None:
    """Prompt, ids, ranges, grids, times, pixels and 24 greedy tokens are transformers'."""
    case, stub = CHATS[name], pair_of(family).stub
    expected = oracle(family).answer(case)
    prepared = stub.Prepare(pb.PrepareRequest(chat=chat_request(case), include_tensors=True))
    assert_prepared(expected, prepared, **FAMILIES[family].patches)
    assert_continued(expected, stub.Chat(chat_request(case)).choices[0])


@pytest.mark.parametrize(("family", "name"), cases(RAWS))
def test_generate(family: str, name: str, oracle: OracleOf, pair_of: PairOf) -> None:
    """A raw prompt as text, as ids with one marker an item, and as expanded ids with ranges continues alike."""
    expected, stub = oracle(family).answer(RAWS[name]), pair_of(family).stub
    for form in FORMS:
        response = stub.Generate(request_of(RAWS[name], expected, form))
        assert tuple(response.prompt.token_ids) == expected.token_ids
        assert [tuple((r.offset, r.length) for r in item.ranges) for item in response.prompt.items] == [
            tuple((r.offset, r.length) for r in item.ranges) for item in expected.items
        ]
        assert_continued(expected, response.choices[0])


@pytest.mark.parametrize("family", FAMILIES)
def test_64_tokens_across_blocks(family: str, oracle: OracleOf, pair_of: PairOf) -> None:
    """64 tokens, four blocks of them, go on from a mixed prompt as in transformers."""
    case = replace(CHATS["image_then_video"], name="64_tokens")
    expected = oracle(family).answer(case, LONG_TOKENS)
    choice = pair_of(family).stub.Chat(chat_request(case, max_tokens=LONG_TOKENS)).choices[0]
    assert len(choice.token_ids) == LONG_TOKENS
    assert_continued(expected, choice)


@pytest.mark.parametrize("family", FAMILIES)
def test_sixteen_at_once(family: str, oracle: OracleOf, pair_of: PairOf) -> None:
    """Sixteen mixed requests that run together are answered as each alone."""
    run_all(pair_of(family), oracle(family))


@pytest.mark.parametrize("family", FAMILIES)
def test_32_tokens_a_step_without_caches(
    family: str, oracle: OracleOf, pairs: Pairs, tiny: Callable[[str], Path]
) -> None:
    """Chunks of at most 32 tokens, which cut inside items, change nothing; nor does it that no cache helps."""
    worker = ("--max-batched-tokens", "32", "--max-sequences", "16", "--no-prefix-cache", "--no-retain-encoded")
    run_all(pairs.get(Flags(tiny(family), worker, ("--processor-cache-bytes", "0"))), oracle(family))


@pytest.mark.parametrize("family", FAMILIES)
def test_few_blocks(family: str, oracle: OracleOf, pairs: Pairs, tiny: Callable[[str], Path]) -> None:
    """With KV blocks for little more than one request, requests are preempted and recomputed, and answered alike."""
    computed = oracle(family)
    longest = NEW_TOKENS + max(len(computed.answer(CHATS.get(n) or RAWS[n]).token_ids) for n in SIXTEEN)
    blocks = -(-longest // BLOCK_SIZE) + 2
    limits = ("--max-model-len", str(longest), "--block-size", str(BLOCK_SIZE), "--num-blocks", str(blocks))
    # Each of these needs most of the blocks in the end: two of them cannot run side by side to their ends.
    long = [replace(CHATS["text"], name=f"long{i}", turns=(user(f"Tell me story {i}."),)) for i in range(3)]
    tokens = longest * 2 // 3
    with pairs.fresh(Flags(tiny(family), worker=(*limits, "--log-level", "debug"))) as pair:
        calls = [pair.stub.Chat.future(chat_request(case, max_tokens=tokens)) for case in long]
        run_all(pair, computed, MIXED)
        for case, call in zip(long, calls, strict=True):
            assert_continued(computed.answer(case, tokens), call.result().choices[0])
        assert preemptions(pair) > 0, "nothing was preempted: the test shows nothing"
        pair.assert_idle()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_next_turn_begins_where_the_last_one_ended(family: str, oracle: OracleOf, pair_of: PairOf) -> None:
    """A conversation's second turn finds its first in the prefix cache, and is answered as without one."""
    computed, stub = oracle(family), pair_of(family).stub
    first = Case(f"turn_one_{family}", (user("Remember this. ", SMALL, CLIP, "What do you see here, and what moves?"),))
    salt = b"turns"
    request = chat_request(first)
    request.cache_salt = salt
    stub.Chat(request)
    second = replace(first, name=f"turn_two_{family}", turns=(*first.turns, user("And now, once more, please?")))
    request = chat_request(second)
    request.cache_salt = salt
    response = stub.Chat(request)
    assert_continued(computed.answer(second), response.choices[0])
    assert response.usage.cached_tokens > 0.5 * len(computed.answer(first).token_ids)


@pytest.mark.parametrize("family", FAMILIES)
def test_adjacent_items_as_ids_with_ranges(family: str, oracle: OracleOf, pair_of: PairOf) -> None:
    """Two pictures side by side, with no token between them, are told apart by their ranges."""
    case = RAWS["raw_adjacent_images"]
    expected = oracle(family).answer(case)
    first, second = (item.ranges[0] for item in expected.items)
    assert first.end == second.offset
    response = pair_of(family).stub.Generate(request_of(case, expected, "expanded_ids"))
    assert_continued(expected, response.choices[0])


@pytest.mark.parametrize("family", FAMILIES)
def test_pixels_and_patches_are_one_item(family: str, oracle: OracleOf, pair_of: PairOf) -> None:
    """A picture as Prepare returns it beside one as transformers' processor returns it, in one request."""
    case = Case(f"kinds_{family}", (user(SMALL, TALL, "Compare both."),))
    expected, stub = oracle(family).answer(case), pair_of(family).stub
    prepared = stub.Prepare(pb.PrepareRequest(chat=chat_request(case), include_tensors=True))
    assert_items(expected, prepared.items)
    request = pb.GenerateRequest(
        token_ids={"ids": expected.token_ids},
        items=[prepared.items[0], item_of(expected.items[1], with_ranges=True)],
        sampling=chat_request(case).sampling,
    )
    assert_continued(expected, stub.Generate(request).choices[0])
