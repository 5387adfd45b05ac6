"""Norms of rows, alone and after the residual add, and what is applied number by number.

Next: kernels/tessera_kernels/heads.py
"""

import torch
import torch.nn.functional as F

from tessera_kernels import cpu, cuda, invariance, reference


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Return x / rms(x) * weight over the last axis. x: (..., hidden), weight: (hidden,)."""
    if cuda.serves(x):
        return cuda.ops().rms_norm(x, weight, eps)
    return cpu.rms_norm(x, weight, eps) if cpu.serves(x) else reference.rms_norm(x, weight, eps)


def add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float, x_bias: torch.Tensor | None = None
) -> torch.Tensor:
    """Add x and its bias to residual *in place* and return the norm of the sum. x, residual: (n, hidden)."""
    if cuda.serves(x):
        return cuda.ops().add_rms_norm(x, x_bias, residual, weight, eps)
    implementation = cpu if cpu.serves(x) else reference
    return implementation.add_rms_norm(_biased(x, x_bias), residual, weight, eps)


def layer_norm(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float) -> torch.Tensor:
    """Return (x - mean) / std * weight + bias over the last axis. x: (..., hidden)."""
    if cuda.serves(x):
        return cuda.ops().layer_norm(x, weight, bias, eps)
    return cpu.layer_norm(x, weight, bias, eps) if cpu.serves(x) else reference.layer_norm(x, weight, bias, eps)


def add_layer_norm(
    x: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    eps: float,
    x_bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """Add x and its bias to residual *in place* and return the layer norm of the sum.

    Args:
        x: (n, hidden).
        residual: (n, hidden).
        weight: (hidden,); bias likewise.
        bias: of the norm.
        eps: of the norm.
        x_bias: (period,), what a product before has left to be added; repeated along the row.
    """
    if cuda.serves(x):
        return cuda.ops().add_layer_norm(x, x_bias, residual, weight, bias, eps)
    implementation = cpu if cpu.serves(x) else reference
    return implementation.add_layer_norm(_biased(x, x_bias), residual, weight, bias, eps)


def _biased(x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return x if bias is None else x + bias.repeat(x.shape[-1] // bias.shape[0])


def gelu(x: torch.Tensor) -> torch.Tensor:
    """Return the exact GELU; x may be changed."""
    if cuda.serves(x):
        cuda.ops().bias_gelu(x, None, False)
        return x
    return invariance.elementwise(F.gelu, x)
