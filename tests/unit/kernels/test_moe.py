"""Grouped experts of every implementation against a loop over tokens in float64.

Next: tests/unit/kernels/test_memory.py
"""

from collections.abc import Iterator

import pytest
import torch

from tessera_kernels import cpu, library, moe, ops
from tessera_kernels.moe import CppExperts, ExpertWeights, TorchExperts
from tests.unit.kernels.conftest import BUILDS

CPU = torch.device("cpu")


@pytest.fixture(params=["torch", *(f"cpp {build}" for build in BUILDS)])
def kind(request: pytest.FixtureRequest) -> Iterator[type[ExpertWeights]]:
    """Each implementation, the C++ one in every build that runs here."""
    name, _, build = request.param.partition(" ")
    if name == "torch":
        yield TorchExperts
        return
    loaded = library.load(capability=build)
    if loaded is None:
        pytest.skip("the C++ CPU library is not built here (make kernels)")
    with cpu.using(loaded):
        yield CppExperts


def randn(*shape: int) -> torch.Tensor:
    """A tensor that depends on its shape alone."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def make(
    kind: type[ExpertWeights], gate_up: torch.Tensor, down: torch.Tensor, dtype: torch.dtype = torch.float32
) -> ExpertWeights:
    """A sealed store, each expert's gate and up written apart, its down in two parts."""
    experts, hidden, inner = down.shape
    made = kind(experts, hidden, inner, dtype, CPU)
    cut = hidden // 3
    for index in range(experts):
        made.write_gate_up(index, 0, gate_up[index, :inner])
        made.write_gate_up(index, inner, gate_up[index, inner:])
        made.write_down(index, cut, down[index, cut:])
        made.write_down(index, 0, down[index, :cut])
    made.seal()
    return made


def exact(
    x: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor
) -> torch.Tensor:
    """Token by token and choice by choice, in float64."""
    x, weights, gate_up, down = x.double(), weights.double(), gate_up.double(), down.double()
    out = torch.zeros_like(x)
    for token, row in enumerate(x):
        for expert, weight in zip(chosen[token].tolist(), weights[token], strict=True):
            gate, up = (gate_up[expert] @ row).chunk(2)
            out[token] += weight * (down[expert] @ (gate * gate.sigmoid() * up))
    return out


def poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let fresh memory of outputs and of packed weights hold NaN, so that what is forgotten shows."""
    empty_like, take = torch.empty_like, moe.ARENA.take
    monkeypatch.setattr(moe.ARENA, "take", lambda count: take(count).fill_(float("nan")))
    monkeypatch.setattr(torch, "empty_like", lambda x: empty_like(x).fill_(float("nan")))


def choices(tokens: int, experts: int, k: int) -> torch.Tensor:
    """Distinct experts for each token, depending on the numbers alone."""
    return torch.rand(tokens, experts, generator=torch.Generator().manual_seed(tokens)).topk(k).indices


@pytest.mark.parametrize("tokens", [1, 2, 7, 13, 40])
@pytest.mark.parametrize(("hidden", "inner"), [(16, 16), (24, 10), (63, 33), (130, 270)])
def test_products(
    kind: type[ExpertWeights], monkeypatch: pytest.MonkeyPatch, tokens: int, hidden: int, inner: int
) -> None:
    """Any number of tokens, and widths that fill no panel, give the exact sum up to rounding."""
    gate_up, down = randn(5, 2 * inner, hidden), randn(5, hidden, inner)
    x, chosen, weights = randn(tokens, hidden), choices(tokens, 5, 3), torch.rand(tokens, 3)
    poison(monkeypatch)
    made = make(kind, gate_up, down)
    with torch.inference_mode():
        out = made.apply(x, chosen, weights)
    expected = exact(x, chosen, weights, gate_up, down)
    assert (out - expected).abs().max() < 2e-6 * expected.abs().max()


@pytest.mark.parametrize("tokens", [1, 600])
def test_all_tokens_on_one_expert(kind: type[ExpertWeights], monkeypatch: pytest.MonkeyPatch, tokens: int) -> None:
    """One expert takes more rows than are worked on at a time, while the others, NaN throughout, are not read."""
    gate_up, down = (torch.full(shape, float("nan")) for shape in ((4, 48, 20), (4, 20, 24)))
    gate_up[2], down[2] = randn(48, 20), randn(20, 24)
    x, chosen, weights = randn(tokens, 20), torch.full((tokens, 1), 2), torch.rand(tokens, 1)
    poison(monkeypatch)
    made = make(kind, gate_up, down)
    with torch.inference_mode():
        out = made.apply(x, chosen, weights)
    expected = exact(x[-9:], chosen[-9:], weights[-9:], gate_up, down)
    assert (out[-9:] - expected).abs().max() < 2e-6 * expected.abs().max()
    assert torch.isfinite(out).all()


def test_every_expert_at_once(kind: type[ExpertWeights]) -> None:
    """A token may choose all experts, in an order of its own."""
    gate_up, down = randn(6, 20, 18), randn(6, 18, 10)
    x, chosen, weights = randn(3, 18), choices(3, 6, 6), torch.rand(3, 6)
    with torch.inference_mode():
        out = make(kind, gate_up, down).apply(x, chosen, weights)
    expected = exact(x, chosen, weights, gate_up, down)
    assert (out - expected).abs().max() < 2e-6 * expected.abs().max()


def test_no_token(kind: type[ExpertWeights]) -> None:
    """A step whose rows all end earlier asks for nothing and gets nothing."""
    made = make(kind, randn(2, 8, 6), randn(2, 6, 4))
    out = made.apply(torch.empty(0, 6), torch.empty(0, 1, dtype=torch.int64), torch.empty(0, 1))
    assert out.shape == (0, 6)


def test_strided_inputs(kind: type[ExpertWeights]) -> None:
    """Inputs that are views, as a slice of sorted scores is, count by their values."""
    made = make(kind, randn(4, 20, 18), randn(4, 18, 10))
    x, chosen, weights = randn(5, 36)[:, ::2], choices(5, 4, 4)[:, :2], torch.rand(5, 4)[:, :2]
    with torch.inference_mode():
        out = made.apply(x, chosen, weights)
        dense = made.apply(x.contiguous(), chosen.contiguous(), weights.contiguous())
    assert torch.equal(out, dense)


@pytest.mark.skipif(
    not cpu.available() or "AVX512" not in BUILDS, reason="only sums with AVX-512 are taken in one order for all"
)
def test_a_row_does_not_depend_on_its_neighbours() -> None:
    """With AVX-512 a token's output is the same to the bit, alone or among any others."""
    made = make(CppExperts, randn(5, 66, 300), randn(5, 300, 33))
    x, chosen, weights = randn(50, 300), choices(50, 5, 2), torch.rand(50, 2)
    with torch.inference_mode():
        together = made.apply(x, chosen, weights)
        for some in (slice(0, 1), slice(7, 9), slice(11, 40)):
            assert torch.equal(made.apply(x[some], chosen[some], weights[some]), together[some])


def test_two_threads(native: str) -> None:
    """Any number of threads gives the same bits."""
    made = make(CppExperts, randn(5, 66, 63), randn(5, 63, 33))
    x, chosen, weights = randn(30, 63), choices(30, 5, 2), torch.rand(30, 2)
    before = torch.get_num_threads()
    out = {}
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            out[threads] = made.apply(x, chosen, weights)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(out[1], out[2])


def test_bf16_sums_in_fp32() -> None:
    """In bf16 the answers are combined in fp32 and rounded once."""
    gate_up, down = randn(4, 20, 18).bfloat16(), randn(4, 18, 10).bfloat16()
    x, chosen, weights = randn(6, 18).bfloat16(), choices(6, 4, 2), torch.rand(6, 2)
    out = make(TorchExperts, gate_up, down, torch.bfloat16).apply(x, chosen, weights)
    assert out.dtype is torch.bfloat16
    expected = exact(x, chosen, weights, gate_up, down)
    assert (out.double() - expected).abs().max() < 0.02 * expected.abs().max()


def test_the_choice_is_reported() -> None:
    """fp32 on the CPU runs on our library where it is built, everything else on torch; the table says which."""
    expected = "cpp" if cpu.available() else "torch"
    assert ops.implementations(torch.float32, CPU)["experts"].implementation == expected
    assert moe.create(2, 4, 4, torch.float32, CPU).implementation == expected
    assert moe.create(2, 4, 4, torch.bfloat16, CPU).implementation == "torch"


def test_size() -> None:
    """The bytes that size the caches are those of the three matrices of every expert."""
    assert moe.create(3, 32, 16, torch.float32, CPU).size_bytes == 3 * 3 * 32 * 16 * 4
