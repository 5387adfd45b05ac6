"""config.json of the Qwen3-VL family, in both spellings: transformers 4.57 and 5.x.

Next: worker/models/qwen3_vl.py
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from worker.layers.attention import AttentionShape
from worker.models.checkpoint import CheckpointError
from worker.models.config import TextConfig, VisionConfig, check_activation, need, rope_parameters

_DEFAULT_THETA = 500_000.0
_DEFAULT_SECTIONS = (24, 20, 20)


@dataclass(frozen=True)
class QwenVisionConfig(VisionConfig):
    """The vision tower.

    Args:
        intermediate_size: width of the blocks' feed-forward layers.
        num_position_embeddings: entries of the learned table, a square number.
        deepstack_layers: blocks whose output is merged for the language model as well.
    """

    intermediate_size: int
    num_position_embeddings: int
    deepstack_layers: tuple[int, ...]

    @property
    def num_deepstack_layers(self) -> int:
        """Side features of each token."""
        return len(self.deepstack_layers)


def parse_text_config(config: Mapping[str, Any], tied: bool) -> TextConfig:
    """Return the language model's part of config.json.

    Args:
        config: its `text_config`.
        tied: the outer `tie_word_embeddings`.

    Raises:
        CheckpointError: a field is missing or has a value that is not served.
    """
    check_activation(config, "silu")
    theta, rope = rope_parameters(config, _DEFAULT_THETA)
    if not rope.get("mrope_interleaved", True):
        raise CheckpointError("config.json: this family interleaves mRoPE sections; mrope_interleaved is false")
    hidden_size, num_heads = need(config, "hidden_size"), need(config, "num_attention_heads")
    head_dim = config.get("head_dim") or hidden_size // num_heads
    norm_eps = config.get("rms_norm_eps", 1e-6)
    return TextConfig(
        attention=AttentionShape(
            hidden_size=hidden_size,
            num_heads=num_heads,
            num_kv_heads=config.get("num_key_value_heads") or num_heads,
            head_dim=head_dim,
            norm_eps=norm_eps,
            bias=bool(config.get("attention_bias", False)),
        ),
        num_layers=need(config, "num_hidden_layers"),
        intermediate_size=need(config, "intermediate_size"),
        vocab_size=need(config, "vocab_size"),
        max_position_embeddings=config.get("max_position_embeddings", 128_000),
        norm_eps=norm_eps,
        rope_theta=theta,
        rotary_dim=head_dim,
        mrope_sections=tuple(rope.get("mrope_section") or _DEFAULT_SECTIONS),
        tied=tied,
    )


def parse_vision_config(config: Mapping[str, Any]) -> QwenVisionConfig:
    """Return the vision tower's part of config.json.

    Args:
        config: its `vision_config`.

    Raises:
        CheckpointError: a field is missing or has a value that is not served.
    """
    check_activation(config, "gelu_pytorch_tanh", "vision_config")
    positions = config.get("num_position_embeddings", 2304)
    if round(positions**0.5) ** 2 != positions:
        raise CheckpointError(f"config.json: vision_config.num_position_embeddings {positions} is no square number")
    rope = config.get("rope_parameters") or {}
    return QwenVisionConfig(
        depth=need(config, "depth", "vision_config"),
        hidden_size=need(config, "hidden_size", "vision_config"),
        intermediate_size=need(config, "intermediate_size", "vision_config"),
        num_heads=need(config, "num_heads", "vision_config"),
        out_hidden_size=need(config, "out_hidden_size", "vision_config"),
        in_channels=config.get("in_channels", 3),
        patch_size=config.get("patch_size", 16),
        temporal_patch_size=config.get("temporal_patch_size", 2),
        merge_size=config.get("spatial_merge_size", 2),
        num_position_embeddings=positions,
        deepstack_layers=tuple(config.get("deepstack_visual_indexes") or ()),
        rope_theta=float(rope.get("rope_theta", 10_000.0)),
    )
