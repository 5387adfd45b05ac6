"""Norms on CUDA against float64.

Next: kernels/csrc/norm.cu
"""

import pytest
import torch

from tests.cuda_ops import Target, check_error, check_guards, check_op, strided

EPS = 1e-6
# one vector, a warp's rows of one, two and four vectors a lane, blocks, a row that no vector divides, no rows
SIZES = [(1, 8), (3, 63), (5, 256), (2, 512), (7, 1024), (3, 1152), (2, 4608), (2, 16000), (0, 64)]


def exact_norm(op: str, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """The formula in float64."""
    x, weight, bias = x.double(), weight.double(), bias.double()
    if op == "rms_norm":
        return x / (x.square().mean(-1, keepdim=True) + EPS).sqrt() * weight
    return torch.nn.functional.layer_norm(x, x.shape[-1:], weight, bias, EPS)


@pytest.mark.parametrize("op", ["rms_norm", "layer_norm"])
@pytest.mark.parametrize(("rows", "hidden"), SIZES)
def test_norm(target: Target, dtype: torch.dtype, op: str, rows: int, hidden: int) -> None:
    """A row is normed by itself, whatever its length and wherever the rows lie."""
    x, weight, bias = (target.randn(*shape, dtype=dtype) for shape in ((rows, hidden), (hidden,), (hidden,)))
    parts = (weight,) if op == "rms_norm" else (weight, bias)
    for rows_of in (x, strided(x), strided(x, 3)):
        ours = getattr(target.ops, op)(rows_of, *parts, EPS)
        assert ours.dtype is dtype and ours.is_contiguous()
        check_error(op, ours, exact_norm(op, x, weight, bias))


@pytest.mark.parametrize("op", ["rms_norm", "layer_norm"])
@pytest.mark.parametrize(("rows", "hidden"), SIZES)
@pytest.mark.parametrize("period", [None, 1, 2])
def test_add_norm(target: Target, dtype: torch.dtype, op: str, rows: int, hidden: int, period: int | None) -> None:
    """The residual takes x and its bias, repeated along the row, in place; the norm is of what it then holds."""
    if period and hidden % (period * 8):
        period = 1
    x, residual = target.randn(rows, hidden, dtype=dtype), target.randn(rows, hidden, dtype=dtype, seed=1)
    weight, bias = target.randn(hidden, dtype=dtype, seed=2), target.randn(hidden, dtype=dtype, seed=3)
    x_bias = target.randn(hidden // period, dtype=dtype, seed=4) if period else None
    added = x.float() + (x_bias.float().repeat(period) if x_bias is not None and period else 0)
    expected = (residual.float() + added).to(dtype)
    parts = (weight,) if op == "rms_norm" else (weight, bias)
    ours = getattr(target.ops, f"add_{op}")(x, x_bias, residual, *parts, EPS)
    assert torch.equal(residual, expected)
    check_guards(residual)
    check_error(f"add_{op}", ours, exact_norm(op, expected, weight, bias))


def test_weights_in_fp32(target: Target) -> None:
    """A weight may be fp32 beside a bf16 stream, as those stored less one are."""
    x, weight = target.randn(5, 96, dtype=torch.bfloat16), target.randn(96)
    ours = target.ops.rms_norm(x, weight, EPS)
    assert ours.dtype is torch.bfloat16
    check_error("rms_norm", ours, exact_norm("rms_norm", x, weight, weight))


def test_large_values_keep_their_variance(target: Target) -> None:
    """The variance is of centred values: a mean far from zero costs no digits of it."""
    x = target.guarded(target.randn(4, 300).cpu() + 1000)
    weight, bias = target.guarded(torch.ones(300)), target.guarded(torch.zeros(300))
    check_error(
        "layer_norm, mean 1000", target.ops.layer_norm(x, weight, bias, EPS), exact_norm("", x, weight, bias), 100
    )


def test_bad_arguments_are_refused(target: Target) -> None:
    """A wrong shape or type is an error that names the argument, not a wrong result."""
    x = target.randn(4, 64)
    with pytest.raises(RuntimeError, match="weight has another shape"):
        target.ops.rms_norm(x, target.randn(32), EPS)
    with pytest.raises(RuntimeError, match="weight has another dtype"):
        target.ops.rms_norm(x, target.randn(64, dtype=torch.bfloat16), EPS)
    with pytest.raises(RuntimeError, match="last axis contiguous"):
        target.ops.rms_norm(target.randn(64, 4).t(), target.randn(64), EPS)
    with pytest.raises(RuntimeError, match="too long"):
        target.ops.rms_norm(target.randn(1, 100001), target.randn(100001), EPS)


def test_ops_trace(target: Target, dtype: torch.dtype) -> None:
    """Schemas, fakes and tracing hold up to torch's own checks."""
    with torch.inference_mode(False):
        x, residual, weight = (
            torch.randn(shape, dtype=dtype, device=target.device) for shape in ((5, 64), (5, 64), 64)
        )
        check_op(target.ops.rms_norm, (x, weight, EPS))
        check_op(target.ops.layer_norm, (x, weight, weight, EPS))
        check_op(target.ops.add_rms_norm, (x, weight, residual, weight, EPS))
        check_op(target.ops.add_layer_norm, (x, None, residual, weight, weight, EPS))
