"""Shapes and types of what the CUDA ops return, for tracing without running them (torch.compile, meta tensors).

Next: kernels/tessera_kernels/ops.py
"""

from collections.abc import Callable
from typing import Any

import torch

_Fake = Callable[..., Any]


def _like(x: torch.Tensor, *_: Any) -> torch.Tensor:
    return x.new_empty(x.shape)


def _like_residual(x: torch.Tensor, x_bias: torch.Tensor | None, residual: torch.Tensor, *_: Any) -> torch.Tensor:
    return residual.new_empty(residual.shape)


def _nothing(*_: Any) -> None:
    """What is changed in place returns nothing."""


def _half_row(gate_up: torch.Tensor) -> torch.Tensor:
    return gate_up.new_empty(gate_up.shape[0], gate_up.shape[1] // 2)


def _prepared(qkv: torch.Tensor, bias: Any, cos: Any, sin: Any, num_heads: int, padded_dim: int) -> torch.Tensor:
    return qkv.new_empty(3, qkv.shape[0], num_heads, padded_dim)


def _table(positions: torch.Tensor, inv_freq: torch.Tensor, axes: Any) -> tuple[torch.Tensor, torch.Tensor]:
    shape = positions.shape[1], inv_freq.shape[0]
    return inv_freq.new_empty(shape), inv_freq.new_empty(shape)


def _chosen(logits: torch.Tensor, bias: Any, k: int, *_: Any) -> tuple[torch.Tensor, torch.Tensor]:
    shape = logits.shape[0], k
    return logits.new_empty(shape, dtype=torch.int32), logits.new_empty(shape, dtype=torch.float32)


def _sorted(experts: torch.Tensor, num_experts: int) -> tuple[torch.Tensor, torch.Tensor]:
    return experts.new_empty(experts.numel()), experts.new_empty(num_experts + 1)


def _grouped(x: torch.Tensor, weight: torch.Tensor, order: torch.Tensor, starts: Any, swiglu: bool) -> torch.Tensor:
    return x.new_empty(order.shape[0], weight.shape[1] // 2 if swiglu else weight.shape[1])


def _combined(answers: torch.Tensor, weights: torch.Tensor, *_: Any) -> torch.Tensor:
    return answers.new_empty(weights.shape[0], answers.shape[1])


def _reads(qkv: torch.Tensor, gates: Any, rate: Any, bias: Any, states: torch.Tensor, *_: Any) -> torch.Tensor:
    return qkv.new_empty(qkv.shape[0], states.shape[1], states.shape[3])


def _gated(x: torch.Tensor, gate: torch.Tensor, *_: Any) -> torch.Tensor:
    return x.new_empty(gate.shape)


def _penalised(logits: torch.Tensor, rows: torch.Tensor, *_: Any) -> torch.Tensor:
    return logits.new_empty((rows.shape[0], logits.shape[1]), dtype=torch.float32)


def _sampled(logits: Any, changed: Any, rows: torch.Tensor, random: bool, filtered: bool, num_top: int) -> torch.Tensor:
    return rows.new_empty(rows.shape[0], 1 if num_top < 0 else 2 + 2 * num_top)


def _gumbel(keys: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    shape = keys.shape[0], tokens.shape[0]
    return keys.new_empty(shape), keys.new_empty(shape, dtype=torch.float32)


def _positions(segments: torch.Tensor, tokens: int) -> torch.Tensor:
    return segments.new_empty(3, tokens)


def _patches(
    pixels: torch.Tensor, items: Any, rows: int, patch: int, merge: Any, temporal: int, centre: Any, dtype: torch.dtype
) -> torch.Tensor:
    return pixels.new_empty((rows, 3 * temporal * patch**2), dtype=dtype)


def _taps(grids: torch.Tensor, rows: int, merge: Any, side: Any, cubic: bool) -> tuple[torch.Tensor, torch.Tensor]:
    shape = rows, 16 if cubic else 4
    return grids.new_empty(shape, dtype=torch.int32), grids.new_empty(shape, dtype=torch.float32)


def _vision_table(grids: Any, rows: int, merge: Any, inv_freq: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    shape = rows, 2 * inv_freq.shape[0]
    return inv_freq.new_empty(shape), inv_freq.new_empty(shape)


def _normalised(samples: torch.Tensor, used: int, spread: Any, dtype: torch.dtype) -> torch.Tensor:
    return samples.new_empty((used, samples.shape[1]), dtype=dtype)


def _series_rows(
    samples: torch.Tensor, series: Any, first: Any, patches: int, stride: int, kernel: torch.Tensor, *_: Any
) -> torch.Tensor:
    return samples.new_empty(patches * 2 * stride, kernel.shape[0])


FAKES: dict[str, _Fake] = {
    "centred_patches": _patches,
    "position_taps": _taps,
    "add_positions": _nothing,
    "vision_rotary": _vision_table,
    "normalise_series": _normalised,
    "series_patches": _series_rows,
    "gumbel": _gumbel,
    "penalised_logits": _penalised,
    "sample": _sampled,
    "segment_attention": _like,
    "rms_norm": _like,
    "add_rms_norm": _like_residual,
    "layer_norm": _like,
    "add_layer_norm": _like_residual,
    "bias_gelu": _nothing,
    "swiglu": _half_row,
    "qkv_prepare": _prepared,
    "rotary_table": _table,
    "qk_norm_rope": _nothing,
    "qk_norm_rope_store": _nothing,
    "store_kv": _nothing,
    "paged_attention": _like,
    "choose_experts": _chosen,
    "sort_by_expert": _sorted,
    "grouped_linear": _grouped,
    "combine_experts": _combined,
    "causal_conv": _like,
    "gated_delta_rule": _reads,
    "gated_rms_norm": _gated,
    "mrope_positions": _positions,
    "merge_embeddings": _nothing,
    "copy_slots": _nothing,
}


def register(space: str) -> None:
    """Register them for the ops below torch.ops.<space>."""
    for name, fake in FAKES.items():
        torch.library.register_fake(f"{space}::{name}", fake)
