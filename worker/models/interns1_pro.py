"""InternS1-Pro: Qwen3-VL's vision tower without DeepStack, a time series encoder, and a language model of experts.

Positions are one-dimensional, whatever stands in the prompt; each KV head turns them in its own way (FoPE).

Source: the released remote code, lmdeploy `interns1_pro.py` at 1263d5c.

Next: worker/models/interns1_pro_time_series.py
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from worker.layers.embedding import load_embedding_and_head
from worker.layers.fope import FourierTable, GroupedAttention
from worker.layers.mlp import SwiGluMlp
from worker.layers.moe import MoeMlp, MoeShape, grouped_softmax_topk
from worker.layers.norm import RMSNorm
from worker.layers.positions import mrope_positions
from worker.layers.source import WeightSource
from worker.models.base import ItemLayout, ModelInfo
from worker.models.checkpoint import Checkpoint
from worker.models.decoder import Decoder, DecoderShape, FeedForward, PreNormLayer
from worker.models.encoder import ItemEncoder
from worker.models.info import added_token_ids, is_tied, text_config_of, vision_config_of
from worker.models.interns1_pro_config import InternTextConfig, parse_intern_text, parse_series
from worker.models.interns1_pro_time_series import SeriesTower, TimeSeriesEncoder
from worker.models.multimodal_lm import MultimodalLM
from worker.models.qwen3_vl import describe, load_vision_encoder
from worker.models.qwen3_vl_config import parse_vision_config

_SERIES_TOKEN, _SERIES_TOKEN_ID = "<TS_CONTEXT>", 151685
_SERIES_WEIGHTS = "model.time_series"


class InternS1Pro(MultimodalLM):
    """The model; see `CausalLM`.

    Args:
        model_dir: checkpoint directory.
        config: its config.json.
        checkpoint: its weights.
        disable_vision_encoder: leave the vision weights unread; time series go on.

    Raises:
        CheckpointError: naming the file, key or field at fault.
    """

    def __init__(
        self,
        model_dir: Path,
        config: Mapping[str, Any],
        checkpoint: Checkpoint,
        *,
        disable_vision_encoder: bool = False,
    ) -> None:
        text = parse_intern_text(text_config_of(config), is_tied(config))
        decoder = load_decoder(checkpoint, text)
        encoders = _load_series_encoder(config, checkpoint)
        if disable_vision_encoder:
            checkpoint.skip("model.visual.")
        else:
            encoders = _load_vision_encoder(model_dir, config, checkpoint) + encoders
        info = _describe(model_dir, config, checkpoint, text)
        super().__init__(
            info, decoder, encoders, checkpoint.dtype, checkpoint.device, vision_disabled=disable_vision_encoder
        )

    @classmethod
    def load_encoders(
        cls, model_dir: Path, config: Mapping[str, Any], checkpoint: Checkpoint
    ) -> tuple[ItemEncoder, ...]:
        """Return the encoders alone: vision, and time series where the checkpoint has a `ts_config`."""
        return _load_vision_encoder(model_dir, config, checkpoint) + _load_series_encoder(config, checkpoint)

    def prompt_positions(self, prompt_len: int, items: Sequence[ItemLayout]) -> tuple[np.ndarray, int]:
        """Return the positions of a whole prompt, which only count tokens; see `CausalLM.prompt_positions`."""
        mrope_positions(prompt_len, items, self.info.spatial_merge_size)  # for its checks
        return np.tile(np.arange(prompt_len, dtype=np.int64), (3, 1)), prompt_len


def load_decoder(checkpoint: Checkpoint, text: InternTextConfig) -> Decoder:
    """Return the language model, from the names below `model.language_model`."""
    source = checkpoint.under("model.language_model")
    if text.tied:
        checkpoint.skip("lm_head.")
    layers = [_load_layer(source.under(f"layers.{index}"), text, index) for index in range(text.num_layers)]
    embed, head = load_embedding_and_head(checkpoint, text.vocab_size, text.hidden_size, text.tied)
    attention = text.attention
    dense = 3 * text.intermediate_size if text.dense_layers else 0
    shape = DecoderShape(
        hidden_size=text.hidden_size,
        vocab_size=text.vocab_size,
        num_heads=attention.num_heads,
        num_kv_heads=attention.num_kv_heads,
        head_dim=attention.head_dim,
        # of each expert that a token goes through: its input, gate and up, their product, its output
        inner_width=max(dense, text.experts_per_token * (3 * text.moe_intermediate_size + 2 * text.hidden_size)),
    )
    norm = RMSNorm.load(source.under("norm"), text.hidden_size, text.norm_eps)
    return Decoder(embed, layers, norm, head, FourierTable(source.under("rotary_emb"), text.positions), shape)


def _load_layer(source: WeightSource, text: InternTextConfig, index: int) -> PreNormLayer:
    return PreNormLayer(
        RMSNorm.load(source.under("input_layernorm"), text.hidden_size, text.norm_eps),
        GroupedAttention.load(source.under("self_attn"), text.attention),
        RMSNorm.load(source.under("post_attention_layernorm"), text.hidden_size, text.norm_eps),
        _load_mlp(source.under("mlp"), text, dense=index in text.dense_layers),
    )


def _load_mlp(source: WeightSource, text: InternTextConfig, *, dense: bool) -> FeedForward:
    if dense:
        return SwiGluMlp.load(source, text.hidden_size, text.intermediate_size)
    route = partial(grouped_softmax_topk, k=text.experts_per_token, num_groups=text.router_groups)
    return MoeMlp.load(source, MoeShape(text.hidden_size, text.moe_intermediate_size, text.num_experts), route)


def _load_vision_encoder(model_dir: Path, config: Mapping[str, Any], checkpoint: Checkpoint) -> tuple[ItemEncoder, ...]:
    section = vision_config_of(config)
    return () if section is None else (load_vision_encoder(model_dir, parse_vision_config(section), checkpoint),)


def _load_series_encoder(config: Mapping[str, Any], checkpoint: Checkpoint) -> tuple[ItemEncoder, ...]:
    section = config.get("ts_config")
    if not isinstance(section, Mapping):
        checkpoint.skip(f"{_SERIES_WEIGHTS}.")
        return ()
    hidden_size = text_config_of(config).get("hidden_size", 0)
    return (TimeSeriesEncoder(SeriesTower(checkpoint.under(_SERIES_WEIGHTS), parse_series(section, hidden_size))),)


def _describe(model_dir: Path, config: Mapping[str, Any], checkpoint: Checkpoint, text: InternTextConfig) -> ModelInfo:
    info = describe(model_dir, config, checkpoint, text)
    if not isinstance(config.get("ts_config"), Mapping):
        return info
    token_id = config.get("ts_token_id") or added_token_ids(model_dir).get(_SERIES_TOKEN, _SERIES_TOKEN_ID)
    return replace(info, time_series_token_id=token_id)
