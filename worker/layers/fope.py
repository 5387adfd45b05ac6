"""Fourier position embedding (FoPE): every KV head turns its frequencies by cosines and sines that it mixes itself.

Queries take the table of the KV head that they attend to; the attention op turns each head by its own.

Source: InternS1-Pro (released remote code), after "Fourier Position Embedding", arXiv 2412.17739.

Next: worker/layers/attention.py
"""

import math
from dataclasses import dataclass

import torch

from tessera_kernels import ops
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
        self.axes = torch.zeros(len(self.inv_freq), dtype=torch.int64, device=source.device)
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
        """Return cosines and sines.

        Args:
            positions: int64 (3, n), equal rows.

        Returns:
            Two fp32 (n, num_kv_heads, head_dim / 2), or (n, head_dim / 2) where all KV heads turn alike.
        """
        cos, sin = ops.rotary_table(positions, self.inv_freq, self.axes)
        if self.mixing is not None:
            cos, sin = (weight.apply(table) for table, weight in zip((cos, sin), self.mixing, strict=True))
        return self._complete(cos), self._complete(sin)

    def _complete(self, table: torch.Tensor) -> torch.Tensor:
        """Give every frequency that was dropped a one, in cosine and sine alike.

        table: (n, kept) where KV heads share it, else (n, heads * kept) -> (n, half) or (n, heads, half).
        """
        count, kept = table.shape[0], self.shape.num_frequencies
        heads = table.shape[1] // kept
        full = table.new_ones(count, heads, self.shape.head_dim // 2)
        full[..., :kept] = table.view(count, heads, kept)
        return full[:, 0] if heads == 1 else full
