"""What the families read of config.json alike: sizes of language model and vision tower, and how rope is spelled.

Next: worker/models/qwen3_vl_config.py
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from worker.layers.attention import AttentionShape
from worker.models.checkpoint import CheckpointError


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
    rotary_dim: int
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
        num_heads: attention heads.
        out_hidden_size: width of the language model.
        in_channels: colour channels.
        patch_size: pixels of a patch's side.
        temporal_patch_size: frames of a patch.
        merge_size: patches merged along each side into one token.
        rope_theta: base of the rotary frequencies.
    """

    depth: int
    hidden_size: int
    num_heads: int
    out_hidden_size: int
    in_channels: int
    patch_size: int
    temporal_patch_size: int
    merge_size: int
    rope_theta: float

    def __post_init__(self) -> None:
        """Check what no single field shows.

        Raises:
            CheckpointError: heads do not divide the width.
        """
        if self.num_heads < 1 or self.hidden_size % self.num_heads:
            raise CheckpointError(
                f"config.json: vision_config.num_heads {self.num_heads} does not divide hidden_size {self.hidden_size}"
            )

    @property
    def head_dim(self) -> int:
        """Elements of a head."""
        return self.hidden_size // self.num_heads

    @property
    def num_deepstack_layers(self) -> int:
        """Side features of each token; most families have none."""
        return 0


def need(config: Mapping[str, Any], key: str, section: str = "text_config") -> Any:
    """Return a field of a section of config.json.

    Raises:
        CheckpointError: it is missing.
    """
    if config.get(key) is None:
        raise CheckpointError(f"config.json: {section}.{key} is missing")
    return config[key]


def check_activation(config: Mapping[str, Any], served: str, section: str = "text_config") -> None:
    """Check `hidden_act`, which means `served` where it is not written.

    Raises:
        CheckpointError: it is another.
    """
    if config.get("hidden_act", served) != served:
        raise CheckpointError(f"config.json: {section}.hidden_act {config['hidden_act']!r} is not served")


def rope_parameters(config: Mapping[str, Any], default_theta: float) -> tuple[float, dict[str, Any]]:
    """Return (theta, further parameters) of a text config, as transformers 4.57 or 5.x spells them.

    Args:
        config: the `text_config`.
        default_theta: where it writes none.

    Raises:
        CheckpointError: a rope type that scales the frequencies.
    """
    parameters = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    rope_type = parameters.get("rope_type") or parameters.get("type") or "default"
    if rope_type not in ("default", "mrope"):
        raise CheckpointError(f"config.json: rope type {rope_type!r} is not served")
    return float(parameters.get("rope_theta") or config.get("rope_theta") or default_theta), parameters


def expert_sizes(config: Mapping[str, Any]) -> tuple[int, int, int]:
    """Return (routed experts, experts of a token, width inside one) of a text config in Qwen's spelling.

    Raises:
        CheckpointError: one is missing, or a token has more experts than there are.
    """
    fields = dict(config) | {"num_experts": config.get("num_experts") or config.get("num_local_experts")}
    num_experts, k = need(fields, "num_experts"), need(fields, "num_experts_per_tok")
    if not 1 <= k <= num_experts:
        raise CheckpointError(f"config.json: text_config.num_experts_per_tok is {k}, but there are {num_experts}")
    return num_experts, k, need(fields, "moe_intermediate_size")
