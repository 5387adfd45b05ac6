"""Which experts a token chooses, against plain float64 code, and the layer that sends it there.

Next: tests/unit/worker/layers/test_experts.py
"""

from functools import partial

import pytest
import torch

from tests.unit.worker.layers.sources import DictSource
from worker.layers.moe import (
    Chosen,
    MoeMlp,
    MoeShape,
    Route,
    grouped_softmax_topk,
    sigmoid_group_topk,
    softmax_topk,
)


def rows(seed: int, tokens: int = 40, experts: int = 24) -> torch.Tensor:
    """Logits with many exact ties: multiples of a quarter."""
    logits = torch.randn(tokens, experts, generator=torch.Generator().manual_seed(seed))
    return (logits * 4).round() / 4


def ranked(scores: list[float], k: int) -> list[int]:
    """Return the indices of the k largest, of equal ones the lower index."""
    return sorted(range(len(scores)), key=lambda index: (-scores[index], index))[:k]


def check(chosen: Chosen, expected: list[tuple[list[int], list[float]]]) -> None:
    """Same experts in the same order, same weights up to fp32."""
    experts, weights = chosen
    assert experts.dtype is torch.int64 and weights.dtype is torch.float32
    assert experts.tolist() == [indices for indices, _ in expected]
    assert torch.allclose(weights.double(), torch.tensor([values for _, values in expected]).double(), atol=1e-6)


def test_softmax_topk() -> None:
    """The k largest of the softmax over all experts, scaled to sum to 1; ties go to the lower index."""
    expected = []
    for scores in rows(0).double().softmax(-1).tolist():
        indices = ranked(scores, 5)
        total = sum(scores[index] for index in indices)
        expected.append((indices, [scores[index] / total for index in indices]))
    check(softmax_topk(rows(0), 5), expected)


