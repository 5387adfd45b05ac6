"""Qwen3.5-MoE: Qwen3.5 whose feed-forward layers are mixtures of experts, beside a gated expert that all tokens share.

Next: worker/layers/moe.py
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from worker.layers.moe import MoeMlp, MoeShape, softmax_topk
from worker.layers.source import WeightSource
from worker.models.checkpoint import CheckpointError
from worker.models.config import TextConfig, expert_sizes, need
from worker.models.decoder import FeedForward
from worker.models.qwen3_5 import Qwen3_5
from worker.models.qwen3_5_config import HybridTextConfig, parse_hybrid_text_config


@dataclass(frozen=True)
class HybridMoeTextConfig(HybridTextConfig):
    """The language model.

    Args:
        moe: sizes of a mixture-of-experts layer.
        experts_per_token: routed experts of a token.
    """

    moe: MoeShape
    experts_per_token: int


def parse_hybrid_moe_text_config(config: Mapping[str, Any], tied: bool) -> HybridMoeTextConfig:
    """Return the language model's part of config.json; see `parse_hybrid_text_config`.

    Raises:
        CheckpointError: a field is missing or has a value that is not served.
    """
    num_experts, k, inner_size = expert_sizes(config)
    shared_size = need(config, "shared_expert_intermediate_size")
    if shared_size < 1:
        raise CheckpointError(f"config.json: text_config.shared_expert_intermediate_size {shared_size} is not served")
    text = parse_hybrid_text_config({"intermediate_size": 0, **config}, tied)  # no layer is dense
    moe = MoeShape(text.hidden_size, inner_size, num_experts, shared_inner_size=shared_size, shared_gated=True)
    return HybridMoeTextConfig(**vars(text), moe=moe, experts_per_token=k)


class Qwen3_5Moe(Qwen3_5):  # noqa: N801 - the family's own name
    """The model, with vision or text-only; see `Qwen3_5`."""

    @classmethod
    def parse_text(cls, config: Mapping[str, Any], tied: bool) -> HybridMoeTextConfig:
        """Return the language model's part of config.json."""
        return parse_hybrid_moe_text_config(config, tied)

    @classmethod
    def load_mlp(cls, source: WeightSource, text: TextConfig, index: int) -> FeedForward:
        """Return the feed-forward layer of a decoder layer: all are mixtures of experts."""
        assert isinstance(text, HybridMoeTextConfig)
        return MoeMlp.load(source, text.moe, partial(softmax_topk, k=text.experts_per_token))

    @classmethod
    def layer_width(cls, text: TextConfig) -> int:
        """Return the numbers of a token that the widest layer holds at once."""
        assert isinstance(text, HybridMoeTextConfig)
        return max(super().layer_width(text), text.moe.workspace(text.experts_per_token))
