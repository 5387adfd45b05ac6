"""Activations on CUDA against float64, and linear layers that use them.

Next: kernels/csrc/activation.cu
"""

import pytest
import torch
import torch.nn.functional as F

from tessera_kernels.linear import TorchWeight
from tests.cuda_ops import LIMITS, Target, check_error, check_guards, check_op, strided

# one vector, rows that no vector divides, several rows of a thread and one left over, several blocks to a row, no rows
SIZES = [(1, 8), (3, 63), (9, 304), (5, 4304), (2, 16), (0, 64), (4, 0)]


def exact_gelu(x: torch.Tensor, bias: torch.Tensor | None, tanh: bool) -> torch.Tensor:
    """The formula in float64."""
    biased = x.double() if bias is None else x.double() + bias.double()
    return F.gelu(biased, approximate="tanh" if tanh else "none")


def exact_swiglu(x: torch.Tensor) -> torch.Tensor:
    """The formula in float64."""
    gate, up = x.double().chunk(2, dim=1)
    return F.silu(gate) * up


@pytest.mark.parametrize("tanh", [True, False], ids=["tanh", "erf"])
@pytest.mark.parametrize(("rows", "width"), SIZES)
def test_bias_gelu(target: Target, dtype: torch.dtype, tanh: bool, rows: int, width: int) -> None:
    """Every element gets its column's bias and is activated in place, wherever the rows lie."""
    bias = target.randn(width, dtype=dtype, seed=1)
    for added in (None, bias):
        x = target.guarded(target.randn(rows, width).mul(3).to(dtype).cpu())
        exact = exact_gelu(x, added, tanh)
        apart, odd = strided(x), strided(x, 3)
        for ours in (x, apart, odd):
            target.ops.bias_gelu(ours, added, tanh)
            check_error("bias_gelu " + ("tanh" if tanh else "erf"), ours, exact)
        check_guards(x)
        for wide in (apart, odd):
            beside = torch.empty(0, dtype=dtype, device=wide.device).set_(wide.untyped_storage())
            assert int(beside.isnan().sum()) == beside.numel() - x.numel()


@pytest.mark.parametrize("tanh", [True, False], ids=["tanh", "erf"])
def test_tails_of_gelu_keep_their_digits(target: Target, dtype: torch.dtype, tanh: bool) -> None:
    """Small results of negative numbers are as exact as large ones, and numbers far out give zero and themselves."""
    x = torch.linspace(-4, 6, 512).to(dtype)
    ours = target.guarded(x[None])
    target.ops.bias_gelu(ours, None, tanh)
    exact = exact_gelu(x, None, tanh)
    # in fp32 1 + erf(x) has lost the digits that its terms share; torch's own has, too
    slack = 4e-7 if dtype is torch.float32 else 0
    assert bool(((ours[0].cpu().double() - exact).abs() <= 2 * LIMITS[dtype] * exact.abs() + slack).all())
    far = target.guarded(torch.tensor([[-6e4, -300.0, 300.0, 6e4, 0.0]]).to(dtype))
    expected = far.clamp(min=0)
    target.ops.bias_gelu(far, None, tanh)
    assert torch.equal(far, expected)


@pytest.mark.parametrize(("rows", "width"), SIZES)
def test_swiglu(target: Target, dtype: torch.dtype, rows: int, width: int) -> None:
    """The first half of a row gates the second, wherever the rows lie."""
    x = target.guarded(target.randn(rows, 2 * width).mul(3).to(dtype).cpu())
    for rows_of in (x, strided(x), strided(x, 3)):
        ours = target.ops.swiglu(rows_of)
        assert ours.dtype is dtype and ours.shape == (rows, width)
        check_error("swiglu", ours, exact_swiglu(x))


def test_gates_far_out(target: Target, dtype: torch.dtype) -> None:
    """A gate that is very negative closes, one that is very large passes itself."""
    gates = torch.tensor([-6e4, -200.0, 200.0, 6e4])
    ours = target.ops.swiglu(target.guarded(torch.cat((gates, torch.ones(4)))[None].to(dtype)))
    assert torch.equal(ours.cpu()[0], gates.clamp(min=0).to(dtype))


@pytest.mark.parametrize("activation", ["none", "gelu_tanh", "gelu", "swiglu"])
@pytest.mark.parametrize("with_bias", [True, False])
def test_linear_layers_use_them(target: Target, dtype: torch.dtype, activation: str, with_bias: bool) -> None:
    """Torch multiplies; bias and activation are ours. The product may leave its bias to whoever reads it next."""
    made = TorchWeight(32, 24, dtype, target.device, bias=with_bias, activation=activation)
    weight, bias, x = (target.randn(*shape, dtype=dtype, seed=7) for shape in ((32, 24), (32,), (5, 24)))
    made.write_rows(0, weight)
    if with_bias:
        made.write_bias(0, bias)
    product = x.double() @ weight.double().t()
    biased = product + bias.double() if with_bias else product
    exact = {
        "none": lambda: biased,
        "gelu_tanh": lambda: exact_gelu(biased, None, tanh=True),
        "gelu": lambda: exact_gelu(biased, None, tanh=False),
        "swiglu": lambda: exact_swiglu(biased),
    }[activation]()
    check_error(f"linear, {activation}", made.apply(x), exact, factor=2)
    result, missing = made.deferred(x)
    assert (missing is not None) == (with_bias and activation == "none")
    check_error(f"linear, {activation}", result, exact if missing is None else product, factor=2)
    assert missing is None or torch.equal(missing, bias)


def test_bad_arguments_are_refused(target: Target) -> None:
    """A wrong shape or type is an error that names the argument, not a wrong result."""
    x = target.randn(4, 64)
    with pytest.raises(RuntimeError, match="bias has another shape"):
        target.ops.bias_gelu(x, target.randn(32), True)
    with pytest.raises(RuntimeError, match="bias has another dtype"):
        target.ops.bias_gelu(x, target.randn(64, dtype=torch.bfloat16), True)
    with pytest.raises(RuntimeError, match="x must have its last axis contiguous"):
        target.ops.bias_gelu(x.t(), None, True)
    with pytest.raises(RuntimeError, match="x has rows that overlap"):
        target.ops.bias_gelu(x[:1].expand(4, 64), None, True)
    with pytest.raises(RuntimeError, match="x must have two axes"):
        target.ops.bias_gelu(x[None], None, True)
    with pytest.raises(RuntimeError, match="float32, bfloat16 and float16"):
        target.ops.swiglu(x.double())
    with pytest.raises(RuntimeError, match="as many gates as ups"):
        target.ops.swiglu(target.randn(4, 63))


def test_ops_trace(target: Target, dtype: torch.dtype) -> None:
    """Schemas, fakes and tracing hold up to torch's own checks."""
    with torch.inference_mode(False):
        x, bias = torch.randn(5, 64, dtype=dtype, device=target.device), torch.randn(64, device=target.device)
        check_op(target.ops.bias_gelu, (x, bias.to(dtype), True))
        check_op(target.ops.bias_gelu, (x, None, False))
        check_op(target.ops.swiglu, (x,))
