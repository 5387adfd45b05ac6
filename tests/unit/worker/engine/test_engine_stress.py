"""Random days: adds, late items, cancellations, deadlines, preemptions, forks, on tight pools; books always agree."""

import random

import pytest

from tests.unit.worker.engine.fakes import Harness, greedy_tokens, make_item, place
from tests.unit.worker.engine.test_engine_steps import prompt_of, with_items

pytestmark = pytest.mark.usefixtures("scheduling")


def random_request(rng):
    """Return a prompt and its (item, place) pairs; prompts share prefixes and items often."""
    prompt = prompt_of(rng.randrange(2, 40), seed=rng.randrange(3))
    offset, pairs = 0, []
    for _ in range(rng.randrange(0, 3)):
        length, gap = rng.randrange(1, 7), rng.randrange(0, 4)
        if offset + gap + length > len(prompt):
            break
        item = make_item(rng.randrange(4), length)
        pairs.append((item, place(item, (offset + gap, length))))
        offset += gap + length
    return with_items(prompt, *[placed for _, placed in pairs]), pairs


def run_day(seed, num_requests):
    rng = random.Random(seed)
    harness = Harness(
        num_blocks=rng.choice([16, 18, 40]),
        max_batched_tokens=rng.choice([8, 16, 32]),
        max_sequences=rng.choice([2, 5, 8]),
        encoder_cache_bytes=32 * rng.choice([12, 20, 64]),
        retain_encoded=rng.random() < 0.7,
        enable_prefix_cache=rng.random() < 0.7,
        staged_ttl_s=3.0,
    )
    expected, unstaged, running = {}, [], []
    for number in range(num_requests):
        prompt, pairs = random_request(rng)
        name, max_tokens = f"r{number}", rng.randrange(1, 64 - len(prompt))
        choices = tuple(range(rng.choice([1, 1, 1, 3])))
        deadline = harness.clock.now_s + rng.randrange(5, 60) if rng.random() < 0.1 else None
        harness.add(
            name,
            prompt,
            [placed for _, placed in pairs],
            max_tokens=max_tokens,
            choices=choices,
            priority=rng.choice([0, 0, 0, 1]),
            deadline_s=deadline,
        )
        expected |= {(name, choice): greedy_tokens(prompt, pairs, max_tokens) for choice in choices}
        running.append(name)
        unstaged += [item for item, _ in pairs]
        for _ in range(rng.randrange(0, 6)):
            harness.step()
            harness.clock.advance(rng.random())
            late = [rng.random() < 0.5 for _ in unstaged]
            harness.stage(*[item for item, now in zip(unstaged, late, strict=True) if now])
            unstaged = [item for item, now in zip(unstaged, late, strict=True) if not now]
        if rng.random() < 0.2:
            harness.engine.cancel(0, rng.choice(running), 0, rng.choice([None, 0]))
    items = {make_item(n, length).content_hash: make_item(n, length) for n in range(4) for length in range(1, 7)}
    harness.stage(*unstaged, *[items[content_hash] for _, content_hash in harness.needs])
    for _ in range(20_000):
        if harness.engine.is_idle:
            break
        seen = len(harness.needs)
        harness.step()
        for _, content_hash in harness.needs[seen:]:
            harness.stage(items[content_hash])
    return harness, expected


@pytest.mark.parametrize("seed", range(6))
def test_a_random_day(seed):
    """Whatever comes, each request ends once, what it says is right as far as it goes, and nothing is held after."""
    check_day(*run_day(seed, 12))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 120))
def test_a_long_random_day(seed):
    """The same with sixty requests a day."""
    check_day(*run_day(seed, 60))


def check_day(harness, expected):
    assert harness.engine.is_idle
    harness.check_idle()
    assert harness.ends.keys() == expected.keys()
    for key, tokens in expected.items():
        end = harness.ends[key]
        if end.finish_reason == "length":
            assert harness.tokens[key] == tokens
        else:
            assert end.failure.reason in ("CANCELLED", "DEADLINE_EXCEEDED")
            assert harness.tokens[key] == tokens[: len(harness.tokens[key])]
