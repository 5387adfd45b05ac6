"""Fourier position embedding (FoPE): every KV head turns its frequencies by cosines and sines that it mixes itself.

Queries take the table of the KV head that they attend to. So the product's rows are stored group by group, queries, key
and value of one KV head side by side: seen as that many more tokens with one KV head each, they go through the op that
all families share.

Source: InternS1-Pro (released remote code), after "Fourier Position Embedding", arXiv 2412.17739.

Next: worker/layers/attention.py
"""

import math
from dataclasses import dataclass

import torch

from tessera_kernels import invariance, ops
from worker.layers.attention import Attention, AttentionShape, AttentionStep
from worker.layers.linear import Linear
from worker.layers.norm import RMSNorm
from worker.layers.rotary import inverse_frequencies
from worker.layers.source import WeightSource


@dataclass(frozen=True)
class FourierShape:
    """Sizes of the position embedding.

    Args:
        theta: base of the frequencies.
        head_dim: elements of a head, all of them turned.
        num_kv_heads: tables.
        num_frequencies: frequencies that are kept, the fastest ones.
        per_head: whether each KV head has its own mixing, or all share one.
        mixed: False where there is none: plain rotary embedding.
    """

    theta: float
    head_dim: int
    num_kv_heads: int
    num_frequencies: int
    per_head: bool = True
    mixed: bool = True


def count_frequencies(theta: float, head_dim: int, max_position_embeddings: int, asked: int | None) -> int:
    """Return how many frequencies are kept: those asked for, else those that turn once within the longest context.

    Args:
        theta: base of the frequencies.
        head_dim: elements of a head.
        max_position_embeddings: of the checkpoint; another value than it was made with gives another number.
        asked: `num_inv_freq`, or None.
    """
    frequencies = inverse_frequencies(theta, head_dim, torch.device("cpu"))
    if asked is not None:
        return min(asked, len(frequencies))
    return int((frequencies > 2.0 * math.pi / max_position_embeddings).sum())


class FourierTable:
    """Cosines and sines of a step's tokens for each KV head, computed once and shared by all layers.

    Args:
        source: `rotary_emb` of the language model, which holds `cos_coef` and `sin_coef`.
        shape: sizes.
    """

    def __init__(self, source: WeightSource, shape: FourierShape) -> None:
        self.shape = shape
        self.inv_freq = inverse_frequencies(shape.theta, shape.head_dim, source.device)[: shape.num_frequencies]
        self.mixing: tuple[ops.LinearWeight, ops.LinearWeight] | None = None
        if shape.mixed:
            self.mixing = self._load(source, "cos_coef"), self._load(source, "sin_coef")

    def _load(self, source: WeightSource, name: str) -> ops.LinearWeight:
        """Return coefficients ([heads,] kept, kept) as a linear layer from `kept` to all heads' `kept` side by side."""
        kept, heads = self.shape.num_frequencies, self.shape.num_kv_heads if self.shape.per_head else 1
        stored = source.mapped(name, (heads,) * self.shape.per_head + (kept, kept))
        weight = ops.linear.create(heads * kept, kept, torch.float32, source.device)
        weight.write_rows(0, stored.view(heads, kept, kept).transpose(1, 2).reshape(heads * kept, kept))
        weight.seal()
        return weight

    def __call__(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Positions, int64 (3, n) with equal rows, to cos, sin: fp32 (n * num_kv_heads, head_dim / 2)."""
        angles = positions[0].float()[:, None] * self.inv_freq
        cos, sin = invariance.elementwise(torch.cos, angles), invariance.elementwise(torch.sin, angles)
        if self.mixing is not None:
            cos, sin = (weight.apply(table) for table, weight in zip((cos, sin), self.mixing, strict=True))
        return self._complete(cos), self._complete(sin)

    def _complete(self, table: torch.Tensor) -> torch.Tensor:
        """Give every KV head a table, and every frequency that was dropped a one, in cosine and sine alike.

        table: (n, kept) where heads share it, else (n, heads * kept) -> (n * heads, half).
        """
        heads, half = self.shape.num_kv_heads, self.shape.head_dim // 2
        table = table.view(table.shape[0], -1, self.shape.num_frequencies)
        full = table.new_ones(table.shape[0], heads, half)
        full[..., : table.shape[-1]] = table
        return full.view(-1, half)


class GroupedAttention(Attention):
    """Attention whose queries and keys are normed and turned group by group; its tables are those of `FourierTable`.

    Its product gives (queries, key, value) of the first KV head, then of the second, and so on.
    """

    @classmethod
    def load(cls, source: WeightSource, shape: AttentionShape) -> "GroupedAttention":
        """Read q/k/v/o projections and the two head norms."""
        query = shape.num_heads * shape.head_dim
        return cls(
            shape,
            _load_grouped(source, shape),
            Linear.load(source, [("o_proj", shape.hidden_size)], query, bias=shape.has_out_bias),
            RMSNorm.load(source.under("q_norm"), shape.head_dim, shape.norm_eps),
            RMSNorm.load(source.under("k_norm"), shape.head_dim, shape.norm_eps),
        )

    def attend(self, qkv: torch.Tensor, step: AttentionStep, cache: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """Norm, turn, store and attend; see `Attention.attend`."""
        shape, count = self.shape, qkv.shape[0]
        group = shape.num_heads // shape.num_kv_heads
        assert self.q_norm is not None and self.k_norm is not None
        ops.qk_norm_rope(
            qkv.view(count * shape.num_kv_heads, -1), self.q_norm.weight, self.k_norm.weight, shape.norm_eps,
            step.cos, step.sin, group, 1,
        )  # fmt: skip
        heads = qkv.view(count, shape.num_kv_heads, group + 2, shape.head_dim)
        # copies, in the order of heads that the ops below read
        query = heads[:, :, :group].clone(memory_format=torch.contiguous_format).view(count, -1, shape.head_dim)
        key, value = heads[:, :, group:].transpose(1, 2).clone(memory_format=torch.contiguous_format).unbind(1)
        return self._attend_heads(query, key, value, step, cache)


def _load_grouped(source: WeightSource, shape: AttentionShape) -> Linear:
    """Read q/k/v projections, their rows group by group."""
    group, head_dim = shape.num_heads // shape.num_kv_heads, shape.head_dim
    rows = (shape.num_heads + 2 * shape.num_kv_heads) * head_dim
    weight = ops.linear.create(rows, shape.hidden_size, source.dtype, source.device, bias=shape.bias)
    first = 0
    for name, heads in (("q_proj", group), ("k_proj", 1), ("v_proj", 1)):
        part, stride = heads * head_dim, (group + 2) * head_dim
        whole = part * shape.num_kv_heads
        matrix = source.mapped(f"{name}.weight", (whole, shape.hidden_size))
        bias = source.mapped(f"{name}.bias", (whole,)) if shape.bias else None
        for index in range(shape.num_kv_heads):
            start = index * stride + first
            weight.write_rows(start, matrix[index * part : (index + 1) * part])
            if bias is not None:
                weight.write_bias(start, bias[index * part : (index + 1) * part])
        first += part
    weight.seal()
    return Linear(weight)
