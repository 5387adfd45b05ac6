"""The mixture of experts as the engine runs it on CUDA: a layer's experts, and the layer, against float64.

Next: kernels/tessera_kernels/moe.py
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tessera_kernels import moe, ops
from tests.cuda_ops import NAN, Target, check_error
from tests.unit.kernels.test_moe import choices, exact
from tests.unit.worker.layers.sources import DictSource
from worker.layers.moe import MoeMlp, MoeShape, Route, grouped_softmax_topk, sigmoid_group_topk, softmax_topk

# Between router and result: rows of 16 bits are rounded after gate and up, after down, and at the end.
ROUNDINGS = 2.0


@contextmanager
def no_waiting(target: Target) -> Iterator[list[str]]:
    """Collect the names of the ops that run; on a GPU, let any wait for the device be an error."""
    names: list[str] = []

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            names.append(func.name().partition("::")[2])
            return func(*args, **(kwargs or {}))

    if target.name == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        with Recorder():
            yield names
    finally:
        if target.name == "cuda":
            torch.cuda.set_sync_debug_mode("default")
    assert not {"_local_scalar_dense", "nonzero", "bincount"} & set(names)


def make(target: Target, gate_up: torch.Tensor, down: torch.Tensor) -> moe.ExpertWeights:
    """A sealed store, each expert's gate and up written apart, its down in two parts."""
    experts, hidden, inner = down.shape
    made = moe.create(experts, hidden, inner, down.dtype, target.device)
    assert isinstance(made, moe.CudaExperts)
    for index in range(experts):
        made.write_gate_up(index, 0, gate_up[index, :inner])
        made.write_gate_up(index, inner, gate_up[index, inner:].double())
        made.write_down(index, hidden // 3, down[index, hidden // 3 :])
        made.write_down(index, 0, down[index, : hidden // 3].t().contiguous().t())
    made.seal()
    return made


def matrices(experts: int, hidden: int, inner: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights of a size that keeps a row's scale, depending on the numbers alone."""
    generator = torch.Generator().manual_seed(experts)
    gate_up = torch.randn(experts, 2 * inner, hidden, generator=generator) * hidden**-0.5
    down = torch.randn(experts, hidden, inner, generator=generator) * inner**-0.5
    return gate_up.to(dtype), down.to(dtype)


@pytest.mark.parametrize(
    ("tokens", "experts", "k", "hidden", "inner"),
    [(1, 6, 6, 64, 40), (7, 70, 2, 72, 24), (13, 3, 2, 33, 10), (90, 2, 1, 48, 16), (0, 3, 2, 16, 8)],
)
def test_experts(
    target: Target, dtype: torch.dtype, tokens: int, experts: int, k: int, hidden: int, inner: int
) -> None:
    """Any number of tokens, and widths that no vector divides, give the exact sum up to rounding."""
    gate_up, down = matrices(experts, hidden, inner, dtype)
    x, chosen = target.randn(tokens, hidden, dtype=dtype), choices(tokens, experts, k)
    weights = target.guarded(torch.rand(tokens, k, generator=torch.Generator().manual_seed(0)))
    made = make(target, gate_up, down)
    ids = chosen.int().to(target.device)
    with no_waiting(target) as names:
        out = made.apply(x, ids, weights)
    assert names.count("grouped_linear") == 2 and names.count("combine_experts") == 1
    assert out.dtype is dtype
    check_error("experts", out, exact(x.cpu(), chosen, weights.cpu(), gate_up, down), ROUNDINGS)
    assert torch.equal(made.apply(x, chosen.to(target.device), weights), out)


def test_experts_that_nobody_chose_are_not_read(target: Target, dtype: torch.dtype) -> None:
    """What is not chosen has no part in the result, and is not multiplied by zero either."""
    gate_up, down = (torch.full(shape, NAN, dtype=dtype) for shape in ((4, 48, 16), (4, 16, 24)))
    gate_up[2], down[2] = matrices(1, 16, 24, dtype)[0][0], matrices(1, 16, 24, dtype)[1][0]
    x, chosen, weights = target.randn(20, 16, dtype=dtype), torch.full((20, 1), 2), torch.ones(20, 1)
    out = make(target, gate_up, down).apply(x, chosen.to(target.device), weights.to(target.device))
    check_error("experts", out, exact(x.cpu(), chosen, weights, gate_up, down), ROUNDINGS)


def test_a_token_does_not_depend_on_its_neighbours(target: Target, dtype: torch.dtype) -> None:
    """A token's numbers are the same to the bit alone and among others."""
    made = make(target, *matrices(3, 72, 24, dtype))
    x, chosen = target.randn(60, 72, dtype=dtype), choices(60, 3, 2).to(target.device)
    weights = target.guarded(torch.rand(60, 2, generator=torch.Generator().manual_seed(0)))
    together = made.apply(x, chosen, weights)
    for some in (slice(0, 1), slice(50, 60)):
        assert torch.equal(made.apply(x[some], chosen[some], weights[some]), together[some])


def test_the_choice_is_reported(target: Target, dtype: torch.dtype) -> None:
    """Every storage type runs on our ops, and the table says so."""
    assert moe.implementation(dtype, target.device) == "cuda"
    assert ops.implementations(dtype, target.device)["experts"].implementation == "cuda"
    assert moe.create(3, 32, 16, dtype, target.device).size_bytes == 3 * 3 * 32 * 16 * dtype.itemsize


HIDDEN, INNER, EXPERTS, SHARED = 48, 24, 12, 40
LAYERS: dict[str, tuple[MoeShape, Route]] = {
    "qwen3_vl_moe": (MoeShape(HIDDEN, INNER, EXPERTS), partial(softmax_topk, k=4)),
    "qwen3_5_moe": (MoeShape(HIDDEN, INNER, EXPERTS, SHARED, shared_gated=True), partial(softmax_topk, k=3)),
    "interns1_pro": (MoeShape(HIDDEN, INNER, EXPERTS), partial(grouped_softmax_topk, k=4, num_groups=4)),
    "glm4v_moe": (
        MoeShape(HIDDEN, INNER, EXPERTS, SHARED, "shared_experts", router_fp32=True),
        partial(sigmoid_group_topk, k=3, num_groups=4, top_groups=2, scale=1.5),
    ),
}


def source(dtype: torch.dtype, device: torch.device) -> DictSource:
    """Weights of a layer with both kinds of shared expert, in the values that `dtype` holds."""
    shapes = {"gate.weight": (EXPERTS, HIDDEN), "shared_expert_gate.weight": (1, HIDDEN)}
    for name, inner in (("shared_expert", SHARED), ("shared_experts", SHARED)):
        shapes |= {f"{name}.{n}_proj.weight": (inner, HIDDEN) for n in ("gate", "up")}
        shapes |= {f"{name}.down_proj.weight": (HIDDEN, inner)}
    generator = torch.Generator().manual_seed(0)
    tensors = {name: torch.randn(shape, generator=generator) * shape[1] ** -0.5 for name, shape in shapes.items()}
    gate_up, down = matrices(EXPERTS, HIDDEN, INNER, dtype)
    tensors |= {"experts.gate_up_proj": gate_up, "experts.down_proj": down}
    return DictSource({name: tensor.to(dtype) for name, tensor in tensors.items()}, dtype, device=device)


def swiglu_mlp(tensors: dict[str, torch.Tensor], name: str, x: torch.Tensor) -> torch.Tensor:
    """A shared expert in float64."""
    gate, up, down = (tensors[f"{name}.{part}_proj.weight"].double() for part in ("gate", "up", "down"))
    return torch.nn.functional.silu(x @ gate.t()) * (x @ up.t()) @ down.t()


@pytest.mark.parametrize("family", LAYERS)
@pytest.mark.parametrize("tokens", [1, 19])
def test_layer(target: Target, dtype: torch.dtype, family: str, tokens: int) -> None:
    """Each family's layer, router and shared expert included, is exact up to rounding and never waits for the GPU."""
    weights = source(dtype, target.device)
    shape, rule = LAYERS[family]
    if family == "glm4v_moe":
        rule = partial(rule, bias=target.guarded(torch.arange(EXPERTS) % 3 / 8))
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def route(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        seen.append(rule(logits))
        return seen[-1]

    layer = MoeMlp.load(weights, shape, route)
    x = target.randn(tokens, HIDDEN, dtype=dtype)
    with no_waiting(target) as names:
        out = layer(x)
    ours = ("choose_experts", "sort_by_expert", "grouped_linear", "grouped_linear", "combine_experts")
    assert tuple(name for name in names if name in ours) == ours
    ((chosen, shares),) = seen
    wide, tensors = x.cpu().double(), weights.tensors
    expected = exact(wide, chosen.cpu(), shares.cpu(), tensors["experts.gate_up_proj"], tensors["experts.down_proj"])
    if family == "qwen3_5_moe":
        gate = (wide @ tensors["shared_expert_gate.weight"].double().t()).sigmoid()
        expected += gate * swiglu_mlp(tensors, "shared_expert", wide)
    if family == "glm4v_moe":
        expected += swiglu_mlp(tensors, "shared_experts", wide)
    check_error("mixture of experts", out, expected, ROUNDINGS)
