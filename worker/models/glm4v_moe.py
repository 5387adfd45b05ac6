"""GLM-4.5V: GLM-4.1V's tower before a mixture-of-experts language model with two norms a layer.

Its heads turn half-split pairs, where GLM-4.1V's turn neighbours. A token's experts are chosen by sigmoid and a learned
correction, within groups; shared experts take every token.

Next: worker/layers/moe.py
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

import torch

from worker.layers.moe import MoeMlp, MoeShape, sigmoid_group_topk
from worker.layers.source import WeightSource
from worker.models.checkpoint import Checkpoint
from worker.models.config import TextConfig
from worker.models.decoder import Decoder, DecoderLayer, FeedForward
from worker.models.glm4v import Glm4v
from worker.models.glm4v_config import GlmTextConfig, MoeConfig, parse_moe_config


class Glm4vMoe(Glm4v):
    """The model; see `Glm4v`."""

    default_image_token_id: ClassVar[int] = 151_363

    @classmethod
    def parse_text(cls, config: Mapping[str, Any], tied: bool) -> GlmTextConfig:
        """Return the language model's part of config.json."""
        return parse_moe_config(config, tied)

    @classmethod
    def load_decoder(cls, checkpoint: Checkpoint, text: TextConfig) -> Decoder:
        """Return the language model; layers that predict tokens ahead stay unread."""
        for index in range(text.num_layers, text.num_layers + _moe(text).num_prediction_layers):
            checkpoint.skip(f"model.language_model.layers.{index}.")
        return super().load_decoder(checkpoint, text)

    @classmethod
    def load_layer(cls, source: WeightSource, text: TextConfig, index: int) -> DecoderLayer:
        """Return decoder layer `index`, of two norms: not GLM-4.1V's, but the one that most families have."""
        return super(Glm4v, cls).load_layer(source, text, index)

    @classmethod
    def load_mlp(cls, source: WeightSource, text: TextConfig, index: int) -> FeedForward:
        """Return the feed-forward layer of decoder layer `index`: dense where it comes before the first mixture."""
        moe = _moe(text)
        if index < moe.first_layer:
            return super().load_mlp(source, text, index)
        route = partial(
            sigmoid_group_topk,
            bias=source.under("gate").tensor("e_score_correction_bias", (moe.num_experts,), torch.float32),
            k=moe.experts_per_token,
            num_groups=moe.num_groups,
            top_groups=moe.top_groups,
            normalise=moe.normalise,
            scale=moe.scale,
        )
        return MoeMlp.load(source, _moe_shape(text), route)

    @classmethod
    def layer_width(cls, text: TextConfig) -> int:
        """Return the numbers of a token that the widest layer holds at once."""
        return max(super().layer_width(text), _moe_shape(text).workspace(_moe(text).experts_per_token))


def _moe_shape(text: TextConfig) -> MoeShape:
    moe = _moe(text)
    return MoeShape(
        hidden_size=text.hidden_size,
        inner_size=moe.inner_size,
        num_experts=moe.num_experts,
        shared_inner_size=moe.num_shared_experts * moe.inner_size,
        shared_name="shared_experts",
        router_fp32=True,
    )


def _moe(text: TextConfig) -> MoeConfig:
    assert isinstance(text, GlmTextConfig) and text.moe is not None, "this family's text config always has its mixtures"
    return text.moe
