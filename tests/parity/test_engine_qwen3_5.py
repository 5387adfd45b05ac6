"""The engine on a tiny Qwen3.5, whose layers keep recurrent state, beside transformers: nothing shows how it was run.

Next: tests/parity/test_grpc_chat.py
"""

from typing import Any

import numpy as np
import pytest
import structlog
import torch

from tests.parity.model_harness import Prompt
from tests.parity.test_engine_qwen3vl import NEW_TOKENS, check, continuation, make_engine, run, submit
from tests.parity.test_model_text import prompts
from tests.tiny_models import VOCAB_SIZE
from tests.tiny_qwen3_5 import make_tiny_qwen3_5, make_tiny_qwen3_5_moe
from worker.engine.engine import Engine
from worker.engine.sampling_params import SamplingParams
from worker.engine.sequence import SequenceGroup
from worker.models.base import CausalLM
from worker.models.loader import load_model

pytestmark = pytest.mark.slow

MARGIN = 2e-3  # logits of this family differ by up to 1e-3
Expected = dict[str, tuple[list[int], list[float]]]


class Pair:
    """Our model, transformers', and transformers' greedy continuations of all prompts."""

    def __init__(self, make: Any, path: Any, seed: int) -> None:
        from transformers import AutoModelForImageTextToText

        make(path, seed=seed, eos_token_ids=(VOCAB_SIZE - 1,))
        self.model: CausalLM = load_model(path)
        self.oracle = AutoModelForImageTextToText.from_pretrained(path).eval()
        self.cases = prompts(self.model) | {"long": words(70)}
        self.expected: Expected = {
            name: continuation(self.oracle, self.model, case) for name, case in self.cases.items()
        }


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """The dense family."""
    return Pair(make_tiny_qwen3_5, tmp_path_factory.mktemp("dense"), seed=3)


@pytest.fixture(scope="module")
def moe(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Its sibling with experts."""
    return Pair(make_tiny_qwen3_5_moe, tmp_path_factory.mktemp("moe"), seed=4)


def words(count: int, seed: int = 8) -> Prompt:
    """A prompt of text."""
    return Prompt().text(np.random.default_rng(seed).integers(20, 400, count).tolist())


def all_together(pair: Pair, **limits: Any) -> Engine:
    """Run eight prompts of all kinds at once, twice, and compare them; return the engine."""
    engine = make_engine(pair.model, **limits)
    for turn in ("cold", "warm"):
        for name, prompt in pair.cases.items():
            submit(engine, f"{name}/{turn}", prompt)
        check(pair.expected, run(engine), MARGIN)
    assert engine.load().running_state_slots == 0
    return engine


@pytest.mark.parametrize(
    "limits",
    [
        {},
        {"max_batched_tokens": 32, "state_checkpoints": 3},
        {"max_batched_tokens": 8, "enable_prefix_cache": False, "retain_encoded": False},
        {"max_batched_tokens": 11, "max_sequences": 3},
        {"num_blocks": 20, "max_model_len": 144},
        {"num_blocks": 20, "max_model_len": 144, "max_batched_tokens": 16, "enable_prefix_cache": False},
    ],
    ids=["wide", "32 tokens, 3 checkpoints", "8 tokens, no caches", "3 seats", "few blocks", "few blocks, no caches"],
)
def test_all_at_once(limits: dict[str, Any], dense: Pair) -> None:
    """Eight prompts together, under every pressure, cold and then warm, are continued as each alone."""
    engine = all_together(dense, **limits)
    assert engine.scheduler.num_preemptions > 0 or "num_blocks" not in limits


def test_experts_too(moe: Pair) -> None:
    """The family with experts goes through the same engine, preempted and chunked."""
    engine = all_together(moe, num_blocks=20, max_model_len=144, max_batched_tokens=16)
    assert engine.scheduler.num_preemptions > 0


def test_second_turns_begin_where_the_first_ended(dense: Pair) -> None:
    """A prompt that goes on after an answer, pictures in it or not, begins at the answer's last full block."""
    engine = make_engine(dense.model)
    names = ("image", "mixed", "long")
    for name in names:
        submit(engine, name, dense.cases[name])
    answers = run(engine)
    turns, expected, hits = {}, {}, {}
    for name in names:
        first = dense.cases[name]
        answer, more = answers[name], words(9, seed=2).ids
        turns[name] = Prompt(
            [*first.ids, *answer, *more],
            first.items,
            first.ranges,
            [*first.mm_token_type_ids, *[0] * (len(answer) + len(more))],
        )
        expected[name] = continuation(dense.oracle, dense.model, turns[name])
        # The answer's last token was drawn and not computed.
        hits[name] = (len(first.ids) + len(answer) - 1) // 8 * 8
        submit(engine, name, turns[name])
    found: dict[str, list[int]] = {}
    cached: dict[str, int] = {}
    while not engine.is_idle:
        for update in engine.step().updates:
            assert update.failure is None
            found.setdefault(update.request_id, []).extend(update.token_ids)
            cached[update.request_id] = cached.get(update.request_id, 0) + update.cached_tokens
    assert cached == hits
    check(expected, found, MARGIN)


def choices_of(engine: Engine, prompt: Prompt, choices: tuple[int, ...], **sampling: Any) -> dict[int, list[int]]:
    """Run some choices of one text prompt; return their tokens."""
    params = SamplingParams(max_tokens=NEW_TOKENS, ignore_eos=True, n=len(choices), **sampling)
    engine.add(SequenceGroup("n", tuple(prompt.ids), params, choices=choices))
    tokens: dict[int, list[int]] = {}
    while not engine.is_idle:
        for update in engine.step().updates:
            assert update.failure is None
            tokens.setdefault(update.choice, []).extend(update.token_ids)
    return tokens


def test_forks_go_their_own_ways(dense: Pair) -> None:
    """Three choices from one prefill are transformers' when greedy; drawn, each is what it is alone."""
    for name in ("text", "long"):
        found = choices_of(make_engine(dense.model), dense.cases[name], (0, 1, 2))
        for choice in range(3):
            check(dense.expected, {name: found[choice]}, MARGIN)
    drawn = choices_of(make_engine(dense.model), dense.cases["long"], (0, 1, 2), temperature=1.0, seed=9)
    assert len({tuple(tokens) for tokens in drawn.values()}) == 3
    for choice in range(3):
        alone = make_engine(dense.model, enable_prefix_cache=False)
        assert choices_of(alone, dense.cases["long"], (choice,), temperature=1.0, seed=9)[choice] == drawn[choice]


def test_a_failed_step_is_made_good(dense: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps that fail after the states have moved on leave every answer as it is."""
    engine = make_engine(dense.model, max_batched_tokens=32)
    whole, calls = engine.runner.run, []

    def sometimes(batch: Any) -> torch.Tensor:
        logits = whole(batch)
        calls.append(batch.num_seqs)
        if len(calls) in (3, 25):
            raise RuntimeError("glitch")
        return logits

    monkeypatch.setattr(engine.runner, "run", sometimes)
    for name, prompt in dense.cases.items():
        submit(engine, name, prompt)
    with structlog.testing.capture_logs() as logs:
        check(dense.expected, run(engine), MARGIN)
    assert [entry["event"] for entry in logs] == ["step_failed"] * 2
