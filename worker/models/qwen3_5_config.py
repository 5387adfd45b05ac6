"""config.json of the Qwen3.5 family: nested beside a vision tower, or flat in a text-only checkpoint.

Next: worker/models/qwen3_5.py
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from worker.layers.gated_delta import GatedDeltaShape
from worker.models.checkpoint import CheckpointError
from worker.models.config import TextConfig, rope_parameters
from worker.models.qwen3_vl_config import parse_text_config

LINEAR, FULL = "linear_attention", "full_attention"

# What transformers' config classes take where a checkpoint does not write it.
_DEFAULTS: dict[str, Any] = {
    "head_dim": 256,
    "rope_theta": 10_000.0,
    "max_position_embeddings": 32_768,
    "full_attention_interval": 4,
    "partial_rotary_factor": 0.25,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_conv_kernel_dim": 4,
}
_DEFAULT_SECTIONS = [11, 11, 10]


@dataclass(frozen=True)
class HybridTextConfig(TextConfig):
    """The language model.

    Args:
        linear: sizes of the linear attention layers.
        layer_types: LINEAR or FULL, layer by layer.
    """

    linear: GatedDeltaShape
    layer_types: tuple[str, ...]

    @property
    def num_linear_layers(self) -> int:
        """Layers with a recurrent state."""
        return self.layer_types.count(LINEAR)


def parse_hybrid_text_config(config: Mapping[str, Any], tied: bool) -> HybridTextConfig:
    """Return the language model's part of config.json; see `parse_text_config`.

    Raises:
        CheckpointError: a field is missing or has a value that is not served.
    """
    config = _DEFAULTS | {key: value for key, value in config.items() if value is not None}
    _, rope = rope_parameters(config, _DEFAULTS["rope_theta"])
    text = parse_text_config(config, tied)
    fraction = float(rope.get("partial_rotary_factor") or config["partial_rotary_factor"])
    rotary_dim = int(text.attention.head_dim * fraction)
    if rotary_dim < 2 or rotary_dim % 2:
        raise CheckpointError(f"config.json: partial_rotary_factor {fraction} rotates {rotary_dim} elements of a head")
    sections = tuple(rope.get("mrope_section") or _DEFAULT_SECTIONS)
    fields = vars(text) | {"rotary_dim": rotary_dim, "mrope_sections": sections}
    return HybridTextConfig(**fields, linear=_linear_shape(config, text), layer_types=_layer_types(config, text))


def _linear_shape(config: Mapping[str, Any], text: TextConfig) -> GatedDeltaShape:
    shape = GatedDeltaShape(
        hidden_size=text.hidden_size,
        key_heads=config["linear_num_key_heads"],
        value_heads=config["linear_num_value_heads"],
        key_dim=config["linear_key_head_dim"],
        value_dim=config["linear_value_head_dim"],
        kernel=config["linear_conv_kernel_dim"],
        norm_eps=text.norm_eps,
    )
    if shape.value_heads % shape.key_heads:
        raise CheckpointError(
            f"config.json: linear_num_value_heads {shape.value_heads} is no multiple of "
            f"linear_num_key_heads {shape.key_heads}"
        )
    return shape


def _layer_types(config: Mapping[str, Any], text: TextConfig) -> tuple[str, ...]:
    interval = config["full_attention_interval"]
    types = config.get("layer_types") or [
        LINEAR if (index + 1) % interval else FULL for index in range(text.num_layers)
    ]
    if len(types) != text.num_layers or not set(types) <= {LINEAR, FULL}:
        raise CheckpointError(
            f"config.json: layer_types {list(types)} does not name {LINEAR} or {FULL} for {text.num_layers} layers"
        )
    return tuple(types)
