"""config.json of the GLM-V families, in both spellings: transformers 4.57 and 5.x.

Next: worker/models/glm4v.py
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from worker.layers.attention import AttentionShape
from worker.models.checkpoint import CheckpointError

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
class TextConfig:
    """The language model.

    Args:
        attention: sizes of its attention layers.
        num_layers: decoder layers.
        intermediate_size: width of the dense feed-forward layers.
        vocab_size: rows of embedding and head.
        max_position_embeddings: longest context.
        norm_eps: of the RMS norms.
        rope_theta: base of the rotary frequencies.
        rotary_dim: elements of a head that turn.
        mrope_sections: frequencies of (time, height, width), in contiguous bands.
        tied: whether head and embedding are one matrix.
        moe: the mixtures of experts, None in a dense model.
    """

    attention: AttentionShape
    num_layers: int
    intermediate_size: int
    vocab_size: int
    max_position_embeddings: int
    norm_eps: float
    rope_theta: float
    rotary_dim: int
    mrope_sections: tuple[int, ...]
    tied: bool
    moe: MoeConfig | None = None

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
        num_heads: attention heads.
        out_hidden_size: width of the language model, and inside the blocks' feed-forward layers.
        intermediate_size: width inside the merger's feed-forward layer.
        in_channels: colour channels.
        patch_size: pixels of a patch's side.
        temporal_patch_size: frames of a patch.
        merge_size: patches merged along each side.
        table_side: entries of the learned table along each side.
        norm_eps: of the RMS norms.
        qkv_bias: whether queries, keys and values have biases.
        rope_theta: base of the rotary frequencies.
    """

    depth: int
    hidden_size: int
    num_heads: int
    out_hidden_size: int
    intermediate_size: int
    in_channels: int
    patch_size: int
    temporal_patch_size: int
    merge_size: int
    table_side: int
    norm_eps: float
    qkv_bias: bool
    rope_theta: float

    @property
    def head_dim(self) -> int:
        """Elements of a head."""
        return self.hidden_size // self.num_heads


def parse_dense_config(config: Mapping[str, Any], tied: bool) -> TextConfig:
    """Return the language model of GLM-4.1V: biases of queries, keys and values always, head width by division.

    Args:
        config: the `text_config`, or all of a text-only config.json.
        tied: whether head and embedding are one matrix.

    Raises:
        CheckpointError: a field is missing or has a value that is not served.
    """
    head_dim = _need(config, "hidden_size") // _need(config, "num_attention_heads")
    return _parse_text(config, tied, head_dim, qkv_bias=True, rotary_factor=1.0, moe=None)


def parse_moe_config(config: Mapping[str, Any], tied: bool) -> TextConfig:
    """Return the language model of GLM-4.5V; arguments and errors as for `parse_dense_config`."""
    head_dim = config.get("head_dim") or _need(config, "hidden_size") // _need(config, "num_attention_heads")
    moe = MoeConfig(
        first_layer=config.get("first_k_dense_replace", 1),
        inner_size=_need(config, "moe_intermediate_size"),
        num_experts=_need(config, "n_routed_experts"),
        experts_per_token=_need(config, "num_experts_per_tok"),
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
) -> TextConfig:
    """Return a language model; `rotary_factor` is the share of a head that turns where the file does not say."""
    if config.get("hidden_act", "silu") != "silu":
        raise CheckpointError(f"config.json: text_config.hidden_act {config['hidden_act']!r} is not served")
    theta, rope = rope_parameters(config)
    factor = rope.get("partial_rotary_factor") or config.get("partial_rotary_factor") or rotary_factor
    rotary_dim = int(head_dim * factor)
    sections = tuple(rope.get("mrope_section") or _DEFAULT_SECTIONS)
    if len(sections) != 3 or 2 * sum(sections) != rotary_dim:
        raise CheckpointError(
            f"config.json: mrope_section {list(sections)} does not add up to {rotary_dim // 2}, half of the "
            f"{rotary_dim} elements of a head that turn"
        )
    num_heads, norm_eps = _need(config, "num_attention_heads"), config.get("rms_norm_eps", 1e-5)
    attention = AttentionShape(
        hidden_size=_need(config, "hidden_size"),
        num_heads=num_heads,
        num_kv_heads=config.get("num_key_value_heads") or num_heads,
        head_dim=head_dim,
        norm_eps=norm_eps,
        bias=qkv_bias,
        out_bias=False,
        head_norms=False,
    )
    return TextConfig(
        attention=attention,
        num_layers=_need(config, "num_hidden_layers"),
        intermediate_size=_need(config, "intermediate_size"),
        vocab_size=_need(config, "vocab_size"),
        max_position_embeddings=config.get("max_position_embeddings", 32_768 if moe is None else 65_536),
        norm_eps=norm_eps,
        rope_theta=theta,
        rotary_dim=rotary_dim,
        mrope_sections=sections,
        tied=tied,
        moe=moe,
    )


def parse_vision_config(config: Mapping[str, Any]) -> VisionConfig:
    """Return the vision tower's part of config.json; what it leaves out is as in transformers' class.

    Args:
        config: its `vision_config`.

    Raises:
        CheckpointError: a value that is not served.
    """
    if config.get("hidden_act", "silu") != "silu":
        raise CheckpointError(f"config.json: vision_config.hidden_act {config['hidden_act']!r} is not served")
    patch_size = _one(config, "patch_size", 14)
    rope = config.get("rope_parameters") or {}
    return VisionConfig(
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


def rope_parameters(config: Mapping[str, Any]) -> tuple[float, dict[str, Any]]:
    """Return (theta, further parameters) of a text config in either spelling.

    Raises:
        CheckpointError: a rope type that scales the frequencies.
    """
    parameters = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    rope_type = parameters.get("rope_type") or parameters.get("type") or "default"
    if rope_type not in ("default", "mrope"):
        raise CheckpointError(f"config.json: rope type {rope_type!r} is not served")
    return float(parameters.get("rope_theta") or config.get("rope_theta") or _DEFAULT_THETA), parameters


def _need(config: Mapping[str, Any], key: str) -> Any:
    if config.get(key) is None:
        raise CheckpointError(f"config.json: text_config.{key} is missing")
    return config[key]


def _one(config: Mapping[str, Any], key: str, default: int) -> int:
    """Return a size that may be written as one number or as one for each side."""
    value = config.get(key, default)
    sides = set(value) if isinstance(value, list) else {value}
    if len(sides) != 1:
        raise CheckpointError(f"config.json: vision_config.{key} {value} is not served: sides of different length")
    return int(sides.pop())
