"""Preparation of the vision tower's queries, keys and values on CUDA against float64.

Next: kernels/csrc/qkv.cu
"""

import pytest
import torch

from tests.cuda_ops import Target, check_error, check_op, strided

# (rows, heads, head_dim, half, padded_dim): the towers' heads, padded and not; heads that no vector divides; heads that
# turn in part or not at all; rows that share a block, rows that are too long for one turn of it; no rows
SHAPES = [
    (2, 16, 72, 36, 80),
    (1, 2, 72, 36, 128),
    (5, 3, 72, 36, 72),
    (41, 2, 64, 32, 64),
    (3, 4, 80, 40, 80),
    (2, 3, 128, 64, 128),
    (3, 2, 10, 3, 13),
    (2, 1, 7, 0, 7),
    (1, 1, 1, 0, 2),
    (3, 2, 64, 16, 96),
    (1, 70, 64, 32, 64),
    (0, 2, 64, 32, 64),
]


def exact_qkv(
    qkv: torch.Tensor, bias: torch.Tensor | None, cos: torch.Tensor, sin: torch.Tensor, heads: int, padded: int
) -> torch.Tensor:
    """The formula in float64."""
    half = cos.shape[1]
    cos, sin = cos.double()[:, None], sin.double()[:, None]
    wide = qkv.double() if bias is None else qkv.double() + bias.double()
    parts = wide.view(qkv.shape[0], 3, heads, qkv.shape[1] // (3 * heads)).transpose(0, 1).clone()
    for part in parts[:2]:
        first, second = part[..., :half].clone(), part[..., half : 2 * half].clone()
        part[..., :half] = first * cos - second * sin
        part[..., half : 2 * half] = second * cos + first * sin
    return torch.nn.functional.pad(parts, (0, padded - parts.shape[-1]))


def tables(target: Target, rows: int, half: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines of any angles."""
    angles = target.randn(rows, half, seed=3).mul(3).cpu()
    return target.guarded(angles.cos()), target.guarded(angles.sin())


@pytest.mark.parametrize(("rows", "heads", "head_dim", "half", "padded"), SHAPES)
@pytest.mark.parametrize("with_bias", [True, False])
def test_qkv_prepare(
    target: Target, dtype: torch.dtype, with_bias: bool, rows: int, heads: int, head_dim: int, half: int, padded: int
) -> None:
    """Queries and keys get their bias and turn, values get their bias; heads end in zeros, wherever the rows lie."""
    qkv = target.randn(rows, 3 * heads * head_dim, dtype=dtype)
    bias = target.randn(3 * heads * head_dim, dtype=dtype, seed=1) if with_bias else None
    cos, sin = tables(target, rows, half)
    exact = exact_qkv(qkv, bias, cos, sin, heads, padded)
    for rows_of in (qkv, strided(qkv), strided(qkv, 3)):
        ours = target.ops.qkv_prepare(rows_of, bias, cos, sin, heads, padded)
        assert ours.dtype is dtype and ours.is_contiguous()
        check_error("qkv_prepare", ours, exact)
        assert not ours[..., head_dim:].any()
        if bias is None:
            assert torch.equal(ours[2, ..., :head_dim].flatten(1), qkv[:, 2 * heads * head_dim :])


@pytest.mark.parametrize("which", ["bias", "cos", "sin"])
def test_vectors_that_are_not_aligned(target: Target, dtype: torch.dtype, which: str) -> None:
    """A bias or a table that begins anywhere in memory is read element by element."""
    qkv, shift = target.randn(3, 3 * 2 * 16, dtype=dtype), {which: 1}
    bias = target.randn(97, dtype=dtype)[shift.get("bias", 0) :][:96]
    angles = target.randn(25)
    cos = target.guarded(angles.cpu().cos())[shift.get("cos", 0) :][:24].view(3, 8)
    sin = target.guarded(angles.cpu().sin())[shift.get("sin", 0) :][:24].view(3, 8)
    ours = target.ops.qkv_prepare(qkv, bias, cos, sin, 2, 16)
    check_error("qkv_prepare", ours, exact_qkv(qkv, bias, cos, sin, 2, 16))


def test_nothing_is_rounded_between_bias_and_rotation(target: Target) -> None:
    """What bf16 would lose of a sum with its bias is there when the rotation takes the difference of two."""
    qkv = target.guarded(torch.full((1, 3 * 16), 256.0).bfloat16())
    bias = target.guarded(torch.tensor([0.75] * 8 + [0.0] * 8).repeat(3).bfloat16())  # 256.75 is no bf16 number
    ones = target.guarded(torch.ones(1, 8))
    ours = target.ops.qkv_prepare(qkv, bias, ones, ones, 1, 16)
    assert torch.equal(ours[0, 0, 0, :8].float().cpu(), torch.full((8,), 0.75))


def test_bad_arguments_are_refused(target: Target) -> None:
    """A wrong shape or type is an error that names the argument, not a wrong result."""
    qkv, (cos, sin) = target.randn(4, 3 * 2 * 16), tables(target, 4, 8)
    prepare = target.ops.qkv_prepare
    with pytest.raises(RuntimeError, match="num_heads does not divide"):
        prepare(qkv, None, cos, sin, 5, 16)
    with pytest.raises(RuntimeError, match="padded_dim is smaller"):
        prepare(qkv, None, cos, sin, 2, 15)
    with pytest.raises(RuntimeError, match="cos must have two axes and at most half a head"):
        prepare(qkv, None, *tables(target, 4, 9), 2, 16)
    with pytest.raises(RuntimeError, match="sin has another shape"):
        prepare(qkv, None, cos, sin[:3], 2, 16)
    with pytest.raises(RuntimeError, match="cos has another dtype"):
        prepare(qkv, None, cos.bfloat16(), sin, 2, 16)
    with pytest.raises(RuntimeError, match="bias has another shape"):
        prepare(qkv, target.randn(16), cos, sin, 2, 16)


def test_op_traces(target: Target, dtype: torch.dtype) -> None:
    """Schema, fake and tracing hold up to torch's own checks."""
    with torch.inference_mode(False):
        qkv, bias = torch.randn(4, 96, dtype=dtype, device=target.device), torch.randn(96, device=target.device)
        table = torch.randn(4, 8, device=target.device)
        check_op(target.ops.qkv_prepare, (qkv, bias.to(dtype), table, table, 2, 24))
