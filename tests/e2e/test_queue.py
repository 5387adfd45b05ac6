"""Who runs when there is not room for all: priorities, more choices than seats, small requests beside large ones."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.harness import Flags, Pair, Pairs, wait_until
from tests.e2e.status import canary_tokens
from tests.parity.cases import Case, chat_request, user

STORY = Case("story", (user("Tell me a story."),))


@pytest.fixture
def narrow(pairs: Pairs, tiny: Callable[[str], Path]) -> Pair:
    """A pair that runs one sequence at a time."""
    return pairs.get(
        Flags(tiny("5.x"), worker=("--max-sequences", "1", "--max-batched-tokens", "16", "--no-prefix-cache"))
    )


@pytest.fixture
def pair(pairs: Pairs, tiny: Callable[[str], Path]) -> Pair:
    """The default pair."""
    return pairs.get(Flags(tiny("5.x")))


def test_higher_priority_runs_first(narrow: Pair) -> None:
    """Of requests that wait, the one of higher priority gets the seat; the order among equals is that of arrival."""
    running = narrow.stub.StreamChat(chat_request(STORY, max_tokens=3000))
    next(running)
    ended: list[str] = []
    calls = {}
    for name, priority in (("idle", -10), ("first", 0), ("second", 0), ("urgent", 10)):
        waiting = len(calls)
        calls[name] = narrow.stub.Chat.future(chat_request(STORY, max_tokens=20, priority=priority))
        calls[name].add_done_callback(lambda _, name=name: ended.append(name))
        # The urgent one need not wait: it may take the seat of the one that runs.
        seated = lambda waiting=waiting: bool(ended) or narrow.model().workers[0].waiting > waiting  # noqa: E731
        wait_until(seated, "it waits, or has run", 5)
    running.cancel()
    for call in calls.values():
        call.result(timeout=30)
    wait_until(lambda: len(ended) == 4, "all have ended", 5)
    assert ended == ["urgent", "first", "second", "idle"]


def test_more_choices_than_seats(narrow: Pair, pair: Pair) -> None:
    """Choices that find no seat wait for one, and draw what they draw elsewhere."""
    request = chat_request(STORY, max_tokens=12, n=5, seed=3)
    request.sampling.temperature = 1.0
    wide = [list(choice.token_ids) for choice in pair.stub.Chat(request).choices]
    assert [list(choice.token_ids) for choice in narrow.stub.Chat(request).choices] == wide
    assert len({tuple(tokens) for tokens in wide}) == 5


def test_a_small_request_is_not_stuck_behind_a_large_one(pair: Pair) -> None:
    """While long answers run, a short one comes and goes."""
    calls = [pair.stub.StreamChat(chat_request(STORY, max_tokens=3000)) for _ in range(4)]
    for call in calls:
        next(call)
    started = time.monotonic()
    assert len(canary_tokens(pair)) == 6
    assert time.monotonic() - started < 2
    assert pair.model().workers[0].running == 4
    for call in calls:
        call.cancel()
