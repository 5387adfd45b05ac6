"""The language model's stack: embedding, layers, norm and head, over a paged cache; families bring the layers.

Reading order: `Decoder.forward` is one engine step.

Next: worker/models/encoder.py
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from tessera_kernels import ops
from worker.layers.attention import AttentionStep, LayerKind
from worker.layers.embedding import Embedding
from worker.layers.kv_cache import KVCache
from worker.layers.linear import Linear
from worker.layers.norm import RMSNorm
from worker.layers.state_cache import StateShape
from worker.models.base import ForwardBatch

Rotary = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""Positions, int64 (3, n), to the (cos, sin) that the family's attention layers take."""


class DecoderLayer(Protocol):
    """One layer: what it keeps of the past is keys and values ("attention") or a recurrent state ("state")."""

    @property
    def kind(self) -> LayerKind:
        """Which cache the layer uses."""

    def __call__(
        self,
        x: torch.Tensor,
        residual: torch.Tensor,
        step: AttentionStep,
        cache: tuple[torch.Tensor, torch.Tensor],
        keep: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (what is to be added to the residual, the residual), cut to the rows to keep.

        Args:
            x: (num_tokens, hidden), the previous layer's return, not yet added.
            residual: (num_tokens, hidden), changed in place.
            step: shared by the layers.
            cache: this layer's (key, value) blocks, or its (conv, recurrent) slots.
            keep: rows that anyone will look at, or None for all.
        """

    @property
    def size_bytes(self) -> int:
        """Bytes of the weights."""


class PreNormLayer:
    """Pre-norm token mixer and feed-forward; the residual add of each is fused into the norm that follows.

    Args:
        input_norm: before the mixer.
        mixer: attention over keys and values, or a layer with recurrent state: called with the normed stream, the
            step, the layer's cache and the rows to keep.
        post_norm: before the feed-forward layer.
        mlp: dense or mixture of experts.
    """

    def __init__(self, input_norm: RMSNorm, mixer: "Mixer", post_norm: RMSNorm, mlp: "FeedForward") -> None:
        self.input_norm = input_norm
        self.mixer = mixer
        self.post_norm = post_norm
        self.mlp = mlp
        self.kind = mixer.kind

    def __call__(
        self,
        x: torch.Tensor,
        residual: torch.Tensor,
        step: AttentionStep,
        cache: tuple[torch.Tensor, torch.Tensor],
        keep: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Run the layer; see `DecoderLayer`."""
        mixed = self.mixer(self.input_norm.add(x, residual), step, cache, keep)
        if keep is not None:
            residual = residual[keep]
        return self.mlp(self.post_norm.add(mixed, residual)), residual

    @property
    def size_bytes(self) -> int:
        """Bytes of the weights."""
        return self.mixer.size_bytes + self.mlp.size_bytes


class Mixer(Protocol):
    """What mixes tokens: attention, or a recurrent layer."""

    @property
    def kind(self) -> LayerKind:
        """Which cache the mixer uses."""

    def __call__(
        self, x: torch.Tensor, step: AttentionStep, cache: tuple[torch.Tensor, torch.Tensor], keep: torch.Tensor | None
    ) -> torch.Tensor:
        """x: (num_tokens, hidden) -> (num_tokens or len(keep), hidden)."""

    @property
    def size_bytes(self) -> int:
        """Bytes of the weights."""


class FeedForward(Protocol):
    """What each token goes through by itself."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x: (n, hidden) -> (n, hidden)."""

    @property
    def size_bytes(self) -> int:
        """Bytes of the weights."""


@dataclass(frozen=True)
class DecoderShape:
    """Sizes of the stack that the engine plans with.

    Args:
        hidden_size: width of the stream.
        vocab_size: columns of the logits.
        num_kv_heads: key/value heads.
        head_dim: elements of a head.
        layer_width: numbers of a token that the widest layer holds at once, beside the stream that all layers share.
        state: recurrent state of a sequence, or None.
    """

    hidden_size: int
    vocab_size: int
    num_kv_heads: int
    head_dim: int
    layer_width: int
    state: StateShape | None = None


class Decoder:
    """Embedding, layers, final norm and head.

    Args:
        embed: token embedding.
        layers: in order.
        norm: after the last layer.
        head: to logits.
        rotary: tables of a step.
        shape: sizes.
    """

    def __init__(
        self,
        embed: Embedding,
        layers: Sequence[DecoderLayer],
        norm: RMSNorm,
        head: Linear,
        rotary: Rotary,
        shape: DecoderShape,
    ) -> None:
        self.embed = embed
        self.layers = list(layers)
        self.norm = norm
        self.head = head
        self.rotary = rotary
        self.shape = shape
        self.num_attention_layers = sum(layer.kind == "attention" for layer in self.layers)
        states = sum(layer.kind == "state" for layer in self.layers)
        assert states == (shape.state.num_layers if shape.state else 0), "the state's shape counts its layers"

    def forward(self, batch: ForwardBatch, kv_cache: KVCache) -> torch.Tensor:
        """Run one step; see `CausalLM.forward`."""
        residual = self.embed(batch.input_ids)
        if batch.mm_embeds is not None:
            _merge(batch, residual, batch.mm_embeds, add=False)
        cos, sin = self.rotary(batch.positions)
        step = AttentionStep(
            cos, sin, batch.slot_mapping, batch.block_tables, batch.query_start, batch.context_lens, batch.query_lens,
            batch.kv_lens, batch.state_slots,
        )  # fmt: skip
        x = torch.zeros_like(residual)
        keep = self._rows_of_last_layer(batch)
        last = len(self.layers) - 1
        caches = self._caches(kv_cache)
        for index, (layer, cache) in enumerate(zip(self.layers, caches, strict=True)):
            x, residual = layer(x, residual, step, cache, keep if index == last else None)
            _add_deepstack(batch, index, residual)
        if keep is None and batch.logits_indices.shape[0] < batch.num_tokens:
            x, residual = x[batch.logits_indices], residual[batch.logits_indices]
        return self.head(self.norm.add(x, residual))

    def _caches(self, kv_cache: KVCache) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Return each layer's cache: keys and values, or state, each counted among its own kind."""
        caches, counts = [], {"attention": 0, "state": 0}
        for layer in self.layers:
            index = counts[layer.kind]
            counts[layer.kind] += 1
            if layer.kind == "attention":
                caches.append(kv_cache.layer(index))
            else:
                assert kv_cache.states is not None
                caches.append(kv_cache.states.layer(index))
        return caches

    def _rows_of_last_layer(self, batch: ForwardBatch) -> torch.Tensor | None:
        """Return the rows that the last layer needs to finish: those with logits, unless that is all of them.

        The others only leave their keys and values there. (DeepStack features that enter after the last layer, as in
        models with hardly any layers, address the whole batch.)
        """
        deepstack = 0 if batch.mm_deepstack is None else batch.mm_deepstack.shape[0]
        if deepstack >= len(self.layers) or batch.logits_indices.shape[0] == batch.num_tokens:
            return None
        return batch.logits_indices

    def workspace_bytes(self, num_tokens: int, num_logits: int) -> int:
        """Return an upper estimate of the transient memory of `forward`."""
        shape = self.shape
        token = 4 * shape.hidden_size + shape.layer_width
        return num_tokens * token * max(self.norm.weight.dtype.itemsize, 4) + num_logits * shape.vocab_size * 8

    @property
    def size_bytes(self) -> int:
        """Bytes of the weights as they are kept."""
        table = self.embed.table
        embedding = 0 if table is None or table.device.type == "cpu" else table.nbytes
        return sum(layer.size_bytes for layer in self.layers) + self.head.size_bytes + embedding


def _add_deepstack(batch: ForwardBatch, index: int, residual: torch.Tensor) -> None:
    """Add the side features that belong after decoder layer `index`, in place, to the placeholder rows."""
    deepstack = batch.mm_deepstack
    if deepstack is not None and index < deepstack.shape[0]:
        _merge(batch, residual, deepstack[index], add=True)


def _merge(batch: ForwardBatch, residual: torch.Tensor, features: torch.Tensor, add: bool) -> None:
    assert batch.mm_source is not None and batch.mm_target is not None
    ops.merge_embeddings(residual, features, batch.mm_source, batch.mm_target, add)