@pytest.mark.parametrize("groups", [1, 4, 8])
def test_grouped_softmax_topk(groups: int) -> None:
    """Each group gives its own best, and the softmax over all experts weighs them."""
    k, size = 8, 24 // groups
    expected = []
    for scores in rows(1).double().softmax(-1).tolist():
        indices = [
            start + index for start in range(0, 24, size) for index in ranked(scores[start : start + size], k // groups)
        ]
        total = sum(scores[index] for index in indices)
        expected.append((indices, [scores[index] / total for index in indices]))
    check(grouped_softmax_topk(rows(1), k, groups), expected)


@pytest.mark.parametrize(("groups", "top_groups"), [(1, 1), (4, 2), (6, 1), (4, 4)])
@pytest.mark.parametrize("normalise", [True, False])
def test_sigmoid_group_topk(groups: int, top_groups: int, normalise: bool) -> None:
    """The bias moves the choice of groups and of experts, never the weights; groups outside are out of reach."""
    bias = rows(3, 1)[0] / 4
    k, size = 3, 24 // groups
    expected = []
    for scores in rows(2).double().sigmoid().tolist():
        biased = [score + shift for score, shift in zip(scores, bias.double().tolist(), strict=True)]
        best = [sum(sorted(biased[start : start + size])[-2:]) for start in range(0, 24, size)]
        allowed = ranked(best, top_groups)
        indices = ranked([value if i // size in allowed else float("-inf") for i, value in enumerate(biased)], k)
        total = sum(scores[index] for index in indices) if normalise else 1.0
        expected.append((indices, [2.5 * scores[index] / total for index in indices]))
    check(
        sigmoid_group_topk(rows(2), bias, k, num_groups=groups, top_groups=top_groups, normalise=normalise, scale=2.5),
        expected,
    )


@pytest.mark.parametrize(
    ("route", "lowest"),
    [
        (partial(softmax_topk, k=4), [0, 1, 2, 3]),
        (partial(grouped_softmax_topk, k=4, num_groups=2), [0, 1, 6, 7]),
        (partial(sigmoid_group_topk, bias=torch.zeros(12), k=4, num_groups=3, top_groups=2), [0, 1, 2, 3]),
    ],
)
def test_of_equal_experts_the_lowest_are_chosen(route: Route, lowest: list[int]) -> None:
    """Where all scores tie, the lowest indices win, each with the same weight."""
    experts, weights = route(torch.zeros(1, 12))
    assert experts.tolist() == [lowest]
    assert torch.allclose(weights, torch.full((1, 4), 0.25))


@pytest.mark.parametrize(
    "route",
    [
        partial(softmax_topk, k=4),
        partial(grouped_softmax_topk, k=4, num_groups=2),
        partial(sigmoid_group_topk, bias=torch.zeros(12), k=4, num_groups=3, top_groups=2),
    ],
)
def test_no_tokens_choose_no_experts(route: Route) -> None:
    """A step whose rows nobody looks at leaves the last layer none, and no route minds."""
    experts, weights = route(torch.zeros(0, 12))
    assert experts.shape == weights.shape == (0, 4)


def test_hopeless_scores_divide_by_no_zero() -> None:
    """Sigmoids that all vanish give weights of zero, not NaN."""
    _, weights = sigmoid_group_topk(torch.full((1, 6), -200.0), torch.zeros(6), 2)
    assert weights.tolist() == [[0.0, 0.0]]


HIDDEN, INNER, EXPERTS, SHARED = 12, 6, 4, 10


def source(dtype: torch.dtype = torch.float32) -> DictSource:
    """Weights of a layer with both kinds of shared expert."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"gate.weight": (EXPERTS, HIDDEN), "shared_expert_gate.weight": (1, HIDDEN)}
    shapes |= {f"experts.{e}.{n}_proj.weight": (INNER, HIDDEN) for e in range(EXPERTS) for n in ("gate", "up")}
    shapes |= {f"experts.{e}.down_proj.weight": (HIDDEN, INNER) for e in range(EXPERTS)}
    for name in ("shared_expert", "shared_experts"):
        shapes |= {f"{name}.{n}_proj.weight": (SHARED, HIDDEN) for n in ("gate", "up")}
        shapes |= {f"{name}.down_proj.weight": (HIDDEN, SHARED)}
    return DictSource({name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}, dtype)


def mlp(tensors: dict[str, torch.Tensor], prefix: str, x: torch.Tensor) -> torch.Tensor:
    """One SwiGLU in float64."""
    gate, up, down = (tensors[f"{prefix}.{name}_proj.weight"].double() for name in ("gate", "up", "down"))
    return torch.nn.functional.silu(x @ gate.t()) * (x @ up.t()) @ down.t()


@pytest.mark.parametrize("shared", ["none", "gated", "whole"])
def test_layer(shared: str) -> None:
    """The routed experts by their weights, plus the shared one, gated or in full."""
    weights = source()
    shape = {
        "none": MoeShape(HIDDEN, INNER, EXPERTS),
        "gated": MoeShape(HIDDEN, INNER, EXPERTS, SHARED, shared_gated=True),
        "whole": MoeShape(HIDDEN, INNER, EXPERTS, SHARED, "shared_experts", router_fp32=True),
    }[shared]
    layer = MoeMlp.load(weights, shape, partial(softmax_topk, k=2))
    x = torch.randn(7, HIDDEN, generator=torch.Generator().manual_seed(1))
    out = layer(x)
    wide = x.double()
    expected = torch.zeros_like(wide)
    chosen, factors = softmax_topk(x @ weights.tensors["gate.weight"].t(), 2)
    for token, (experts, shares) in enumerate(zip(chosen.tolist(), factors.double(), strict=True)):
        for expert, share in zip(experts, shares, strict=True):
            expected[token] += share * mlp(weights.tensors, f"experts.{expert}", wide[token])
    if shared == "gated":
        gate = (wide @ weights.tensors["shared_expert_gate.weight"].double().t()).sigmoid()
        expected += gate * mlp(weights.tensors, "shared_expert", wide)
    if shared == "whole":
        expected += mlp(weights.tensors, "shared_experts", wide)
    assert (out - expected).abs().max() < 1e-4
    numbers = 3 * EXPERTS * HIDDEN * INNER + EXPERTS * HIDDEN
    numbers += {"none": 0, "gated": 3 * HIDDEN * SHARED + HIDDEN, "whole": 3 * HIDDEN * SHARED}[shared]
    assert layer.size_bytes == 4 * numbers
    assert shape.workspace(2) > 2 * HIDDEN


def test_a_router_in_fp32_stays_so_in_a_bf16_model() -> None:
    """Where a family asks for it, logits are not rounded to the model's type before the choice."""
    seen: list[torch.Tensor] = []

    def route(logits: torch.Tensor) -> Chosen:
        seen.append(logits)
        return softmax_topk(logits, 2)

    weights = source(torch.bfloat16)
    x = torch.randn(3, HIDDEN, generator=torch.Generator().manual_seed(1)).bfloat16()
    for wide in (True, False):
        out = MoeMlp.load(weights, MoeShape(HIDDEN, INNER, EXPERTS, router_fp32=wide), route)(x)
        assert out.dtype is torch.bfloat16
    exact = x.double() @ weights.tensors["gate.weight"].double().t()
    assert [logits.dtype for logits in seen] == [torch.float32, torch.bfloat16]
    assert (seen[0] - exact).abs().max() < 1e-5 < (seen[1] - exact).abs().max()
