"""Asynchronous scheduling: what is launched before what is fetched, and that nobody can tell from the answers.

All other tests of the engine run both ways, too.
"""

import random
from collections import Counter

import pytest
import structlog
import torch

from tests.unit.worker.engine.fakes import FakeModel, Harness, greedy_tokens, make_item, place
from tests.unit.worker.engine.stateful import StatefulHarness, stateful_tokens, text
from tests.unit.worker.engine.test_engine_steps import prompt_of, with_items
from worker.engine.sampler import Sampler


class Watched(Sampler):
    """The sampler, which notes when draws begin and when they are waited for."""

    def __init__(self):
        self.events = []
        self.failing = False

    def start(self, logits, rows, drawn=None):
        sampled = super().start(logits, rows, drawn)
        self.events.append(("begun", sampled))
        return sampled

    def finish(self, sampled, rows):
        self.events.append(("fetched", sampled))
        if self.failing:
            raise RuntimeError("the device is gone")
        return super().finish(sampled, rows)


def watched(**overrides):
    harness = Harness(**({"async_scheduling": True} | overrides))
    harness.engine.sampler = Watched()
    return harness, harness.engine.sampler


def numbered(events):
    """Return the events with steps counted: what begins first is 0."""
    order = [sampled for name, sampled in events if name == "begun"]
    return [(name, order.index(sampled)) for name, sampled in events]


def test_a_step_is_launched_before_the_tokens_of_the_one_before_are_fetched():
    """Of two steps the second begins first and the first is fetched then; without the mode they take turns."""
    for mode in (True, False):
        harness, sampler = watched(async_scheduling=mode)
        harness.add("a", prompt_of(5), max_tokens=4)
        harness.run()
        steps = [[("begun", n), ("fetched", n)] for n in range(4)]
        in_turn = [event for step in steps for event in step]
        if mode:
            ahead = [("begun", 0)] + [event for n in range(3) for event in (("begun", n + 1), ("fetched", n))]
            assert numbered(sampler.events) == [*ahead, ("fetched", 3)]
        else:
            assert numbered(sampler.events) == in_turn
        assert harness.tokens["a", 0] == greedy_tokens(prompt_of(5), num_tokens=4)


def test_a_token_is_told_in_the_step_after_its_own():
    """News come one step later than the step that drew them, and a last step tells the last of them."""
    harness, _ = watched()
    harness.add("a", prompt_of(5), max_tokens=3)
    told = [[update.token_ids for update in harness.step().updates] for _ in range(4)]
    assert told == [[], *[[[token]] for token in greedy_tokens(prompt_of(5), num_tokens=3)]]
    assert harness.engine.is_idle


def test_an_answer_that_ends_by_its_length_computes_nothing_in_vain():
    """That the pending token will be the last is known beforehand, from max_tokens and from the context's length."""
    for max_tokens in (1, 5, 59):
        harness, _ = watched(num_blocks=16)
        harness.add("a", prompt_of(5), max_tokens=max_tokens)
        harness.run()
        assert harness.model.batches == [(5,)] + [(1,)] * (max_tokens - 1)
    harness, _ = watched(num_blocks=16)
    harness.add("a", prompt_of(60), max_tokens=4)
    harness.run()
    assert harness.ends["a", 0].finish_reason == "length" and len(harness.tokens["a", 0]) == 4


def test_an_answer_that_ends_by_a_token_computes_one_in_vain():
    """The token after it is thrown away, its blocks are free, and what it wrote is in no cache."""
    prompt = prompt_of(6)
    tokens = greedy_tokens(prompt, num_tokens=8)
    stop = next(n for n in range(2, 8) if tokens[n] not in tokens[:n])
    cached = []
    for mode in (False, True):
        harness, _ = watched(async_scheduling=mode)
        harness.add("a", prompt, sampling={"stop_token_ids": frozenset({tokens[stop]})})
        harness.run()
        assert harness.tokens["a", 0] == tokens[: stop + 1]
        assert harness.ends["a", 0].matched_stop_token_id == tokens[stop]
        assert len(harness.model.batches) == 1 + stop + mode
        cached.append(harness.engine.pool.num_cached)
    assert cached[0] == cached[1]


# Penalties below zero, or one: a token that is drawn becomes likelier, so that not counting the last one shows.
SAMPLING = {
    "penalties": {"repetition_penalty": 0.6, "frequency_penalty": -0.5, "presence_penalty": -0.6},
    "presence": {"presence_penalty": -2.0, "temperature": 0.7, "top_k": 20, "top_p": 0.8, "seed": 5},
    "logprobs": {"temperature": 1.2, "seed": 3, "logprobs": True, "top_logprobs": 4},
    "bias": {"logit_bias": ((3, 2.0), (7, -9.0)), "repetition_penalty": 0.6},
}


@pytest.mark.parametrize("name", SAMPLING)
def test_draws_do_not_depend_on_the_mode(name):
    """Penalties count a token that nobody has fetched, keys count its place: tokens and log probabilities are equal."""
    answers = []
    for mode in (False, True):
        harness = Harness(async_scheduling=mode, max_batched_tokens=16)
        harness.add("drawn", prompt_of(9), max_tokens=24, choices=(0, 1), sampling=SAMPLING[name])
        harness.add("beside", prompt_of(20, seed=2), max_tokens=9, sampling={"seed": 1, "temperature": 1.0})
        harness.run()
        answers.append((harness.tokens, harness.logprobs))
    assert answers[0] == answers[1]
    changed, plain = answers[0][0]["drawn", 0], greedy_tokens(prompt_of(9), num_tokens=24)
    assert changed != plain


