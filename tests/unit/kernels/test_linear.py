"""Packed linear weights of every implementation against a product in float64.

Next: tests/unit/kernels/test_memory.py
"""

from collections.abc import Iterator

import pytest
import torch

from tessera_kernels import cpu, library, linear, reference
from tessera_kernels.linear import CppWeight, LinearWeight, OneDnnWeight, TorchWeight
from tests.unit.kernels.conftest import BUILDS

CPU = torch.device("cpu")


@pytest.fixture(params=["torch", "onednn", *(f"cpp {build}" for build in BUILDS)])
def kind(request: pytest.FixtureRequest) -> Iterator[type[LinearWeight]]:
    """Each implementation, the C++ one in every build that runs here."""
    name, _, build = request.param.partition(" ")
    if name != "cpp":
        yield {"torch": TorchWeight, "onednn": OneDnnWeight}[name]
        return
    loaded = library.load(capability=build)
    if loaded is None:
        pytest.skip("the C++ CPU library is not built here (make kernels)")
    with cpu.using(loaded):
        yield CppWeight


def randn(*shape: int) -> torch.Tensor:
    """A tensor that depends on its shape alone."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def make(kind: type[LinearWeight], weight: torch.Tensor, bias: torch.Tensor | None, activation: str) -> LinearWeight:
    """A sealed weight, written in two parts."""
    made = kind(*weight.shape, torch.float32, CPU, bias=bias is not None, activation=activation)
    cut = weight.shape[0] // 3
    for start, rows in ((0, weight[:cut]), (cut, weight[cut:])):
        made.write_rows(start, rows)
    if bias is not None:
        made.write_bias(0, bias)
    made.seal()
    return made


@pytest.mark.parametrize("rows", [1, 2, 3, 7, 8, 13, 25, 100])
@pytest.mark.parametrize(("out_features", "in_features"), [(16, 8), (33, 63), (70, 48), (129, 300)])
def test_products(kind: type[LinearWeight], rows: int, out_features: int, in_features: int) -> None:
    """Any number of rows, columns that fill no panel, and a bias give the exact product up to rounding."""
    x, weight, bias = randn(rows, in_features), randn(out_features, in_features), randn(out_features)
    with torch.inference_mode():
        out = make(kind, weight, bias, "none").apply(x)
    exact = x.double() @ weight.double().t() + bias.double()
    assert (out - exact).abs().max() < 2e-5 * in_features**0.5


@pytest.mark.slow
def test_more_rows_than_are_worked_on_at_once(kind: type[LinearWeight]) -> None:
    """Rows beyond one block of the GEMM come out like the first."""
    x, weight = randn(1700, 40), randn(48, 40)
    with torch.inference_mode():
        out = make(kind, weight, None, "none").apply(x)
    assert (out - x.double() @ weight.double().t()).abs().max() < 1e-4


@pytest.mark.parametrize("activation", ["gelu_tanh", "gelu"])
def test_activations(kind: type[LinearWeight], activation: str) -> None:
    """The activation is applied to the product with its bias, far into both tails."""
    x, weight, bias = randn(9, 20) * 4, randn(35, 20), randn(35)
    with torch.inference_mode():
        out = make(kind, weight, bias, activation).apply(x)
    exact = getattr(reference, activation)((x.double() @ weight.double().t() + bias.double()).float())
    assert (out - exact).abs().max() < 1e-4


@pytest.mark.parametrize("activation", ["none", "gelu"])
def test_no_bias_is_left_to_be_added_on_the_cpu(kind: type[LinearWeight], activation: str) -> None:
    """A product's bias costs no pass of its own here, so it comes with the product."""
    x, weight, bias = randn(3, 20), randn(32, 20), randn(32)
    with torch.inference_mode():
        made = make(kind, weight, bias, activation)
        result, missing = made.deferred(x)
        assert missing is None
        assert torch.equal(result, made.apply(x))


@pytest.mark.parametrize("inner", [16, 24, 100])
def test_gated_products(kind: type[LinearWeight], inner: int) -> None:
    """With "swiglu" the first half of the rows gates the second, whatever the panels."""
    x, weight = randn(5, 30) * 3, randn(2 * inner, 30)
    with torch.inference_mode():
        out = make(kind, weight, None, "swiglu").apply(x)
    exact = reference.swiglu((x.double() @ weight.double().t()).float())
    assert out.shape == (5, inner)
    assert (out - exact).abs().max() < 1e-5 * exact.abs().max()


def test_no_rows(kind: type[LinearWeight]) -> None:
    """An empty batch gives an empty product."""
    with torch.inference_mode():
        assert make(kind, randn(32, 16), None, "swiglu").apply(torch.empty(0, 16)).shape == (0, 16)


def test_rows_are_read_back(kind: type[LinearWeight]) -> None:
    """A tied embedding reads its rows from the head, unchanged, wherever they lie in a panel."""
    if not kind.reads_rows:
        pytest.skip("oneDNN's packing is opaque; the embedding stays in the mapped file")
    weight, ids = randn(50, 12), torch.tensor([49, 0, 15, 16, 16])
    with torch.inference_mode():
        assert torch.equal(make(kind, weight, None, "none").read_rows(ids), weight[ids])


def test_other_types_are_converted_as_they_are_written(kind: type[LinearWeight]) -> None:
    """A bf16 checkpoint serves in fp32, with exactly its values."""
    weight, x = randn(40, 24).bfloat16(), randn(3, 24)
    with torch.inference_mode():
        out = make(kind, weight, None, "none").apply(x)
    assert (out - x.double() @ weight.double().t()).abs().max() < 1e-4


def test_bf16_runs_on_torch() -> None:
    """Where no kernel is declared for a type, the weight is torch's own."""
    made = linear.create(8, 4, torch.bfloat16, CPU)
    made.write_rows(0, randn(8, 4))
    made.seal()
    assert made.implementation == linear.implementation(torch.bfloat16, CPU) == "torch"
    assert made.apply(randn(2, 4).bfloat16()).dtype is torch.bfloat16
