"""Qwen3.5, dense: Qwen3-VL's tower before a hybrid language model, linear attention with full attention in between.

Differences from Qwen3-VL: most layers keep a recurrent state in place of keys and values; the attention of the others
is gated and rotates a quarter of each head; norm weights are stored centred at zero; there is no DeepStack. Weights for
predicting several tokens at once (`mtp.*`) are left unread.

Next: worker/layers/gated_delta.py
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from worker.layers.embedding import load_embedding_and_head
from worker.layers.gated_attention import GatedAttention
from worker.layers.gated_delta import GatedDelta
from worker.layers.norm import RMSNorm
from worker.layers.rotary import RotaryTable, mrope_axes
from worker.layers.source import WeightSource
from worker.layers.state_cache import StateShape
from worker.models.checkpoint import Checkpoint
from worker.models.decoder import Decoder, DecoderShape, PreNormLayer
from worker.models.info import vision_config_of
from worker.models.qwen3_5_config import FULL, HybridTextConfig, parse_hybrid_text_config
from worker.models.qwen3_vl import Qwen3VL
from worker.models.qwen3_vl_config import TextConfig

_MARKER_IDS = {  # of transformers' config class, for a checkpoint that does not write its own
    "image_token_id": 248056,
    "video_token_id": 248057,
    "vision_start_token_id": 248053,
    "vision_end_token_id": 248054,
}


class Qwen3_5(Qwen3VL):  # noqa: N801 - the family's own name
    """The model, with vision or text-only; see `Qwen3VL`."""

    def __init__(
        self,
        model_dir: Path,
        config: Mapping[str, Any],
        checkpoint: Checkpoint,
        *,
        disable_vision_encoder: bool = False,
    ) -> None:
        checkpoint.skip("mtp.")
        if vision_config_of(config) is None:
            checkpoint.skip("model.visual.")  # left over where a text-only config was put beside the whole weights
        super().__init__(
            model_dir, _MARKER_IDS | dict(config), checkpoint, disable_vision_encoder=disable_vision_encoder
        )

    @classmethod
    def parse_text(cls, config: Mapping[str, Any], tied: bool) -> HybridTextConfig:
        """Return the language model's part of config.json."""
        return parse_hybrid_text_config(config, tied)

    @classmethod
    def load_decoder(cls, checkpoint: Checkpoint, text: TextConfig) -> Decoder:
        """Return the language model."""
        assert isinstance(text, HybridTextConfig)
        source = checkpoint.under("model.language_model")
        if text.tied:
            checkpoint.skip("lm_head.")
        layers = [cls.load_layer(source.under(f"layers.{index}"), text, index) for index in range(text.num_layers)]
        norm = RMSNorm.load(source.under("norm"), text.hidden_size, text.norm_eps, offset=1.0)
        embed, head = load_embedding_and_head(checkpoint, text.vocab_size, text.hidden_size, text.tied)
        axes = mrope_axes("interleaved", text.mrope_sections, text.rotary_dim // 2)
        rotary = RotaryTable(text.rope_theta, text.rotary_dim, axes, checkpoint.device)
        attention, linear = text.attention, text.linear
        state = StateShape(
            text.num_linear_layers, linear.conv_channels, linear.kernel - 1, linear.value_heads, linear.key_dim,
            linear.value_dim, checkpoint.dtype,
        )  # fmt: skip
        shape = DecoderShape(
            text.hidden_size, text.vocab_size, attention.num_heads, attention.num_kv_heads, attention.head_dim,
            max(cls.inner_width(text), _mixer_width(text)), state if state.num_layers else None,
        )  # fmt: skip
        return Decoder(embed, layers, norm, head, rotary, shape)

    @classmethod
    def load_layer(cls, source: WeightSource, text: TextConfig, index: int) -> PreNormLayer:
        """Return one decoder layer, whose names stand below `source`."""
        assert isinstance(text, HybridTextConfig)
        full = text.layer_types[index] == FULL
        return PreNormLayer(
            RMSNorm.load(source.under("input_layernorm"), text.hidden_size, text.norm_eps, offset=1.0),
            GatedAttention.load(source.under("self_attn"), text.attention)
            if full
            else GatedDelta.load(source.under("linear_attn"), text.linear),
            RMSNorm.load(source.under("post_attention_layernorm"), text.hidden_size, text.norm_eps, offset=1.0),
            cls.load_mlp(source.under("mlp"), text, index),
            "attention" if full else "state",
        )


def _mixer_width(text: HybridTextConfig) -> int:
    """Return the numbers of a token that the widest mixer holds at once."""
    attention, linear = text.attention, text.linear
    full = (4 * attention.num_heads + 2 * attention.num_kv_heads) * attention.head_dim  # product, output, gates
    projected = linear.conv_channels + linear.value_width + 2 * linear.value_heads
    return max(full, projected + linear.conv_channels + 2 * linear.value_width)
