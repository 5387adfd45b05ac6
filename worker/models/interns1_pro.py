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

from worker.layers.fope import FourierTable
from worker.layers.moe import MoeMlp, MoeShape, grouped_softmax_topk
from worker.layers.positions import mrope_segments, text_segments
from worker.layers.source import WeightSource
from worker.models.base import ItemLayout
from worker.models.checkpoint import Checkpoint
from worker.models.config import TextConfig
from worker.models.decoder import FeedForward, Rotary
from worker.models.encoder import ItemEncoder
from worker.models.info import MarkerIds, added_token_ids, text_config_of
from worker.models.interns1_pro_config import InternTextConfig, parse_intern_text, parse_series
from worker.models.interns1_pro_time_series import SeriesTower, TimeSeriesEncoder
from worker.models.qwen3_vl import Qwen3VL

_SERIES_TOKEN, _SERIES_TOKEN_ID = "<TS_CONTEXT>", 151685
_SERIES_WEIGHTS = "model.time_series"


class InternS1Pro(Qwen3VL):
    """The model, with vision, time series, both or neither; see `Qwen3VL`."""

    @classmethod
    def parse_text(cls, config: Mapping[str, Any], tied: bool) -> InternTextConfig:
        """Return the language model's part of config.json."""
        return parse_intern_text(config, tied)

    @classmethod
    def load_encoders(
        cls, model_dir: Path, config: Mapping[str, Any], checkpoint: Checkpoint, *, vision: bool = True
    ) -> tuple[ItemEncoder, ...]:
        """Return the encoders alone: vision, and time series where the checkpoint has a `ts_config`."""
        encoders = super().load_encoders(model_dir, config, checkpoint, vision=vision)
        section = _series_config_of(config)
        if section is None:
            checkpoint.skip(f"{_SERIES_WEIGHTS}.")
            return encoders
        series = parse_series(section, text_config_of(config).get("hidden_size", 0))
        return (*encoders, TimeSeriesEncoder(SeriesTower(checkpoint.under(_SERIES_WEIGHTS), series)))

    @classmethod
    def load_rotary(cls, source: WeightSource, text: TextConfig) -> Rotary:
        """Return the tables of FoPE."""
        assert isinstance(text, InternTextConfig)
        return FourierTable(source.under("rotary_emb"), text.positions)

    @classmethod
    def load_mlp(cls, source: WeightSource, text: TextConfig, index: int) -> FeedForward:
        """Return the feed-forward layer of decoder layer `index`: a mixture of experts, or dense."""
        assert isinstance(text, InternTextConfig)
        if index in text.dense_layers:
            return super().load_mlp(source, text, index)
        route = partial(grouped_softmax_topk, k=text.experts_per_token, num_groups=text.router_groups)
        return MoeMlp.load(source, _moe_shape(text), route)

    @classmethod
    def layer_width(cls, text: TextConfig) -> int:
        """Return the numbers of a token that the widest layer holds at once."""
        assert isinstance(text, InternTextConfig)
        return max(super().layer_width(text), _moe_shape(text).workspace(text.experts_per_token))

    @classmethod
    def marker_ids(cls, model_dir: Path, config: Mapping[str, Any]) -> MarkerIds:
        """Return the ids of config.json; that of series may stand in the tokenizer alone."""
        markers = super().marker_ids(model_dir, config)
        if _series_config_of(config) is None:
            return markers
        token_id = config.get("ts_token_id") or added_token_ids(model_dir).get(_SERIES_TOKEN, _SERIES_TOKEN_ID)
        return replace(markers, time_series=token_id)

    def prompt_positions(self, prompt_len: int, items: Sequence[ItemLayout]) -> tuple[np.ndarray, int]:
        """Return where a prompt's tokens stand, which only count; see `CausalLM.prompt_positions`."""
        mrope_segments(prompt_len, items, self.info.spatial_merge_size)  # for its checks
        return text_segments(prompt_len), prompt_len


def _series_config_of(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    section = config.get("ts_config")
    return section if isinstance(section, Mapping) else None


def _moe_shape(text: InternTextConfig) -> MoeShape:
    return MoeShape(text.hidden_size, text.moe_intermediate_size, text.num_experts)
