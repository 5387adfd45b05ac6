"""The same answers under every pressure: many at once, small chunks, few blocks, two workers.

What a request is answered must not depend on its neighbours.
"""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from tessera.v1 import inference_service_pb2 as pb
from tests.e2e.harness import Flags, Pair, Pairs
from tests.e2e.status import outcome
from tests.parity.cases import NEW_TOKENS, Case, chat_cases, chat_request, raw_cases, user
from tests.parity.compare import assert_continued
from tests.parity.oracle import Oracle
from tests.parity.test_grpc_generate import request_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]
CHATS = {case.name: case for case in chat_cases()}
RAWS = {case.name: case for case in raw_cases()}
SIXTEEN = (
    "text",
    "one_image",
    "image_after_text",
    "three_images",
    "image_video_image_video",
    "two_videos",
    "image_then_video",
    "video_then_image",
    "extreme_aspect_wide",
    "video_fps",
    "one_frame_in_a_list",
    "several_turns",
    "budgets_of_both",
    "raw_markers_mixed",
    "raw_one_placeholder",
    "raw_adjacent_images",
)
BLOCK_SIZE = 16
LONG_TOKENS = 140
OracleOf, PairOf = Callable[[str], Oracle], Callable[..., Pair]


def run_all(pair: Pair, computed: Oracle, names: tuple[str, ...] = SIXTEEN, salt: bytes = b"") -> list[pb.ChatChoice]:
    """Send all cases at once and check each answer; returns the choices."""
    cases: list[Case] = [CHATS.get(name) or RAWS[name] for name in names]
    expected = [computed.answer(case) for case in cases]

    def ask(index: int) -> pb.ChatChoice:
        case = cases[index]
        if case.prompt:
            request = request_of(case, expected[index], "text")
            request.cache_salt = salt
            return pair.stub.Generate(request).choices[0]
        chat = chat_request(case)
        chat.cache_salt = salt
        return pair.stub.Chat(chat).choices[0]

    with ThreadPoolExecutor(len(cases)) as threads:
        choices = list(threads.map(ask, range(len(cases))))
    for want, choice in zip(expected, choices, strict=True):
        assert_continued(want, choice)
    return choices


def test_sixteen_at_once(oracle: OracleOf, pair_of: PairOf) -> None:
    """Sixteen requests that run together are answered as each alone."""
    run_all(pair_of("5.x"), oracle("5.x"))


@pytest.mark.parametrize("style", ["4.57", "5.x"])
def test_32_tokens_a_step(style: str, oracle: OracleOf, pairs: Pairs, tiny: Callable[[str], Path]) -> None:
    """Prefill in chunks of at most 32 tokens, which cut inside items, changes nothing; nor do neighbours then."""
    flags = Flags(tiny(style), worker=("--max-batched-tokens", "32", "--max-sequences", "16"))
    pair = pairs.get(flags)
    for name in ("image_video_image_video", "extreme_aspect_wide", "raw_one_placeholder"):
        run_all(pair, oracle(style), (name,), salt=b"alone")
    if style == "5.x":
        run_all(pair, oracle(style))


