"""Cancels, deadlines, lost workers, priorities and choices where a model keeps more than KV blocks, or hears series.

Qwen3.5 keeps recurrent state in slots; InternS1-Pro is asked with a series in flight. assert_idle counts both.
"""

import random
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tessera.v1 import inference_service_pb2 as pb
from tessera.v1 import types_pb2 as types
from tests.e2e.harness import SERVING, Flags, Pair, Pairs, wait_until
from tests.e2e.series import npy, wave
from tests.e2e.status import canary_tokens
from tests.e2e.test_cancel import LONG_TEXT, NARROW, assert_freed, assert_late, load
from tests.e2e.test_days import LOST_S, placed, read, tokens_of
from tests.parity.cases import CLIP, SMALL, Case, chat_request, user
from tests.parity.test_grpc_pressure import preemptions
from tests.parity.test_grpc_sampling import drawn, execute, tokens

FAMILIES = ("qwen3_5", "interns1_pro")
SALTS = iter(range(1 << 30))
STORY = Case("story", (user("Tell me a story."),))
SEEING = Case("seeing", (user("Tell me a story of this: ", SMALL, CLIP),))


@pytest.fixture
def pair_of(pairs: Pairs, tiny: Callable[[str], Path]) -> Callable[..., Pair]:
    """The pair of a family and of a worker's flags."""
    return lambda family, *worker: pairs.get(Flags(tiny(family), worker=worker))


def story(family: str, max_tokens: int = 3000, *, new: bool = True, **sampling: Any) -> pb.ChatRequest:
    """A request with a picture and a clip, and a series where there are any; a new one finds nothing in caches."""
    request = chat_request(SEEING, max_tokens=max_tokens, **sampling)
    if family == "interns1_pro":
        part = request.messages[0].parts.add().time_series
        part.media.data = npy(wave(2000, 3))
        part.options.MergeFrom(types.TimeSeriesOptions(sampling_rate_hz=50.0))
    request.cache_salt = str(next(SALTS)).encode() if new else b""
    return request


# ---- cancels and deadlines


@pytest.mark.parametrize("family", FAMILIES)
def test_random_cancels_leak_nothing(family: str, pair_of: Callable[..., Pair]) -> None:
    """Cancelled at random moments, with items on their way, requests leave neither blocks nor slots behind."""
    pair = pair_of(family)
    before, rng = canary_tokens(pair), random.Random(5)
    for _ in range(12):
        choices = rng.choice((1, 3))
        calls = [pair.stub.Chat.future(story(family, 200, n=choices, temperature=0.9)) for _ in range(2)]
        time.sleep(rng.random() * 0.08)
        for call in calls:
            call.cancel()
    assert_freed(pair)
    assert canary_tokens(pair) == before


@pytest.mark.parametrize("family", FAMILIES)
def test_cancel_and_deadline_while_decoding(family: str, pair_of: Callable[..., Pair]) -> None:
    """A stream of three choices that is cancelled, and one whose time is up, free what they hold."""
    pair = pair_of(family)
    call = pair.stub.StreamChat(story(family, n=3, temperature=1.0))
    next(call)
    wait_until(lambda: load(pair)[0] == 3, "all choices run", 5)
    running = pair.model().workers[0]
    assert running.running_state_slots == (3 if family == "qwen3_5" else 0)
    call.cancel()
    assert_freed(pair)
    assert_late(lambda: list(pair.stub.StreamChat(story(family), timeout=0.8)))
    assert_freed(pair)


@pytest.mark.parametrize("family", FAMILIES)
def test_cancel_and_deadline_while_prefilling(family: str, pair_of: Callable[..., Pair]) -> None:
    """A prompt of many chunks is dropped between two of them, by its caller or by the clock."""
    pair = pair_of(family, *NARROW)
    long = Case("long", (user(SMALL, LONG_TEXT),))
    call = pair.stub.Chat.future(chat_request(long, max_tokens=2))
    wait_until(lambda: load(pair)[2] > 2, "the prompt is being computed", 5, 0.002)
    assert not call.done()
    call.cancel()
    assert_freed(pair)
    assert_late(lambda: pair.stub.Chat(chat_request(long, max_tokens=2), timeout=0.3))
    assert_freed(pair)


# ---- lost workers


