"""The ops that layers call: one typed function each, which picks the implementation by device and type.

A kernel is chosen by what the tensors are, never by whether it happened to work: where one is declared for a device it
runs or raises. `implementations` says which one runs, for the start log and `Describe`.

Adding an op, in five steps: its reference; device code (include/*.cuh under csrc/<op>.cu, or csrc/cpu/<op>.cpp); its
binding, with shapes and declared mutation; a branch here and its line in `implementations`; a test against the
reference at odd lengths.

Next: kernels/tessera_kernels/reference.py
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from tessera_kernels import bicubic, cpu, gated_delta, invariance, linear, moe, reference, reference_gated_delta
from tessera_kernels.linear import LinearWeight
from tessera_kernels.moe import ExpertWeights
from tessera_kernels.reference_gated_delta import Sequences

__all__ = [
    "ExpertWeights", "LinearWeight", "Sequences", "add_layer_norm", "add_rms_norm", "causal_conv", "centred_patches",
    "gated_delta_rule", "gated_rms_norm", "implementations", "interpolate_positions", "interpolate_positions_bicubic",
    "layer_norm", "linear",
    "merge_order", "moe", "paged_attention", "qk_norm_rope", "rms_norm", "rope_qk", "rotary_table", "segment_attention",
    "store_kv",
]  # fmt: skip

# Bound by little but memory traffic of small tensors, once a step or an item: torch everywhere so far.
rotary_table = reference.rotary_table
merge_order = reference.merge_order
interpolate_positions = reference.interpolate_positions
interpolate_positions_bicubic = bicubic.interpolate_positions_bicubic

_CPP_OPS = (
    "add_layer_norm", "add_rms_norm", "causal_conv", "centred_patches", "gated_delta_rule", "gated_rms_norm",
    "layer_norm", "paged_attention", "qk_norm_rope", "rms_norm", "rope_qk", "segment_attention", "store_kv",
)  # fmt: skip
_TORCH_OPS = ("interpolate_positions", "interpolate_positions_bicubic", "rotary_table")


def implementations(dtype: torch.dtype, device: torch.device, head_dims: Sequence[int] = ()) -> dict[str, str]:
    """Return the implementation of each op: "torch", "onednn" or "cpp".

    Args:
        dtype: of the model.
        device: of the model.
        head_dims: head sizes of the attention layers (language model, vision tower), which the C++ ones limit.
    """
    native = cpu.available() and dtype is torch.float32 and device.type == "cpu"
    table = dict.fromkeys(_CPP_OPS, "cpp" if native else "torch") | dict.fromkeys(_TORCH_OPS, "torch")
    if native and any(head_dim % cpu.lanes() for head_dim in head_dims):
        table |= {"paged_attention": "torch", "segment_attention": "torch"}
    chosen = {"experts": moe.implementation(dtype, device), "linear": linear.implementation(dtype, device)}
    return dict(sorted((table | chosen).items()))


def centred_patches(
    frames: torch.Tensor, patch: int, merge: int, temporal: int, centre: float, dtype: torch.dtype
) -> torch.Tensor:
    """Return patch rows in merge order, each pixel less `centre`. frames: uint8 (t * temporal, height, width, 3)."""
    if cpu.available() and frames.is_cpu and dtype is torch.float32 and frames.shape[3] == 3:
        return cpu.centred_patches(frames, patch, merge, temporal, centre)
    return reference.centred_patches(frames, patch, merge, temporal, centre, dtype)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Return x / rms(x) * weight over the last axis. x: (..., hidden), weight: (hidden,)."""
    return cpu.rms_norm(x, weight, eps) if cpu.serves(x) else reference.rms_norm(x, weight, eps)