def few_blocks(computed: Oracle, model: Path) -> Flags:
    """Flags for as many KV blocks as the longest of the sixteen needs, plus two."""
    longest = NEW_TOKENS + max(len(computed.answer(CHATS.get(n) or RAWS[n]).token_ids) for n in SIXTEEN)
    blocks = -(-longest // BLOCK_SIZE) + 2
    limits = ("--max-model-len", str(longest), "--block-size", str(BLOCK_SIZE), "--num-blocks", str(blocks))
    return Flags(model, worker=(*limits, "--log-level", "debug"))


def test_few_blocks(oracle: OracleOf, pairs: Pairs, tiny: Callable[[str], Path]) -> None:
    """With room for little more than the longest request, requests are preempted and recomputed, and answered alike."""
    pair = pairs.get(few_blocks(oracle("5.x"), tiny("5.x")))
    # Each of these needs most of the blocks in the end: two of them cannot run side by side to their ends.
    long = [replace(CHATS["text"], name=f"long{i}", turns=(user(f"Tell me story {i}."),)) for i in range(3)]
    calls = [pair.stub.Chat.future(chat_request(case, max_tokens=LONG_TOKENS)) for case in long]
    run_all(pair, oracle("5.x"), salt=b"first")
    for case, call in zip(long, calls, strict=True):
        assert_continued(oracle("5.x").answer(case, LONG_TOKENS), call.result().choices[0])
    assert preemptions(pair) > 0, "nothing was preempted: the test shows nothing"
    run_all(pair, oracle("5.x"), SIXTEEN[::-1], salt=b"second")


def preemptions(pair: Pair) -> int:
    """How often the workers say that they have preempted."""
    events = [event for worker in pair.workers for event in worker.events()]
    return sum(event["count"] for event in events if event["event"] == "sequences_preempted")


def test_few_blocks_and_small_chunks(oracle: OracleOf, pairs: Pairs, tiny: Callable[[str], Path]) -> None:
    """Both pressures together change nothing either."""
    flags = few_blocks(oracle("5.x"), tiny("5.x"))
    small = (*flags.worker, "--max-batched-tokens", "32", "--max-sequences", "8")
    with pairs.fresh(Flags(flags.model, worker=small)) as pair:
        run_all(pair, oracle("5.x"))
        pair.assert_idle()


def test_two_workers(oracle: OracleOf, pair_of: PairOf) -> None:
    """Over two workers answers are the same, and both work."""
    pair = pair_of("5.x", workers=2)
    run_all(pair, oracle("5.x"))
    placed = {event["worker"] for event in pair.gateway.events() if event["event"] == "request_placed"}
    assert placed == {worker.address for worker in pair.workers}
    assert len(pair.model().workers) == 2


def test_items_that_are_evicted_are_staged_again(oracle: OracleOf, pairs: Pairs, tiny: Callable[[str], Path]) -> None:
    """Where a worker forgets items before their turn has come they are brought again, and the answers are the same."""
    forgetful = ("--staged-ttl-s", "0.01", "--encoder-cache-bytes", "0", "--max-sequences", "2")
    with pairs.fresh(Flags(tiny("5.x"), worker=forgetful)) as pair:
        run_all(pair, oracle("5.x"))
        run_all(pair, oracle("5.x"), salt=b"again")
        pair.assert_idle()


def test_more_items_than_a_worker_may_hold(oracle: OracleOf, pairs: Pairs, tiny: Callable[[str], Path]) -> None:
    """A full budget refuses with RetryInfo, answers what it has taken as ever, and later takes the refused ones."""
    with pairs.fresh(Flags(tiny("5.x"), worker=("--staged-bytes", "700k", "--encoder-cache-bytes", "0"))) as pair:
        names = ("image_video_image_video", "two_videos", "several_turns", "budgets_of_both") * 4
        requests = [chat_request(CHATS[name]) for name in names]
        for index, request in enumerate(requests):
            request.cache_salt = bytes([index])
        calls = [pair.stub.Chat.future(request) for request in requests]
        statuses = [outcome(call.result) for call in calls]
        assert {status.code for status in statuses} <= {"OK", "RESOURCE_EXHAUSTED"}
        for name, call, status in zip(names, calls, statuses, strict=True):
            if status.code == "OK":
                assert_continued(oracle("5.x").answer(CHATS[name]), call.result().choices[0])
            else:
                assert status.retry_s is not None
        for delay_s in (0.005, 0.01, 0.015, 0.02, 0.03, 0.05):
            # Who leaves while items are being refused leaves no unread failure behind, which the log would show.
            leaving = [pair.stub.Chat.future(request) for request in requests]
            time.sleep(delay_s)
            for call in leaving:
                call.cancel()
        for name in dict.fromkeys(names):
            answered = pair.stub.Chat(chat_request(CHATS[name])).choices[0]
            assert_continued(oracle("5.x").answer(CHATS[name]), answered)
        pair.assert_idle()
