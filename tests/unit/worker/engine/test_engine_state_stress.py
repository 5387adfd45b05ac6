"""Random days of a model with recurrent state: whatever comes, its answers are those of each request alone."""

import random

import pytest
import structlog

from tests.unit.worker.engine.fakes import make_item, place
from tests.unit.worker.engine.stateful import StatefulHarness, stateful_tokens, text
from tests.unit.worker.engine.test_engine_steps import with_items

POISON = 200  # no model answers it
ITEMS = {make_item(n, length).content_hash: make_item(n, length) for n in range(4) for length in range(1, 7)}

pytestmark = pytest.mark.usefixtures("scheduling")


def random_harness(rng):
    """Return an engine with tight limits of every kind."""
    seats = rng.choice([1, 2, 5, 8])
    return StatefulHarness(
        num_blocks=rng.choice([16, 18, 24, 40]),
        max_sequences=seats,
        max_batched_tokens=max(seats, rng.choice([1, 3, 5, 8, 32])),
        encoder_cache_bytes=32 * rng.choice([12, 20, 64]),
        retain_encoded=rng.random() < 0.7,
        enable_prefix_cache=rng.random() < 0.8,
        state_checkpoints=rng.choice([0, 1, 2, 4, 16]),
        state_passing_share=rng.choice([0.25, 0.5, 1.0]),
        staged_ttl_s=3.0,
    )


def random_request(rng, harness):
    """Return a prompt and its (item, place) pairs: anew, with a shared beginning, or a next turn."""
    pairs, offset = [], 0
    prompt = text(rng.randrange(1, 40), seed=rng.randrange(3))
    if rng.random() < 0.3:
        cut = rng.randrange(len(prompt))
        prompt[cut:] = text(len(prompt) - cut, seed=rng.randrange(100))
    if harness.tokens and rng.random() < 0.3:
        earlier = rng.choice(sorted(harness.tokens))
        prompt, pairs = harness.asked[earlier[0]]
        prompt = [*prompt, *harness.tokens[earlier], *text(rng.randrange(1, 6), seed=rng.randrange(100))]
        return [token for token in prompt if token != POISON][:50], pairs
    for _ in range(rng.choice([0, 0, 1, 2])):
        length, gap = rng.randrange(1, 7), rng.randrange(0, 4)
        if offset + gap + length > len(prompt):
            break
        item = make_item(rng.randrange(4), length)
        pairs.append((item, place(item, (offset + gap, length))))
        offset += gap + length
    return with_items(prompt, *[placed for _, placed in pairs]), pairs


def add_random(rng, harness, name):
    """Submit a request; return what each of its choices must answer."""
    prompt, pairs = random_request(rng, harness)
    if rng.random() < 0.04 and len(prompt) > 1 and not pairs:
        prompt[rng.randrange(len(prompt))] = POISON
    most = rng.randrange(1, 64 - len(prompt))
    choices = tuple(range(rng.choice([1, 1, 1, 3])))
    harness.asked[name] = prompt, pairs
    harness.late += [item for item, _ in pairs]
    priority = rng.choice([0, 0, 0, 1])
    placed = [place_ for _, place_ in pairs]
    harness.add(name, prompt, placed, max_tokens=most, choices=choices, priority=priority)
    return {(name, choice): stateful_tokens(prompt, pairs, most) for choice in choices}


def run_day(seed, num_requests):
    """Return the engine after a day, and the tokens of every choice alone."""
    rng = random.Random(seed)
    harness = random_harness(rng)
    harness.model.broken_tokens = {POISON}
    harness.asked, harness.late = {}, []
    expected = {}
    for number in range(num_requests):
        expected |= add_random(rng, harness, f"r{number}")
        for _ in range(rng.randrange(0, 8)):
            harness.model.glitch = rng.random() < 0.05 and not harness.has_suspects
            step(harness, rng)
        harness.model.glitch = False
        if rng.random() < 0.2:
            harness.engine.cancel(0, rng.choice(sorted(harness.asked)), 0, rng.choice([None, 0]))
    for _ in range(20_000):
        if harness.engine.is_idle:
            break
        step(harness, rng)
    return harness, expected


def step(harness, rng):
    """Run a step, and bring some of the items that are on their way or are asked for."""
    seen = len(harness.needs)
    harness.step()
    harness.clock.advance(rng.random())
    harness.late += [ITEMS[content_hash] for _, content_hash in harness.needs[seen:]]
    arrived = [rng.random() < 0.5 for _ in harness.late]
    harness.stage(*[item for item, now in zip(harness.late, arrived, strict=True) if now])
    harness.late = [item for item, now in zip(harness.late, arrived, strict=True) if not now]


def check_day(harness, expected):
    assert harness.engine.is_idle
    harness.check_idle()
    assert harness.ends.keys() == expected.keys()
    for key, tokens in expected.items():
        end, found = harness.ends[key], harness.tokens[key]
        if end.finish_reason == "length":
            assert found == tokens, key
        else:
            assert end.failure.reason == "CANCELLED" or POISON in harness.asked[key[0]][0]
            assert found == tokens[: len(found)], key


@pytest.mark.parametrize("seed", range(6))
def test_a_random_day(seed):
    """Arrivals, tiny budgets, preemption, forks, cancellation, shared prefixes, failures: every answer is its own."""
    with structlog.testing.capture_logs():
        check_day(*run_day(seed, 10))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 116))
def test_a_long_random_day(seed):
    """The same with fifty requests a day."""
    with structlog.testing.capture_logs():
        check_day(*run_day(seed, 50))
