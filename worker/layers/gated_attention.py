"""Causal attention whose output passes a gate of its own, head element by head element.

Next: worker/layers/attention.py
"""

import torch

from tessera_kernels import invariance, ops
from worker.layers.attention import Attention, AttentionShape, AttentionStep
from worker.layers.linear import Linear
from worker.layers.norm import RMSNorm
from worker.layers.source import WeightSource


class GatedAttention(Attention):
    """out(attended * sigmoid(gate)); the gates' rows are stored among the queries', head by head."""

    @classmethod
    def load(cls, source: WeightSource, shape: AttentionShape) -> "GatedAttention":
        """Read q/k/v/o projections and the two head norms, whose weights are centred at zero.

        `q_proj` holds, for each head, its query rows and then its gate rows; in memory the gates follow the values.
        """
        heads, dim, hidden = shape.num_heads, shape.head_dim, shape.hidden_size
        query, key = heads * dim, shape.num_kv_heads * dim
        weight = ops.linear.create(2 * (query + key), hidden, source.dtype, source.device, bias=shape.bias)
        stored = source.mapped("q_proj.weight", (2 * query, hidden)).view(heads, 2, dim, hidden)
        first_gate = query + 2 * key
        for head in range(heads):
            weight.write_rows(head * dim, stored[head, 0])
            weight.write_rows(first_gate + head * dim, stored[head, 1])
        weight.write_rows(query, source.mapped("k_proj.weight", (key, hidden)))
        weight.write_rows(query + key, source.mapped("v_proj.weight", (key, hidden)))
        if shape.bias:
            bias = source.mapped("q_proj.bias", (2 * query,)).view(heads, 2, dim)
            weight.write_bias(0, bias[:, 0].flatten())
            weight.write_bias(query, source.mapped("k_proj.bias", (key,)))
            weight.write_bias(query + key, source.mapped("v_proj.bias", (key,)))
            weight.write_bias(first_gate, bias[:, 1].flatten())
        weight.seal()
        return cls(
            shape,
            Linear(weight),
            Linear.load(source, [("o_proj", hidden)], query, bias=shape.bias),
            RMSNorm.load(source.under("q_norm"), dim, shape.norm_eps, offset=1.0),
            RMSNorm.load(source.under("k_norm"), dim, shape.norm_eps, offset=1.0),
        )

    def __call__(
        self, x: torch.Tensor, step: AttentionStep, cache: tuple[torch.Tensor, torch.Tensor], keep: torch.Tensor | None
    ) -> torch.Tensor:
        """Run the layer; see `Attention`."""
        qkv = self.qkv(x)
        attended = self.attend(qkv, step, cache)
        gate = qkv[:, -attended.shape[1] :]
        if keep is not None:
            attended, gate = attended[keep], gate[keep]
        return self.out(attended.mul_(invariance.elementwise(torch.sigmoid, gate)))
