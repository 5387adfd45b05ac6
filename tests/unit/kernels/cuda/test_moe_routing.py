"""The choice of experts, the sort by expert and the weighed sum on CUDA, against plain code.

Next: kernels/csrc/moe_routing.cu
"""

from typing import Any

import pytest
import torch

from tessera_kernels import cuda, routing
from tests.cuda_ops import Target, check_error, check_guards, check_op, strided

NAN = float("nan")
SOFTMAX = {"scoring": "softmax"}
# Every family's rule, and what lies between them.
RULES: list[tuple[int, int, dict[str, Any]]] = [
    (128, 8, SOFTMAX),
    (24, 24, SOFTMAX),
    (60, 4, {"normalise": False, "scale": 2.5}),
    (512, 8, {"num_groups": 8, "within_groups": True}),
    (70, 10, {"num_groups": 5, "within_groups": True}),
    (160, 8, {"scoring": "sigmoid", "scale": 1.5}),
    (256, 8, {"scoring": "sigmoid", "num_groups": 8, "top_groups": 4, "scale": 2.5}),
    (91, 5, {"scoring": "sigmoid", "num_groups": 7, "top_groups": 2, "normalise": False}),
    (1, 1, SOFTMAX),
]


def few_scores(tokens: int, experts: int, dtype: torch.dtype) -> torch.Tensor:
    """Logits with many exact ties, and no near ones: multiples of 1/4."""
    logits = torch.randn(tokens, experts, generator=torch.Generator().manual_seed(experts)) * 2
    return ((logits * 4).round() / 4).to(dtype)


