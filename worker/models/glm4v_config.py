"""config.json of the GLM-V families, in both spellings: transformers 4.57 and 5.x.

Next: worker/models/glm4v.py
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from worker.layers.attention import AttentionShape
from worker.models.checkpoint import CheckpointError
from worker.models.config import TextConfig, VisionConfig, check_activation, need, rope_parameters

_DEFAULT_THETA = 10_000.0
_DEFAULT_SECTIONS = (8, 12, 12)


@dataclass(frozen=True)
class MoeConfig:
    """The feed-forward layers that are mixtures of experts.

    Args:
        first_layer: layers before it are dense.
        inner_size: width inside an expert.
        num_experts: routed experts.
        experts_per_token: routed experts of a token.
        num_shared_experts: experts that every token passes, side by side as one.
        num_groups: groups that the routed experts are divided into.
        top_groups: groups that a token may choose from.
        normalise: whether a token's weights are scaled to sum to 1.
        scale: of a token's weights.
        num_prediction_layers: layers behind the last, for speculation; they are left unread.
    """

    first_layer: int
    inner_size: int
    num_experts: int
    experts_per_token: int
    num_shared_experts: int
    num_groups: int
    top_groups: int
    normalise: bool
    scale: float
    num_prediction_layers: int


@dataclass(frozen=True)
class GlmTextConfig(TextConfig):
    """The language model; its mRoPE sections are contiguous bands.

    Args:
        moe: the mixtures of experts, None in a dense model.
    """

    moe: MoeConfig | None = None


@dataclass(frozen=True)
class GlmVisionConfig(VisionConfig):
    """The vision tower; `out_hidden_size` is the width inside its blocks' feed-forward layers as well.

    Args:
        intermediate_size: width inside the merger's feed-forward layer.
        table_side: entries of the learned table along each side.
        norm_eps: of the RMS norms.
        qkv_bias: whether queries, keys and values have biases.
    """

    intermediate_size: int
    table_side: int
    norm_eps: float
    qkv_bias: bool


def parse_dense_config(config: Mapping[str, Any], tied: bool) -> GlmTextConfig:
    """Return the language model of GLM-4.1V: biases of queries, keys and values always, head width by division.

    Args:
        config: the `text_config`, or all of a text-only config.json.
        tied: whether head and embedding are one matrix.

    Raises:
        CheckpointError: a field is missing or has a value that is not served.
    """
    head_dim = need(config, "hidden_size") // need(config, "num_attention_heads")
    return _parse_text(config, tied, head_dim, qkv_bias=True, rotary_factor=1.0, moe=None)


def parse_moe_config(config: Mapping[str, Any], tied: bool) -> GlmTextConfig:
    """Return the language model of GLM-4.5V; arguments and errors as for `parse_dense_config`."""
    head_dim = config.get("head_dim") or need(config, "hidden_size") // need(config, "num_attention_heads")
    moe = MoeConfig(
        first_layer=config.get("first_k_dense_replace", 1),
        inner_size=need(config, "moe_intermediate_size"),
        num_experts=need(config, "n_routed_experts"),
        experts_per_token=need(config, "num_experts_per_tok"),
        num_shared_experts=config.get("n_shared_experts", 1) or 0,
        num_groups=config.get("n_group") or 1,
        top_groups=config.get("topk_group") or 1,
        normalise=bool(config.get("norm_topk_prob", True)),
        scale=float(config.get("routed_scaling_factor", 1.0)),
        num_prediction_layers=config.get("num_nextn_predict_layers", 1) or 0,
    )
    if moe.num_experts % moe.num_groups or moe.top_groups > moe.num_groups:
        raise CheckpointError(
            f"config.json: {moe.num_experts} experts do not divide into n_group {moe.num_groups}, "
            f"topk_group {moe.top_groups}"
        )
    eligible = moe.num_experts // moe.num_groups * moe.top_groups
    if moe.experts_per_token > eligible:
        raise CheckpointError(
            f"config.json: text_config.num_experts_per_tok is {moe.experts_per_token}, but a token may choose from "
            f"{eligible} experts"
        )
    qkv_bias = bool(config.get("attention_bias", True))
    return _parse_text(config, tied, head_dim, qkv_bias=qkv_bias, rotary_factor=0.5, moe=moe)


def _parse_text(
    config: Mapping[str, Any], tied: bool, head_dim: int, *, qkv_bias: bool, rotary_factor: float, moe: MoeConfig | None
) -> GlmTextConfig:
    """Return a language model; `rotary_factor` is the share of a head that turns where the file does not say."""
    check_activation(config, "silu")
    theta, rope = rope_parameters(config, _DEFAULT_THETA)
    factor = rope.get("partial_rotary_factor") or config.get("partial_rotary_factor") or rotary_factor
    rotary_dim = int(head_dim * factor)
    sections = tuple(rope.get("mrope_section") or _DEFAULT_SECTIONS)
    if len(sections) != 3 or 2 * sum(sections) != rotary_dim:
        raise CheckpointError(
            f"config.json: mrope_section {list(sections)} does not add up to {rotary_dim // 2}, half of the "
            f"{rotary_dim} elements of a head that turn"
        )
    num_heads, norm_eps = need(config, "num_attention_heads"), config.get("rms_norm_eps", 1e-5)
    attention = AttentionShape(
        hidden_size=need(config, "hidden_size"),
        num_heads=num_heads,
        num_kv_heads=config.get("num_key_value_heads") or num_heads,
        head_dim=head_dim,
        norm_eps=norm_eps,
        bias=qkv_bias,
        out_bias=False,
        head_norms=False,
    )
    return GlmTextConfig(
        attention=attention,
        num_layers=need(config, "num_hidden_layers"),
        intermediate_size=need(config, "intermediate_size"),
        vocab_size=need(config, "vocab_size"),
        max_position_embeddings=config.get("max_position_embeddings", 32_768 if moe is None else 65_536),
        norm_eps=norm_eps,
        rope_theta=theta,
        rotary_dim=rotary_dim,
        mrope_sections=sections,
        tied=tied,
        moe=moe,
    )


def parse_vision_config(config: Mapping[str, Any]) -> GlmVisionConfig:
    """Return the vision tower's part of config.json; what it leaves out is as in transformers' class.

    Args:
        config: its `vision_config`.

    Raises:
        CheckpointError: a value that is not served.
    """
    check_activation(config, "silu", "vision_config")
    patch_size = _one(config, "patch_size", 14)
    rope = config.get("rope_parameters") or {}
    return GlmVisionConfig(
        depth=config.get("depth", 24),
        hidden_size=config.get("hidden_size", 1536),
        num_heads=config.get("num_heads", 12),
        out_hidden_size=config.get("out_hidden_size", 4096),
        intermediate_size=config.get("intermediate_size", 13_696),
        in_channels=config.get("in_channels", 3),
        patch_size=patch_size,
        temporal_patch_size=_one(config, "temporal_patch_size", 2),
        merge_size=config.get("spatial_merge_size", 2),
        table_side=_one(config, "image_size", 336) // patch_size,
        norm_eps=config.get("rms_norm_eps", 1e-5),
        qkv_bias=bool(config.get("attention_bias", False)),
        rope_theta=float(rope.get("rope_theta") or config.get("rope_theta") or _DEFAULT_THETA),
    )


def _one(config: Mapping[str, Any], key: str, default: int) -> int:
    """Return a size that may be written as one number or as one for each side."""
    value = config.get(key, default)
    sides = set(value) if isinstance(value, list) else {value}
    if len(sides) != 1:
        raise CheckpointError(f"config.json: vision_config.{key} {value} is not served: sides of different length")
    return int(sides.pop())
