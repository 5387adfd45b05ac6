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
from worker.models.decoder import FeedForward
from worker.models.qwen3_5 import Qwen3_5
from worker.models.qwen3_5_config import HybridTextConfig, parse_hybrid_text_config
from worker.models.qwen3_vl_config import TextConfig


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
    sizes: dict[str, int] = {}
    for key in ("num_experts", "num_experts_per_tok", "moe_intermediate_size", "shared_expert_intermediate_size"):
        if not config.get(key):
            raise CheckpointError(f"config.json: text_config.{key} is missing")
        sizes[key] = int(config[key])
    if sizes["num_experts_per_tok"] > sizes["num_experts"]:
        raise CheckpointError(
            f"config.json: text_config.num_experts_per_tok is {sizes['num_experts_per_tok']}, but there are "
            f"{sizes['num_experts']}"
        )
    text = parse_hybrid_text_config({"intermediate_size": 0, **config}, tied)  # no layer is dense
    moe = MoeShape(
        text.hidden_size, sizes["moe_intermediate_size"], sizes["num_experts"],
        shared_inner_size=sizes["shared_expert_intermediate_size"], shared_gated=True,
    )  # fmt: skip
    return HybridMoeTextConfig(**vars(text), moe=moe, experts_per_token=sizes["num_experts_per_tok"])


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
    def inner_width(cls, text: TextConfig) -> int:
        """Return the numbers of a token that a feed-forward layer holds at once."""
        assert isinstance(text, HybridMoeTextConfig)
        return text.moe.workspace(text.experts_per_token)