@pytest.mark.parametrize("family", FAMILIES)
def test_one_of_two_workers_is_lost(family: str, pairs: Pairs, tiny: Callable[[str], Path]) -> None:
    """Two workers answer alike; when one is killed its streams end with UNAVAILABLE, the other's go on as alone."""
    with pairs.fresh(Flags(tiny(family), workers=2)) as pair, ThreadPoolExecutor(4) as threads:
        alone = list(pair.stub.Chat(story(family, 400)).choices[0].token_ids)
        assert [list(pair.stub.Chat(story(family, 40)).choices[0].token_ids) for _ in range(2)] == [alone[:40]] * 2
        assert set(placed(pair)) == {worker.address for worker in pair.workers}
        calls = [pair.stub.StreamChat(story(family, 400)) for _ in range(4)]
        heads = [tokens_of(next(call)) for call in calls]
        endings = [threads.submit(read, call) for call in calls]
        pair.workers[0].kill()
        killed = time.monotonic()
        wait_until(lambda: sum(ending.done() for ending in endings) >= 2, "the lost streams end", LOST_S)
        assert time.monotonic() - killed < LOST_S
        results = [ending.result(timeout=60) for ending in endings]
        codes = sorted((status.code, status.reason) for _, status in results)
        assert codes == [("OK", "")] * 2 + [("UNAVAILABLE", "WORKER_LOST")] * 2
        for head, (rest, status) in zip(heads, results, strict=True):
            assert head + rest == alone[: len(head + rest)]
            assert status.code != "OK" or len(head + rest) == 400
        pair.workers[0].restart()
        wait_until(lambda: all(w.state == pb.MODEL_STATE_READY for w in pair.model().workers), "used again", 60)
        assert pair.gateway.health() == SERVING
        pair.assert_idle()


# ---- choices and priorities


def test_choices_of_a_hybrid(pair_of: Callable[..., Pair]) -> None:
    """Each of four choices is a function of seed and index: with fewer, alone, or going on after what it has said."""
    pair = pair_of("qwen3_5")
    four = tokens(drawn(pair, STORY, n=4, seed=11))
    assert len(set(four)) == 4
    for n in (1, 2, 3):
        assert tokens(drawn(pair, STORY, n=n, seed=11)) == four[:n]
    prompt = pair.stub.Prepare(pb.PrepareRequest(chat=chat_request(STORY))).token_ids
    for index, expected in enumerate(four):
        assert execute(pair, prompt, choices=[index])[index] == expected
        emitted = [types.TokenIds() for _ in four]
        emitted[index].ids.extend(expected[:17])
        assert execute(pair, prompt, choices=[index], emitted=emitted)[index] == expected[17:]


def test_more_choices_than_seats_of_a_hybrid(pair_of: Callable[..., Pair]) -> None:
    """Choices that wait for a seat recompute their state, and draw what they draw elsewhere."""
    request = chat_request(SEEING, max_tokens=12, n=5, seed=3, temperature=1.0)
    wide = tokens(pair_of("qwen3_5").stub.Chat(request))
    assert tokens(pair_of("qwen3_5", *NARROW).stub.Chat(request)) == wide
    assert len(set(wide)) == 5


@pytest.mark.parametrize(("family", "cached"), [("qwen3_5", True), ("qwen3_5", False), ("interns1_pro", True)])
def test_the_urgent_take_the_seat(family: str, cached: bool, pairs: Pairs, tiny: Callable[[str], Path]) -> None:
    """Urgent requests preempt the one that runs, again and again; its tokens are those of an undisturbed run."""
    flags = ("--max-sequences", "1", "--max-batched-tokens", "64", "--block-size", "16", "--log-level", "debug")
    pair = pairs.get(Flags(tiny(family), worker=flags if cached else (*flags, "--no-prefix-cache")))
    alone = list(pair.stub.Chat(story(family, 300)).choices[0].token_ids)
    urgent = list(pair.stub.Chat(chat_request(STORY, max_tokens=8)).choices[0].token_ids)
    call, said = pair.stub.StreamChat(story(family, 300)), []
    for message in interrupted(call, pair, urgent):
        said += tokens_of(message)
    assert said == alone
    assert preemptions(pair) >= 3


def interrupted(call: Any, pair: Pair, urgent: list[int]) -> Iterator[Any]:
    """The messages of a stream; before the first three an urgent request is answered."""
    for number, message in enumerate(call):
        if number < 3:
            request = chat_request(STORY, max_tokens=8, priority=50)
            assert list(pair.stub.Chat(request).choices[0].token_ids) == urgent
        yield message
