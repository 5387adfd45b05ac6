"""Causal attention with grouped heads over the paged cache.

Next: worker/layers/kv_cache.py
"""

from dataclasses import dataclass
from typing import Literal

import torch

from tessera_kernels import ops
from worker.layers.linear import Linear
from worker.layers.norm import RMSNorm
from worker.layers.source import WeightSource

LayerKind = Literal["attention", "state"]
"""What a layer keeps of the past: keys and values, or a recurrent state."""


@dataclass(frozen=True)
class AttentionShape:
    """Sizes of an attention layer.

    Args:
        hidden_size: width of the stream.
        num_heads: query heads.
        num_kv_heads: key/value heads.
        head_dim: elements of a head.
        norm_eps: of the query and key norms.
        bias: whether the projections have biases.
        out_bias: whether the output's has one; None: as the others.
        head_norms: whether queries and keys are normed head by head.
    """

    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    norm_eps: float
    bias: bool = False
    out_bias: bool | None = None
    head_norms: bool = True

    @property
    def has_out_bias(self) -> bool:
        """Whether the output projection has a bias."""
        return self.bias if self.out_bias is None else self.out_bias

    @property
    def width(self) -> int:
        """Numbers of a token that the layer holds at once: queries, keys and values twice, and what attention gives."""
        return (3 * self.num_heads + 4 * self.num_kv_heads) * self.head_dim


@dataclass(frozen=True)
class AttentionStep:
    """What all attention layers of one step share.

    Args:
        cos: fp32 (num_tokens, rotary_dim / 2), or (num_tokens, num_kv_heads, rotary_dim / 2) where each KV head and its
            queries turn by their own; sin likewise.
        slots: (num_tokens,) int64, where new keys and values go; negative: nowhere.
        block_tables: (num_seqs, max_blocks) int32.
        query_start: (num_seqs + 1,) int32, first row of each sequence.
        context_lens: (num_seqs,) int32, cache length of each sequence after the step.
        query_lens: new tokens of each sequence, on the host.
        kv_lens: `context_lens` on the host.
        state_slots: (num_seqs,) int64, slot of each sequence's recurrent state, for layers that keep one.
    """

    cos: torch.Tensor
    sin: torch.Tensor
    slots: torch.Tensor
    block_tables: torch.Tensor
    query_start: torch.Tensor
    context_lens: torch.Tensor
    query_lens: tuple[int, ...]
    kv_lens: tuple[int, ...]
    state_slots: torch.Tensor | None = None


class Attention:
    """Queries and keys normed head by head (or not), rotated; keys and values paged; output projected."""

    kind: LayerKind = "attention"

    def __init__(
        self, shape: AttentionShape, qkv: Linear, out: Linear, q_norm: RMSNorm | None, k_norm: RMSNorm | None
    ) -> None:
        self.shape = shape
        self.qkv = qkv
        self.out = out
        self.q_norm = q_norm
        self.k_norm = k_norm
        self.scale = shape.head_dim**-0.5

    @classmethod
    def load(cls, source: WeightSource, shape: AttentionShape) -> "Attention":
        """Read q/k/v/o projections and the two head norms, where there are any."""
        query, key = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
        parts = [("q_proj", query), ("k_proj", key), ("v_proj", key)]
        return cls(
            shape,
            Linear.load(source, parts, shape.hidden_size, bias=shape.bias),
            Linear.load(source, [("o_proj", shape.hidden_size)], query, bias=shape.has_out_bias),
            RMSNorm.load(source.under("q_norm"), shape.head_dim, shape.norm_eps) if shape.head_norms else None,
            RMSNorm.load(source.under("k_norm"), shape.head_dim, shape.norm_eps) if shape.head_norms else None,
        )

    def __call__(
        self, x: torch.Tensor, step: AttentionStep, cache: tuple[torch.Tensor, torch.Tensor], keep: torch.Tensor | None
    ) -> torch.Tensor:
        """Run the layer, writing the new keys and values.

        Args:
            x: (num_tokens, hidden).
            step: shared by the layers.
            cache: this layer's key and value blocks.
            keep: rows that anyone will look at, or None for all.

        Returns:
            (num_tokens or len(keep), hidden).
        """
        attended = self.attend(self.qkv(x), step, cache)
        return self.out(attended if keep is None else attended[keep])

    def attend(self, qkv: torch.Tensor, step: AttentionStep, cache: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """Norm, rotate, store and attend.

        Args:
            qkv: (num_tokens, heads * head_dim), queries, keys, values and whatever follows; changed in place.
            step: shared by the layers.
            cache: this layer's key and value blocks.

        Returns:
            (num_tokens, num_heads * head_dim).
        """
        shape, norms = self.shape, (self.q_norm, self.k_norm)
        q_weight, k_weight = (None if norm is None else norm.weight for norm in norms)
        ops.qk_norm_rope_store(
            qkv, q_weight, k_weight, shape.norm_eps, step.cos, step.sin, shape.num_heads, shape.num_kv_heads,
            shape.head_dim, *cache, step.slots,
        )  # fmt: skip
        query = qkv.unflatten(1, (-1, shape.head_dim))[:, : shape.num_heads]
        return ops.paged_attention(
            query, *cache, step.block_tables, step.query_start, step.context_lens, step.query_lens, step.kv_lens,
            self.scale,
        ).flatten(1)  # fmt: skip

    @property
    def size_bytes(self) -> int:
        """Bytes of the weights."""
        return self.qkv.size_bytes + self.out.size_bytes