def add_rms_norm(x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Add x to residual *in place* and return the norm of the sum. x, residual: (n, hidden)."""
    implementation = cpu if cpu.serves(x) else reference
    return implementation.add_rms_norm(x, residual, weight, eps)


def layer_norm(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float) -> torch.Tensor:
    """Return (x - mean) / std * weight + bias over the last axis. x: (..., hidden)."""
    return cpu.layer_norm(x, weight, bias, eps) if cpu.serves(x) else reference.layer_norm(x, weight, bias, eps)


def add_layer_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float
) -> torch.Tensor:
    """Add x to residual *in place* and return the layer norm of the sum. x, residual: (n, hidden)."""
    implementation = cpu if cpu.serves(x) else reference
    return implementation.add_layer_norm(x, residual, weight, bias, eps)


def qk_norm_rope(
    qkv: torch.Tensor,
    q_weight: torch.Tensor,
    k_weight: torch.Tensor,
    eps: float,
    cos: torch.Tensor,
    sin: torch.Tensor,
    num_heads: int,
    num_kv_heads: int,
) -> None:
    """Norm each query and key head by RMS, then rotate it, *in place*.

    Args:
        qkv: (n, heads * head_dim), queries, keys, values side by side, and whatever follows.
        q_weight: (head_dim,); k_weight likewise.
        eps: of the norm.
        cos: fp32 (n, half), half <= head_dim / 2; sin likewise.
        num_heads: query heads.
        num_kv_heads: key heads, and as many value heads.
    """
    if cpu.serves(qkv):
        cpu.qk_norm_rope(qkv, q_weight, k_weight, eps, cos, sin, num_heads, num_kv_heads, q_weight.shape[0])
    else:
        reference.qk_norm_rope(qkv, q_weight, k_weight, eps, cos, sin, num_heads, num_kv_heads)


def rope_qk(
    qkv: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, num_heads: int, num_kv_heads: int | None = None
) -> None:
    """Rotate queries and keys that have no norm, *in place*.

    Args:
        qkv: (n, (num_heads + 2 * num_kv_heads) * head_dim), queries, keys, values side by side.
        cos: fp32 (n, half), half <= head_dim / 2; sin likewise.
        num_heads: query heads.
        num_kv_heads: key heads, and as many value heads; None: as many as query heads.
    """
    key_heads = num_heads if num_kv_heads is None else num_kv_heads
    if cpu.serves(qkv):
        head_dim = qkv.shape[1] // (num_heads + 2 * key_heads)
        cpu.qk_norm_rope(qkv, None, None, 0.0, cos, sin, num_heads, key_heads, head_dim)
    else:
        reference.rope_qk(qkv, cos, sin, num_heads, key_heads)


def store_kv(
    key: torch.Tensor, value: torch.Tensor, key_cache: torch.Tensor, value_cache: torch.Tensor, slots: torch.Tensor
) -> None:
    """Write new keys and values into the cache, *in place*.

    Args:
        key: (n, num_kv_heads, head_dim); value likewise.
        key_cache: (num_blocks, num_kv_heads, block_size, head_dim); value_cache likewise.
        slots: (n,) int64, block_id * block_size + offset.
    """
    implementation = cpu if cpu.serves(key) else reference
    implementation.store_kv(key, value, key_cache, value_cache, slots)


def paged_attention(
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    block_tables: torch.Tensor,
    query_start: torch.Tensor,
    context_lens: torch.Tensor,
    query_lens: Sequence[int],
    kv_lens: Sequence[int],
    scale: float,
) -> torch.Tensor:
    """Return causal attention of each sequence's newest tokens over its whole cache.

    Args:
        query: (n, num_heads, head_dim), sequences one after the other.
        key_cache: (num_blocks, num_kv_heads, block_size, head_dim); value_cache likewise; the queries' own are in it.
        block_tables: (num_seqs, max_blocks) int32.
        query_start: (num_seqs + 1,) int32, first row of each sequence, and n.
        context_lens: (num_seqs,) int32, cache length of each sequence, its new tokens counted.
        query_lens: differences of query_start, on the host.
        kv_lens: context_lens, on the host.
        scale: of the scores.

    Returns:
        (n, num_heads, head_dim).
    """
    if cpu.serves_heads(query, query.shape[2]):
        return cpu.paged_attention(
            query, key_cache, value_cache, block_tables, query_start, context_lens, scale, invariance.enabled()
        )
    return reference.paged_attention(query, key_cache, value_cache, block_tables, query_lens, kv_lens, scale)


def segment_attention(
    qkv: torch.Tensor, segment_lens: Sequence[int], scale: float, causal: bool = False
) -> torch.Tensor:
    """Return attention inside each segment.

    Args:
        qkv: (n, 3, heads, dim), segments one after the other.
        segment_lens: rows of each segment.
        scale: of the scores.
        causal: whether a row sees only those before it and itself.

    Returns:
        (n, heads, dim).
    """
    head_dim = qkv.shape[3]
    if invariance.enabled() and head_dim % cpu.lanes():
        # Zeros add nothing to a score, and give columns that are cut off again.
        padded = F.pad(qkv, (0, -head_dim % cpu.lanes()))
        return cpu.segment_attention(padded, segment_lens, scale, causal)[..., :head_dim].contiguous()
    implementation = cpu if cpu.serves_heads(qkv, head_dim) else reference
    return implementation.segment_attention(qkv, segment_lens, scale, causal)


def causal_conv(x: torch.Tensor, weight: torch.Tensor, states: torch.Tensor, sequences: Sequences) -> torch.Tensor:
    """Return silu of a causal depthwise convolution, moving the carried inputs on *in place*.

    Args:
        x: (n, channels).
        weight: (taps, channels), the newest input's last; model dtype.
        states: (slots, channels, taps - 1), inputs before a sequence's new tokens, oldest first; model dtype.
        sequences: of the batch.

    Returns:
        (n, channels).
    """
    implementation = gated_delta if cpu.serves(x) else reference_gated_delta
    return implementation.causal_conv(x, weight, states, sequences)


def gated_delta_rule(
    qkv: torch.Tensor,
    gates: torch.Tensor,
    rate: torch.Tensor,
    bias: torch.Tensor,
    states: torch.Tensor,
    sequences: Sequences,
    key_heads: int,
) -> torch.Tensor:
    """Return the reads of a state that forgets and corrects itself token by token, moving it on *in place*.

    Args:
        qkv: (n, 2 * key_heads * key_dim + heads * value_dim), queries, keys, values side by side.
        gates: (n, 2 * heads), the update gate of each value head, then the decay gate.
        rate: fp32 (heads,), exp(A_log); bias likewise.
        bias: of the decay gate.
        states: fp32 (slots, heads, key_dim, value_dim).
        sequences: of the batch.
        key_heads: heads of queries and keys; each serves heads / key_heads neighbouring value heads.

    Returns:
        (n, heads, value_dim).
    """
    implementation = gated_delta if cpu.serves(qkv) else reference_gated_delta
    return implementation.gated_delta_rule(qkv, gates, rate, bias, states, sequences, key_heads)


def gated_rms_norm(x: torch.Tensor, gate: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Return x / rms(x) * weight * silu(gate), head by head. x: (n, heads, dim), gate: (n, heads * dim) -> as gate."""
    implementation = gated_delta if cpu.serves(x) else reference_gated_delta
    return implementation.gated_rms_norm(x, gate, weight, eps)
