"""config.json of InternS1-Pro: as released (4.57 style), or in transformers 5.x's spelling.

Next: worker/models/interns1_pro.py
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from worker.layers.attention import AttentionShape
from worker.layers.fope import FourierShape, count_frequencies
from worker.models.checkpoint import CheckpointError
from worker.models.config import TextConfig, need
from worker.models.qwen3_vl_config import parse_text_config

_DEFAULT_THETA = 5_000_000.0
_FOPE_KEYS = ("fope_init_factor", "fope_sep_head", "num_inv_freq", "fope_num_inv_freq")
_ACTIVATIONS = {"gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh"}


@dataclass(frozen=True)
class InternTextConfig(TextConfig):
    """The language model; `intermediate_size` is that of a dense layer.

    Args:
        positions: its position embedding.
        moe_intermediate_size: width inside an expert.
        num_experts: experts of a sparse layer; 0 where all layers are dense.
        experts_per_token: of a token.
        router_groups: runs of experts, each of which gives as many.
        dense_layers: indices of the layers without experts.
    """

    positions: FourierShape
    moe_intermediate_size: int
    num_experts: int
    experts_per_token: int
    router_groups: int
    dense_layers: frozenset[int]


@dataclass(frozen=True)
class SeriesConfig:
    """The time series encoder: `ts_config`, which spells its sizes as Whisper does.

    Args:
        patch_width: width of the encoder of single patches.
        feature_size: width of a pair of patches, `ts_adapt_in_dim`.
        bins: width between `adapt_in` and the first convolution, `num_mel_bins`.
        width: of the stream, `d_model`.
        num_layers: encoder layers.
        num_heads: their attention heads.
        inner_width: of their feed-forward layers.
        max_positions: rows of the learned table; what comes after has none.
        adapted_size: width after `adapt_out`, which the projector takes.
        out_hidden_size: width of the language model.
        activation: of feed-forward layers and projector, as `worker.layers.linear` spells it.
    """

    patch_width: int
    feature_size: int
    bins: int
    width: int
    num_layers: int
    num_heads: int
    inner_width: int
    max_positions: int
    adapted_size: int
    out_hidden_size: int
    activation: str

    @property
    def head_dim(self) -> int:
        """Elements of a head."""
        return self.width // self.num_heads


def parse_intern_text(config: Mapping[str, Any], tied: bool) -> InternTextConfig:
    """Return the language model's part of config.json.

    Args:
        config: its `text_config`, or the whole of a text-only checkpoint.
        tied: `tie_word_embeddings`.

    Raises:
        CheckpointError: a field is missing or has a value that is not served.
    """
    rope = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    if rope.get("rope_type") == "fope":  # one of the spellings; its frequencies are the default ones
        rope["rope_type"] = "default"
    config = dict(config) | {"rope_scaling": rope, "rope_parameters": None}
    config["intermediate_size"] = config.get("intermediate_size") or 0
    shared = parse_text_config(config, tied)
    num_experts: int = config.get("num_experts") or 0
    experts_per_token, groups = _routing(config, num_experts)
    return InternTextConfig(
        **vars(shared),
        positions=_positions(rope, config, shared.attention),
        moe_intermediate_size=need(config, "moe_intermediate_size") if num_experts else 0,
        num_experts=num_experts,
        experts_per_token=experts_per_token,
        router_groups=groups,
        dense_layers=_dense_layers(config, shared.num_layers, num_experts),
    )


def _routing(config: Mapping[str, Any], num_experts: int) -> tuple[int, int]:
    """Return (experts of a token, groups), checked against each other."""
    if not num_experts:
        return 0, 1
    if not config.get("norm_topk_prob", True):
        raise CheckpointError("config.json: text_config.norm_topk_prob false is not served")
    count: int = need(config, "num_experts_per_tok")
    groups = max(config.get("router_n_groups") or 1, 1)
    if num_experts % groups or count % groups or count > num_experts:
        raise CheckpointError(
            f"config.json: text_config.router_n_groups {groups} does not divide num_experts {num_experts} and "
            f"num_experts_per_tok {count}"
        )
    return count, groups


def _dense_layers(config: Mapping[str, Any], num_layers: int, num_experts: int) -> frozenset[int]:
    step = config.get("decoder_sparse_step") or 1
    named = set(config.get("mlp_only_layers") or ())
    return frozenset(i for i in range(num_layers) if not num_experts or i in named or (i + 1) % step)


def _positions(rope: Mapping[str, Any], config: Mapping[str, Any], attention: AttentionShape) -> FourierShape:
    theta = float(rope.get("rope_theta") or config.get("rope_theta") or _DEFAULT_THETA)
    mixed = any(rope.get(key) is not None for key in _FOPE_KEYS)
    spelled = (rope.get(key) for key in ("fope_num_inv_freq", "num_inv_freq"))
    asked = next((value for value in spelled if value is not None), None)
    longest: int = need(config, "max_position_embeddings")
    return FourierShape(
        theta=theta,
        head_dim=attention.head_dim,
        num_kv_heads=attention.num_kv_heads,
        num_frequencies=(
            count_frequencies(theta, attention.head_dim, longest, asked) if mixed else attention.head_dim // 2
        ),
        per_head=bool(rope.get("fope_sep_head")),
        mixed=mixed,
    )


def parse_series(config: Mapping[str, Any], hidden_size: int) -> SeriesConfig:
    """Return the time series encoder's part of config.json.

    Args:
        config: its `ts_config`; defaults are those that the family was trained with.
        hidden_size: width of the language model.

    Raises:
        CheckpointError: a value that is not served.
    """
    activation = config.get("activation_function", "gelu")
    if activation not in _ACTIVATIONS:
        raise CheckpointError(f"config.json: ts_config.activation_function {activation!r} is not served")
    feature_size, pair = config.get("ts_adapt_in_dim", 256), config.get("ts_concat_subsampling_concat_size", 2)
    patch_width = config.get("ts_concat_subsampling_in_channels", feature_size // 2)
    if pair != 2 or feature_size != 2 * patch_width:
        raise CheckpointError("config.json: ts_config.ts_adapt_in_dim is twice ts_concat_subsampling_in_channels")
    adapted_size = config.get("ts_adapt_out_dim", 1024)
    if config.get("ts_hidden_dim", adapted_size) != adapted_size:
        raise CheckpointError("config.json: ts_config.ts_hidden_dim differs from ts_adapt_out_dim")
    width, num_heads = config.get("d_model", 768), config.get("encoder_attention_heads", 8)
    if width % num_heads:
        raise CheckpointError(f"config.json: ts_config.d_model {width} is no multiple of {num_heads} heads")
    return SeriesConfig(
        patch_width=patch_width,
        feature_size=feature_size,
        bins=config.get("num_mel_bins", 80),
        width=width,
        num_layers=config.get("encoder_layers", 17),
        num_heads=num_heads,
        inner_width=config.get("encoder_ffn_dim", 3072),
        max_positions=config.get("max_source_positions", 1500),
        adapted_size=adapted_size,
        out_hidden_size=config.get("out_hidden_size") or hidden_size,
        activation=_ACTIVATIONS[activation],
    )