def test_cancelling_with_a_token_under_way():
    """What is drawn for a sequence that was cancelled meanwhile is nobody's, and all that it held is free at once."""
    harness, _ = watched()
    harness.add("a", prompt_of(5))
    harness.add("b", prompt_of(6))
    harness.step()
    harness.step()
    harness.engine.cancel(0, "a", 0)
    harness.check()
    harness.add("c", prompt_of(7))
    harness.run()
    assert harness.ends["a", 0].failure.reason == "CANCELLED" and len(harness.tokens["a", 0]) == 1
    assert harness.tokens["b", 0] == greedy_tokens(prompt_of(6))
    assert harness.tokens["c", 0] == greedy_tokens(prompt_of(7))


def test_a_failing_step_loses_no_token_of_the_one_before():
    """Who is not to blame goes on with the token that was under way; nothing is told twice."""
    prompts = {name: prompt_of(5 + number, seed=number) for number, name in enumerate("ab")}
    bad = prompt_of(4, seed=9)
    model = FakeModel()
    model.broken_tokens = set(bad) - set().union(*prompts.values(), *map(greedy_tokens, prompts.values()))
    assert model.broken_tokens
    harness = Harness(model, async_scheduling=True)
    for name, prompt in prompts.items():
        harness.add(name, prompt)
    harness.step()
    harness.step()
    harness.add("bad", bad)
    with structlog.testing.capture_logs() as logs:
        harness.run()
    assert [entry["event"] for entry in logs] == ["step_failed", "sequence_failed"]
    assert harness.ends["bad", 0].failure.reason == "INTERNAL"
    for name, prompt in prompts.items():
        assert harness.tokens[name, 0] == greedy_tokens(prompt)


def test_a_failing_state_step_resumes_with_the_token_under_way():
    """A sequence whose state is suspect starts again with all its tokens, the one that was not known yet too."""
    harness = StatefulHarness(async_scheduling=True)
    for name in "ab":
        harness.add(name, text(9, seed=ord(name)))
    for _ in range(3):
        harness.step()
    harness.model.glitch = True
    with structlog.testing.capture_logs():
        harness.run()
    for name in "ab":
        assert harness.tokens[name, 0] == stateful_tokens(text(9, seed=ord(name)))


def test_draws_that_never_come_end_all():
    """Where the device fails under way the step raises; what is dropped then stays dropped, and the engine goes on."""
    harness, sampler = watched()
    harness.add("a", prompt_of(5))
    harness.step()
    sampler.failing = True
    with pytest.raises(RuntimeError, match="gone"):
        harness.engine.step()
    harness.engine.drop_all()
    sampler.failing = False
    harness.add("b", prompt_of(6))
    harness.run()
    assert harness.ends["a", 0].failure.reason == "INTERNAL"
    assert harness.tokens["b", 0] == greedy_tokens(prompt_of(6))


@pytest.mark.parametrize("seed", range(4))
def test_a_preempted_sequence_takes_its_token_along(seed):
    """Blocks that run out while a token is under way change nothing: it is computed again with the rest."""
    rng = random.Random(seed)
    harness = Harness(async_scheduling=True, num_blocks=16, max_sequences=4, max_batched_tokens=16)
    expected = {}
    for number in range(6):
        item = make_item(number % 3, 3)
        placed = place(item, (2, 3))
        prompt = with_items(prompt_of(rng.randrange(8, 16), seed=number), placed)
        harness.stage(item)
        harness.add(f"r{number}", prompt, [placed], max_tokens=24)
        expected[f"r{number}", 0] = greedy_tokens(prompt, [(item, placed)], 24)
    assert harness.run() == expected
    assert harness.engine.scheduler.num_preemptions


def test_forks_without_a_seat_are_drawn_later():
    """A step draws for no more sequences than may run; choices beyond that wait, be the first token their last."""
    for max_tokens in (1, 6):
        harness, sampler = watched(max_sequences=2)
        harness.add("a", prompt_of(6), max_tokens=max_tokens, choices=(0, 1, 2, 3, 4))
        harness.run()
        tokens = greedy_tokens(prompt_of(6), num_tokens=max_tokens)
        assert harness.tokens == {("a", choice): tokens for choice in range(5)}
        assert max(len(sampled.words) for _, sampled in sampler.events) == 2


@pytest.mark.parametrize("mode", [False, True])
def test_a_profile_shows_what_a_step_did(mode):
    """Encoding, prefill, decode and drawing are named ranges, as often as they happened."""
    harness = Harness(async_scheduling=mode)
    item = make_item(1, 4)
    placed = place(item, (2, 4))
    harness.stage(item)
    harness.add("a", with_items(prompt_of(9), placed), [placed], max_tokens=4)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        harness.run()
    counts = Counter(event.name for event in profile.events())
    assert {name: counts[name] for name in ("encode", "prefill", "decode", "sample")} == {
        "encode": 1,
        "prefill": 1,
        "decode": 3,
        "sample": 4,
    }
