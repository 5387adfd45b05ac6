"""Qwen3.5, dense: Qwen3-VL's tower before a hybrid language model, linear attention with full attention in between.

Differences from Qwen3-VL: most layers keep a recurrent state in place of keys and values; the attention of the others
is gated and rotates a quarter of each head; norm weights are stored centred at zero; there is no DeepStack. Weights for
predicting several tokens at once (`mtp.*`) are left unread.

Next: worker/layers/gated_delta.py
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from worker.layers.gated_attention import GatedAttention
from worker.layers.gated_delta import GatedDelta
from worker.layers.norm import RMSNorm
from worker.layers.source import WeightSource
from worker.layers.state_cache import StateShape
from worker.models.checkpoint import Checkpoint
from worker.models.config import TextConfig
from worker.models.decoder import Decoder, Mixer
from worker.models.info import MarkerIds
from worker.models.qwen3_5_config import FULL, HybridTextConfig, parse_hybrid_text_config
from worker.models.qwen3_vl import Qwen3VL


class Qwen3_5(Qwen3VL):  # noqa: N801 - the family's own name
    """The model, with vision or text-only; see `Qwen3VL`."""

    default_markers: ClassVar = MarkerIds(image=248_056, video=248_057, vision_start=248_053, vision_end=248_054)

    @classmethod
    def parse_text(cls, config: Mapping[str, Any], tied: bool) -> HybridTextConfig:
        """Return the language model's part of config.json."""
        return parse_hybrid_text_config(config, tied)

    @classmethod
    def load_decoder(cls, checkpoint: Checkpoint, text: TextConfig) -> Decoder:
        """Return the language model; what predicts tokens ahead stays unread."""
        checkpoint.skip("mtp.")
        return super().load_decoder(checkpoint, text)

    @classmethod
    def load_norm(cls, source: WeightSource, text: TextConfig) -> RMSNorm:
        """Return a norm whose stored weight is centred at zero."""
        return RMSNorm.load(source, text.hidden_size, text.norm_eps, offset=1.0)

    @classmethod
    def load_mixer(cls, source: WeightSource, text: TextConfig, index: int) -> Mixer:
        """Return gated attention or linear attention, whichever config.json names for the layer."""
        assert isinstance(text, HybridTextConfig)
        if text.layer_types[index] == FULL:
            return GatedAttention.load(source.under("self_attn"), text.attention)
        return GatedDelta.load(source.under("linear_attn"), text.linear)

    @classmethod
    def layer_width(cls, text: TextConfig) -> int:
        """Return the numbers of a token that the widest layer holds at once; attention has gates besides."""
        assert isinstance(text, HybridTextConfig)
        gates = 2 * text.attention.num_heads * text.attention.head_dim
        return max(super().layer_width(text), text.attention.width + gates, text.linear.width)

    @classmethod
    def state_of(cls, text: TextConfig, dtype: torch.dtype) -> StateShape | None:
        """Return the state of the linear attention layers, if there are any."""
        assert isinstance(text, HybridTextConfig)
        linear = text.linear
        shape = StateShape(
            num_layers=text.num_linear_layers,
            conv_channels=linear.conv_channels,
            conv_width=linear.kernel - 1,
            num_heads=linear.value_heads,
            key_dim=linear.key_dim,
            value_dim=linear.value_dim,
            conv_dtype=dtype,
        )
        return shape if shape.num_layers else None
