"""config.json of the Qwen3-VL family, in both spellings: transformers 4.57 and 5.x.

Next: worker/models/qwen3_vl.py
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from worker.layers.attention import AttentionShape
from worker.models.checkpoint import CheckpointError

_DEFAULT_THETA = 500_000.0
_DEFAULT_SECTIONS = (24, 20, 20)


@dataclass(frozen=True)
class TextConfig:
    """The language model.

    Args:
        attention: sizes of its attention layers.
        num_layers: decoder layers.
        intermediate_size: width of the feed-forward layers.
        vocab_size: rows of embedding and head.
        max_position_embeddings: longest context.
        norm_eps: of the RMS norms.
        rope_theta: base of the rotary frequencies.
        mrope_sections: frequencies of (time, height, width).
        tied: whether head and embedding are one matrix.
    """

    attention: AttentionShape
    num_layers: int
    intermediate_size: int
    vocab_size: int
    max_position_embeddings: int
    norm_eps: float
    rope_theta: float
    mrope_sections: tuple[int, ...]
    tied: bool

    @property
    def hidden_size(self) -> int:
        """Width of the stream."""
        return self.attention.hidden_size


@dataclass(frozen=True)
class VisionConfig:
    """The vision tower.

    Args:
        depth: blocks.
        hidden_size: width of the stream.
        intermediate_size: width of the feed-forward layers.
        num_heads: attention heads.
        out_hidden_size: width of the language model.
        in_channels: colour channels.
        patch_size: pixels of a patch's side.
        temporal_patch_size: frames of a patch.
        merge_size: patches merged along each side.
        num_position_embeddings: entries of the learned table, a square number.
        deepstack_layers: blocks whose output is merged for the language model as well.
        rope_theta: base of the rotary frequencies.
    """

    depth: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    out_hidden_size: int
    in_channels: int
    patch_size: int
    temporal_patch_size: int
    merge_size: int
    num_position_embeddings: int
    deepstack_layers: tuple[int, ...]
    rope_theta: float

    @property
    def head_dim(self) -> int:
        """Elements of a head."""
        return self.hidden_size // self.num_heads


def _need(config: Mapping[str, Any], key: str, where: str) -> Any:
    if config.get(key) is None:
        raise CheckpointError(f"config.json: {where}.{key} is missing")
    return config[key]


def rope_parameters(config: Mapping[str, Any]) -> tuple[float, dict[str, Any]]:
    """Return (theta, further parameters) of a text config in either spelling.

    Raises:
        CheckpointError: a rope type that scales the frequencies.
    """
    parameters = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    rope_type = parameters.get("rope_type") or parameters.get("type") or "default"
    if rope_type not in ("default", "mrope"):
        raise CheckpointError(f"config.json: rope type {rope_type!r} is not served")
    theta = parameters.get("rope_theta") or config.get("rope_theta") or _DEFAULT_THETA
    return float(theta), parameters


def parse_text_config(config: Mapping[str, Any], tied: bool) -> TextConfig:
    """Return the language model's part of config.json.

    Args:
        config: its `text_config`.
        tied: the outer `tie_word_embeddings`.

    Raises:
        CheckpointError: a field is missing or has a value that is not served.
    """
    if config.get("hidden_act", "silu") != "silu":
        raise CheckpointError(f"config.json: text_config.hidden_act {config['hidden_act']!r} is not served")
    theta, rope = rope_parameters(config)
    if not rope.get("mrope_interleaved", True):
        raise CheckpointError("config.json: this family interleaves mRoPE sections; mrope_interleaved is false")
    hidden_size, num_heads = (
        _need(config, "hidden_size", "text_config"),
        _need(config, "num_attention_heads", "text_config"),
    )
    norm_eps = config.get("rms_norm_eps", 1e-6)
    return TextConfig(
        attention=AttentionShape(
            hidden_size=hidden_size,
            num_heads=num_heads,
            num_kv_heads=config.get("num_key_value_heads") or num_heads,
            head_dim=config.get("head_dim") or hidden_size // num_heads,
            norm_eps=norm_eps,
            bias=bool(config.get("attention_bias", False)),
        ),
        num_layers=_need(config, "num_hidden_layers", "text_config"),
        intermediate_size=_need(config, "intermediate_size", "text_config"),
        vocab_size=_need(config, "vocab_size", "text_config"),
        max_position_embeddings=config.get("max_position_embeddings", 128_000),
        norm_eps=norm_eps,
        rope_theta=theta,
        mrope_sections=tuple(rope.get("mrope_section") or _DEFAULT_SECTIONS),
        tied=tied,
    )


def parse_vision_config(config: Mapping[str, Any]) -> VisionConfig:
    """Return the vision tower's part of config.json.

    Args:
        config: its `vision_config`.

    Raises:
        CheckpointError: a field is missing or has a value that is not served.
    """
    if config.get("hidden_act", "gelu_pytorch_tanh") != "gelu_pytorch_tanh":
        raise CheckpointError(f"config.json: vision_config.hidden_act {config['hidden_act']!r} is not served")
    positions = config.get("num_position_embeddings", 2304)
    if round(positions**0.5) ** 2 != positions:
        raise CheckpointError(f"config.json: vision_config.num_position_embeddings {positions} is no square number")
    rope = config.get("rope_parameters") or {}
    return VisionConfig(
        depth=_need(config, "depth", "vision_config"),
        hidden_size=_need(config, "hidden_size", "vision_config"),
        intermediate_size=_need(config, "intermediate_size", "vision_config"),
        num_heads=_need(config, "num_heads", "vision_config"),
        out_hidden_size=_need(config, "out_hidden_size", "vision_config"),
        in_channels=config.get("in_channels", 3),
        patch_size=config.get("patch_size", 16),
        temporal_patch_size=config.get("temporal_patch_size", 2),
        merge_size=config.get("spatial_merge_size", 2),
        num_position_embeddings=positions,
        deepstack_layers=tuple(config.get("deepstack_visual_indexes") or ()),
        rope_theta=float(rope.get("rope_theta", 10_000.0)),
    )
