"""Norm layers, alone and fused with the residual add before them.

Next: worker/layers/attention.py
"""

import torch

from tessera_kernels import ops
from worker.layers.source import WeightSource


class RMSNorm:
    """x / rms(x) * weight."""

    def __init__(self, weight: torch.Tensor, eps: float) -> None:
        self.weight = weight
        self.eps = eps

    @classmethod
    def load(cls, source: WeightSource, hidden_size: int, eps: float, *, offset: float = 0.0) -> "RMSNorm":
        """Read `weight` (hidden_size,).

        Args:
            source: of the name.
            hidden_size: width of the stream.
            eps: of the norm.
            offset: added to the weight, for families that store it centred at zero. The sum is kept in fp32 whatever
                the model's type: bf16 would lose most of a small weight beside the 1.
        """
        if not offset:
            return cls(source.tensor("weight", (hidden_size,)), eps)
        return cls(source.tensor("weight", (hidden_size,), torch.float32).add_(offset), eps)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x: (n, hidden) -> (n, hidden)."""
        return ops.rms_norm(x, self.weight, self.eps)

    def add(self, x: torch.Tensor, residual: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """Add x, and its bias, to residual in place and return the norm of the sum. x, residual: (n, hidden)."""
        return ops.add_rms_norm(x, residual, self.weight, self.eps, bias)


class LayerNorm:
    """(x - mean) / std * weight + bias."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor, eps: float) -> None:
        self.weight = weight
        self.bias = bias
        self.eps = eps

    @classmethod
    def load(cls, source: WeightSource, hidden_size: int, eps: float) -> "LayerNorm":
        """Read `weight` and `bias` (hidden_size,)."""
        return cls(source.tensor("weight", (hidden_size,)), source.tensor("bias", (hidden_size,)), eps)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x: (n, hidden) -> (n, hidden)."""
        return ops.layer_norm(x, self.weight, self.bias, self.eps)

    def add(self, x: torch.Tensor, residual: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """Add x, and its bias, to residual in place and return the norm of the sum. x, residual: (n, hidden)."""
        return ops.add_layer_norm(x, residual, self.weight, self.bias, self.eps, bias)
