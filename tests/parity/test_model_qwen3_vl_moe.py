"""Qwen3-VL-MoE beside transformers': greedy tokens across blocks, the experts that are chosen, chunks and batches.

Next: tests/parity/test_engine_qwen3vl.py
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.parity.model_harness import decode, make_drivers, oracle_continuation, prefill, run, run_together
from tests.parity.test_model_text import oracle_inputs, prompts
from tests.tiny_qwen3_vl_moe import TWINS, make_tiny_qwen3vl_moe
from worker.layers.moe import Chosen, MoeMlp, Route
from worker.models.loader import load_model
from worker.models.qwen3_vl_moe import Qwen3VLMoe

pytestmark = pytest.mark.slow

TOLERANCE = 1e-3
CONTINUATION = 64  # with blocks of 8 tokens
Pair = tuple[Qwen3VLMoe, Any]

KINDS: dict[str, dict[str, Any]] = {
    "published": {"style": "4.57", "tie": False, "seed": 3, "text": {"mlp_only_layers": [0]}},
    "twins": {"seed": 4, "twins": True, "transposed": False, "text": {"mlp_only_layers": [], "decoder_sparse_step": 2}},
}


@pytest.fixture(scope="module", params=KINDS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """Our model and transformers' of one checkpoint: experts as published, or two of them alike and a dense layer 0."""
    from transformers import Qwen3VLMoeForConditionalGeneration

    path: Path = make_tiny_qwen3vl_moe(tmp_path_factory.mktemp("tiny"), **KINDS[request.param])
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    ours = load_model(path)
    assert isinstance(ours, Qwen3VLMoe)
    yield ours, Qwen3VLMoeForConditionalGeneration.from_pretrained(path).eval()
    torch.set_num_threads(threads)


def sparse_layers(model: Qwen3VLMoe) -> list[MoeMlp]:
    """Return the mixture-of-experts layers in order."""
    layers = [getattr(layer, "mlp", None) for layer in model.decoder.layers]
    return [layer for layer in layers if isinstance(layer, MoeMlp)]


@pytest.mark.parametrize("name", ["text", "mixed"])
def test_prefill_and_decode_equal_transformers(pair: Pair, name: str) -> None:
    """64 greedy tokens after text, images and clips are transformers', the prompt taken in odd chunks."""
    model, oracle = pair
    prompt = prompts(model)[name]
    [driver] = make_drivers(model, [prompt], room=CONTINUATION)
    tokens, logits = decode(driver, prefill(driver, 13), CONTINUATION)
    expected_tokens, expected = oracle_continuation(oracle, oracle_inputs(prompt), CONTINUATION)
    assert tokens == expected_tokens
    assert len(set(tokens)) > 8
    assert (logits - expected).abs().max() < TOLERANCE


def test_the_same_experts_are_chosen(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every token of a prompt goes to transformers' experts with its weights; of twins the lower is taken first."""
    model, oracle = pair
    chosen: list[Chosen] = []
    expected: list[Chosen] = []

    def recorded(route: Route) -> Route:
        def choose(logits: torch.Tensor) -> Chosen:
            chosen.append(route(logits))
            return chosen[-1]

        return choose

    for layer in sparse_layers(model):
        monkeypatch.setattr(layer, "route", recorded(layer.route))
    gates = [layer.mlp.gate for layer in oracle.model.language_model.layers if hasattr(layer.mlp, "gate")]
    hooks = [gate.register_forward_hook(lambda _m, _i, out: expected.append((out[2], out[1]))) for gate in gates]
    prompt = prompts(model)["mixed"]
    [driver] = make_drivers(model, [prompt])
    run([driver], [len(prompt.ids)], all_logits=True)
    with torch.no_grad():
        oracle(**oracle_inputs(prompt))
    for hook in hooks:
        hook.remove()
    assert len(chosen) == len(expected) == len(gates) > 0
    for ours, theirs in zip(chosen, expected, strict=True):
        assert torch.equal(without_twins(ours)[0], without_twins(theirs)[0])
        assert torch.allclose(without_twins(ours)[1], without_twins(theirs)[1], atol=1e-5)
    if is_twinned(model):
        alone = [
            experts
            for token in torch.cat([c[0] for c in chosen]).tolist()
            if len(experts := set(token) & set(TWINS)) == 1
        ]
        assert alone
        assert all(experts == {TWINS[0]} for experts in alone)


def is_twinned(model: Qwen3VLMoe) -> bool:
    """Tell whether two experts are alike."""
    first, second = sparse_layers(model)[0].router.weight.read_rows(torch.tensor(TWINS))
    return torch.equal(first, second)


def without_twins(chosen: Chosen) -> Chosen:
    """Return the choice with both twins under one name, each token's experts in ascending order."""
    experts = chosen[0].clone()
    experts[experts == TWINS[1]] = TWINS[0]
    order = (experts.double() - chosen[1].double() / 2).argsort(-1)
    return experts.gather(1, order), chosen[1].gather(1, order)


def test_chunks_and_decodes_share_a_batch(pair: Pair) -> None:
    """A sequence's logits do not depend on the chunks and decodes that run beside it."""
    model, oracle = pair
    cases = [prompts(model)[name] for name in ("mixed", "one token", "clip")]
    drivers = make_drivers(model, cases, room=64)
    for prompt, ours in zip(cases, run_together(drivers, (5, 6, 7), 30), strict=True):
        expected = oracle_continuation(oracle, oracle_inputs(prompt), len(ours))[1]
        assert len(ours) >= 10
        assert (ours - expected).abs().max() < TOLERANCE