def expect(
    logits: torch.Tensor, k: int, rule: dict[str, Any], bias: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """What the reference chooses, with no CUDA ops about."""
    with cuda.using(None):
        return routing.choose_experts(logits.cpu(), k, bias=None if bias is None else bias.cpu(), **rule)


@pytest.mark.parametrize(("experts", "k", "rule"), RULES)
@pytest.mark.parametrize("tokens", [1, 5])
def test_choice(target: Target, dtype: torch.dtype, experts: int, k: int, rule: dict[str, Any], tokens: int) -> None:
    """Every rule chooses as the reference does, ties included, and weighs as it does."""
    logits = target.guarded(few_scores(tokens, experts, dtype))
    bias = None
    if rule.get("scoring") == "sigmoid":
        bias = target.guarded((torch.arange(experts) % 5 - 2) / 8)
    expected, shares = expect(logits, k, rule, bias)
    for rows in (logits, strided(logits), strided(logits, 3)):
        chosen, weights = routing.choose_experts(rows, k, bias=bias, **rule)
        assert chosen.dtype is torch.int32 and weights.dtype is torch.float32
        assert chosen.tolist() == expected.tolist()
        assert torch.allclose(weights.cpu(), shares, rtol=2e-6, atol=1e-12)


def test_of_equal_experts_the_lowest_are_chosen(target: Target) -> None:
    """Where all scores tie, the lowest indices win."""
    logits = target.guarded(torch.zeros(2, 96))
    assert routing.choose_experts(logits, 5)[0].tolist() == [[0, 1, 2, 3, 4]] * 2
    within = routing.choose_experts(logits, 6, num_groups=3, within_groups=True)[0]
    assert within.tolist() == [[0, 1, 32, 33, 64, 65]] * 2
    limited = routing.choose_experts(logits, 3, scoring="sigmoid", num_groups=3, top_groups=1)[0]
    assert limited.tolist() == [[0, 1, 2]] * 2


def test_hopeless_scores(target: Target) -> None:
    """Sigmoids that vanish weigh zero, softmaxes cannot; rows of NaN or infinity choose too."""
    gone = target.guarded(torch.full((1, 40), -200.0))
    assert routing.choose_experts(gone, 2, scoring="sigmoid")[1].tolist() == [[0.0, 0.0]]
    assert routing.choose_experts(gone, 2)[1].tolist() == [[0.5, 0.5]]  # softmax looks at differences alone
    odd = target.guarded(torch.tensor([NAN, float("inf"), float("-inf")])[:, None].repeat(1, 40))
    for rule in (
        {},
        {"scoring": "sigmoid", "num_groups": 4, "top_groups": 2},
        {"num_groups": 2, "within_groups": True},
    ):
        for row in routing.choose_experts(odd, 4, **rule)[0].tolist():
            assert len(set(row)) == 4 and min(row) >= 0 and max(row) < 40
    one = target.guarded(torch.tensor([[0.0, 3.0, NAN, -1.0, 5.0]]))
    assert routing.choose_experts(one, 2, scoring="sigmoid")[0].tolist() == [[2, 4]]  # as torch sorts it


def test_no_tokens_choose_no_experts(target: Target, dtype: torch.dtype) -> None:
    """An empty step passes every op."""
    chosen, weights = routing.choose_experts(target.randn(0, 64, dtype=dtype), 4)
    order, starts = target.ops.sort_by_expert(chosen, 64)
    assert order.shape == (0,) and starts.tolist() == [0] * 65
    out = target.ops.combine_experts(target.randn(0, 24, dtype=dtype), weights, None, None)
    assert out.shape == (0, 24)


@pytest.mark.parametrize(
    ("entries", "experts"), [((1, 1), 1), ((3, 5), 512), ((40, 8), 128), ((33, 3), 7), ((700, 6), 5)]
)
def test_sort(target: Target, entries: tuple[int, int], experts: int) -> None:
    """Entries come expert by expert, each expert's in their own order, and every expert's first place is known."""
    chosen = torch.randint(experts, entries, generator=torch.Generator().manual_seed(experts), dtype=torch.int32)
    chosen[chosen == 3] = 4 if experts > 4 else 0  # nobody's choice
    order, starts = target.ops.sort_by_expert(target.guarded(chosen), experts)
    assert order.dtype is starts.dtype is torch.int32
    assert order.tolist() == chosen.flatten().argsort(stable=True).tolist()
    counts = chosen.flatten().bincount(minlength=experts)
    assert starts.tolist() == [0, *counts.cumsum(0).tolist()]


def test_sort_of_one_experts_rows(target: Target) -> None:
    """All rows may be one expert's, the first's or the last's."""
    for expert in (0, 2):
        order, starts = target.ops.sort_by_expert(target.guarded(torch.full((75,), expert, dtype=torch.int32)), 3)
        assert order.tolist() == list(range(75))
        assert starts.tolist() == [0, *(75 if expert <= other else 0 for other in range(3))]


@pytest.mark.parametrize(("tokens", "k", "hidden"), [(1, 8, 256), (5, 3, 2056), (3, 1, 63), (2, 10, 1)])
@pytest.mark.parametrize("shared", ["none", "whole", "gated"])
def test_combine(target: Target, dtype: torch.dtype, tokens: int, k: int, hidden: int, shared: str) -> None:
    """Answers are summed by their weights, in fp32 and rounded once, and the shared expert's come on top."""
    answers = target.randn(tokens * k, hidden, dtype=dtype)
    weights = target.guarded(torch.rand(tokens, k, generator=torch.Generator().manual_seed(0)))
    extra = None if shared == "none" else target.randn(tokens, hidden, dtype=dtype, seed=1)
    gate = target.randn(tokens, 1, dtype=dtype, seed=2) if shared == "gated" else None
    exact = (answers.double().view(tokens, k, hidden) * weights.double()[..., None]).sum(1)
    if extra is not None:
        exact += extra.double() * (1 if gate is None else gate.double().sigmoid())
    for rows in (extra, None if extra is None else strided(extra, 3)):
        out = target.ops.combine_experts(answers, weights, rows, gate)
        assert out.dtype is dtype
        check_error("combine_experts", out, exact)
    check_guards(answers, weights)


def test_bad_arguments_are_refused(target: Target) -> None:
    """What cannot be chosen, sorted or summed is an error that names the argument."""
    logits = target.randn(2, 24)
    for options, match in (
        ({"k": 33}, "k is more"),
        ({"k": 25}, "k is more"),
        ({"k": 4, "num_groups": 5}, "num_groups divides"),
        ({"k": 7, "num_groups": 4, "top_groups": 1}, "k is more"),
        ({"k": 6, "num_groups": 4, "within_groups": True}, "multiple of num_groups"),
        ({"k": 2, "num_groups": 24, "top_groups": 3}, "groups of one"),
        ({"k": 2, "num_groups": 4, "top_groups": 5}, "top_groups is at most"),
        ({"k": 2, "bias": target.randn(23)}, "bias has another shape"),
        ({"k": 2, "bias": target.randn(24, dtype=torch.bfloat16)}, "bias has another dtype"),
    ):
        with pytest.raises(RuntimeError, match=match):
            routing.choose_experts(logits, **options)
    with pytest.raises(RuntimeError, match="num_experts is at most 512"):
        routing.choose_experts(target.randn(1, 513), 2)
    with pytest.raises(RuntimeError, match="experts has another dtype"):
        target.ops.sort_by_expert(torch.zeros(4, dtype=torch.int64, device=target.device), 3)
    answers, weights = target.randn(6, 8), target.randn(3, 2)
    with pytest.raises(RuntimeError, match="answers has another shape"):
        target.ops.combine_experts(target.randn(5, 8), weights, None, None)
    with pytest.raises(RuntimeError, match="shared has another shape"):
        target.ops.combine_experts(answers, weights, target.randn(2, 8), None)
    with pytest.raises(RuntimeError, match="shared_gate has nothing"):
        target.ops.combine_experts(answers, weights, None, target.randn(3, 1))


def test_ops_trace(target: Target) -> None:
    """Schemas, fakes and tracing hold up to torch's own checks."""
    with torch.inference_mode(False):
        device, dtype = target.device, torch.bfloat16
        logits, bias = torch.randn(4, 24, dtype=dtype, device=device), torch.randn(24, device=device)
        check_op(target.ops.choose_experts, (logits, bias, 3, True, 4, 2, False, True, 1.0))
        chosen = torch.randint(6, (5, 3), dtype=torch.int32, device=device)
        check_op(target.ops.sort_by_expert, (chosen, 6))
        answers, weights = torch.randn(15, 16, dtype=dtype, device=device), torch.rand(5, 3, device=device)
        shared, gate = (torch.randn(5, width, dtype=dtype, device=device) for width in (16, 1))
        check_op(target.ops.combine_experts, (answers, weights, shared, gate))
