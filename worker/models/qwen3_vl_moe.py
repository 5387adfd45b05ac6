"""Qwen3-VL-MoE: Qwen3-VL whose feed-forward layers are mixtures of experts, all of them or every n-th.

Next: worker/layers/moe.py
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from worker.layers.moe import MoeMlp, MoeShape, softmax_topk
from worker.layers.source import WeightSource
from worker.models.config import TextConfig, expert_sizes
from worker.models.decoder import FeedForward
from worker.models.qwen3_vl import Qwen3VL
from worker.models.qwen3_vl_config import parse_text_config


@dataclass(frozen=True)
class MoeTextConfig(TextConfig):
    """The language model.

    Args:
        moe: sizes of a mixture-of-experts layer.
        experts_per_token: routed experts of a token.
        sparse_step: every `sparse_step`-th layer is a mixture, the first of them layer `sparse_step - 1`.
        dense_layers: layers that are none all the same, `mlp_only_layers`.
    """

    moe: MoeShape
    experts_per_token: int
    sparse_step: int
    dense_layers: tuple[int, ...]

    def is_sparse(self, index: int) -> bool:
        """Tell whether decoder layer `index` is a mixture of experts."""
        return index not in self.dense_layers and (index + 1) % self.sparse_step == 0


def parse_moe_text_config(config: Mapping[str, Any], tied: bool) -> MoeTextConfig:
    """Return the language model's part of config.json; see `parse_text_config`.

    Raises:
        CheckpointError: a field is missing or has a value that is not served.
    """
    text = parse_text_config(config, tied)
    num_experts, k, inner_size = expert_sizes(config)
    return MoeTextConfig(
        **vars(text),
        moe=MoeShape(text.hidden_size, inner_size, num_experts),
        experts_per_token=k,
        sparse_step=config.get("decoder_sparse_step") or 1,
        dense_layers=tuple(config.get("mlp_only_layers") or ()),
    )


class Qwen3VLMoe(Qwen3VL):
    """The model; see `Qwen3VL`. Vision tower and positions are the dense model's."""

    @classmethod
    def parse_text(cls, config: Mapping[str, Any], tied: bool) -> MoeTextConfig:
        """Return the language model's part of config.json."""
        return parse_moe_text_config(config, tied)

    @classmethod
    def load_mlp(cls, source: WeightSource, text: TextConfig, index: int) -> FeedForward:
        """Return the feed-forward layer of decoder layer `index`: a mixture of experts, or dense."""
        assert isinstance(text, MoeTextConfig)
        if not text.is_sparse(index):
            return super().load_mlp(source, text, index)
        return MoeMlp.load(source, text.moe, partial(softmax_topk, k=text.experts_per_token))

    @classmethod
    def layer_width(cls, text: TextConfig) -> int:
        """Return the numbers of a token that the widest layer holds at once."""
        assert isinstance(text, MoeTextConfig)
        return max(super().layer_width(text), text.moe.workspace(text.experts_per_token))
