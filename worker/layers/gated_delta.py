"""Linear attention by the gated delta rule: a state of fixed size in place of keys and values.

Next: kernels/tessera_kernels/reference_gated_delta.py
"""

from dataclasses import dataclass

import torch

from tessera_kernels import ops
from worker.layers.attention import AttentionStep, LayerKind
from worker.layers.linear import Linear
from worker.layers.source import WeightSource


@dataclass(frozen=True)
class GatedDeltaShape:
    """Sizes of a linear attention layer.

    Args:
        hidden_size: width of the stream.
        key_heads: heads of queries and keys.
        value_heads: heads of values, a multiple of key_heads.
        key_dim: elements of a query or key head.
        value_dim: elements of a value head.
        kernel: inputs that the convolution sees, the newest counted.
        norm_eps: of the output norm.
    """

    hidden_size: int
    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int
    kernel: int
    norm_eps: float

    @property
    def key_width(self) -> int:
        """Elements of all keys of a token."""
        return self.key_heads * self.key_dim

    @property
    def value_width(self) -> int:
        """Elements of all values of a token."""
        return self.value_heads * self.value_dim

    @property
    def conv_channels(self) -> int:
        """Channels of the convolution: queries, keys, values."""
        return 2 * self.key_width + self.value_width

    @property
    def width(self) -> int:
        """Numbers of a token that the layer holds at once: all projections, what the convolution gives, two outputs."""
        return 2 * self.conv_channels + 3 * self.value_width + 2 * self.value_heads


class GatedDelta:
    """Queries, keys and values through a short convolution into the state; what it reads is normed and gated.

    Args:
        shape: sizes.
        projections: the stream to queries, keys, values, output gate, update gates, decay gates, side by side.
        out: back to the stream.
        conv: (kernel, conv_channels), the newest input's factors last.
        rate: fp32 (value_heads,), exp(A_log).
        bias: fp32 (value_heads,), of the decay gates.
        norm: fp32 (value_dim,), weight of the output norm.
    """

    kind: LayerKind = "state"

    def __init__(
        self,
        shape: GatedDeltaShape,
        projections: Linear,
        out: Linear,
        conv: torch.Tensor,
        rate: torch.Tensor,
        bias: torch.Tensor,
        norm: torch.Tensor,
    ) -> None:
        self.shape = shape
        self.projections = projections
        self.out = out
        self.conv = conv
        self.rate = rate
        self.bias = bias
        self.norm = norm

    @classmethod
    def load(cls, source: WeightSource, shape: GatedDeltaShape) -> "GatedDelta":
        """Read the four input projections, the convolution, `A_log`, `dt_bias`, `norm` and `out_proj`."""
        heads, width = shape.value_heads, shape.value_width
        parts = [
            ("in_proj_qkv", shape.conv_channels), ("in_proj_z", width), ("in_proj_b", heads), ("in_proj_a", heads)
        ]  # fmt: skip
        conv = source.tensor("conv1d.weight", (shape.conv_channels, 1, shape.kernel))
        return cls(
            shape,
            Linear.load(source, parts, shape.hidden_size),
            Linear.load(source, [("out_proj", shape.hidden_size)], width),
            conv[:, 0].t().contiguous(),
            source.tensor("A_log", (heads,), torch.float32).exp_(),
            source.tensor("dt_bias", (heads,), torch.float32),
            source.tensor("norm.weight", (shape.value_dim,), torch.float32),
        )

    def __call__(
        self, x: torch.Tensor, step: AttentionStep, cache: tuple[torch.Tensor, torch.Tensor], keep: torch.Tensor | None
    ) -> torch.Tensor:
        """Run the layer, moving the states of the step's sequences on.

        Args:
            x: (num_tokens, hidden).
            step: shared by the layers.
            cache: this layer's slots: conv (slots, conv_channels, kernel - 1), and
                recurrent fp32 (slots, value_heads, key_dim, value_dim).
            keep: rows that anyone will look at, or None for all.

        Returns:
            (num_tokens or len(keep), hidden).
        """
        shape = self.shape
        assert step.state_slots is not None, "a step of a model with recurrent state names the slots"
        conv_states, states = cache
        sequences = ops.Sequences(step.state_slots, step.query_start, step.context_lens, step.query_lens, step.kv_lens)
        projected = self.projections(x)
        gates = shape.conv_channels + shape.value_width
        mixed = ops.causal_conv(projected[:, : shape.conv_channels], self.conv, conv_states, sequences)
        read = ops.gated_delta_rule(
            mixed, projected[:, gates:], self.rate, self.bias, states, sequences, shape.key_heads
        )
        gate = projected[:, shape.conv_channels : gates]
        if keep is not None:
            read, gate = read[keep], gate[keep]
        return self.out(ops.gated_rms_norm(read, gate, self.norm, shape.norm_eps))

    @property
    def size_bytes(self) -> int:
        """Bytes of the weights."""
        return self.projections.size_bytes + self.out.size_bytes + self.conv.nbytes
