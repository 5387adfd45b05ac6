"""Attention over the paged cache and inside segments.

Next: kernels/tessera_kernels/segments.py
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from tessera_kernels import cpu, cuda, flash, heads, invariance, reference, reference_attention
from tessera_kernels.segments import Segments

# Of paged attention on CUDA; part of the order of sums, see kernels/include/paged_attention_split.cuh.
_SPLIT_KEYS = 256


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
        query_lens: differences of query_start, on the host; on CUDA their largest is all that counts: an upper bound.
        kv_lens: context_lens, on the host; on CUDA likewise.
        scale: of the scores.

    Returns:
        (n, num_heads, head_dim).
    """
    if cuda.serves(query):
        bounds = max(query_lens, default=0), max(kv_lens, default=0)
        return cuda.ops().paged_attention(
            query, key_cache, value_cache, block_tables, query_start, context_lens, *bounds, scale, _SPLIT_KEYS,
            invariance.enabled(),
        )  # fmt: skip
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
    if cuda.serves(qkv):
        starts = Segments.of(segment_lens, qkv.device).starts
        return cuda.ops().segment_attention(*qkv.unbind(1), starts, scale, causal)
    head_dim = qkv.shape[3]
    if invariance.enabled() and head_dim % cpu.lanes():
        # Zeros add nothing to a score, and give columns that are cut off again.
        padded = F.pad(qkv, (0, -head_dim % cpu.lanes()))
        return cpu.segment_attention(padded, segment_lens, scale, causal)[..., :head_dim].contiguous()
    implementation = cpu if cpu.serves_heads(qkv, head_dim) else reference
    return implementation.segment_attention(qkv, segment_lens, scale, causal)


def varlen_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    starts: torch.Tensor,
    scale: float,
    causal: bool = False,
    flash_max_len: int | None = None,
) -> torch.Tensor:
    """Return attention inside each segment, of segments whose lengths only the device knows.

    Args:
        query: (n, heads, dim); key and value likewise, all three views of one tensor or not.
        key: see query.
        value: see query.
        starts: int (segments + 1,), first row of each segment from 0 on, and the end of the last.
        scale: of the scores.
        causal: whether a row sees only those before it and itself.
        flash_max_len: where given, torch's kernel runs instead of ours, see `flash`; no segment is longer.

    Returns:
        (n, heads, dim); rows behind the last segment are zeros, of torch's kernel undefined.
    """
    if flash_max_len is not None:
        return flash.flash_varlen(query, key, value, starts, flash_max_len, scale, causal)
    if cuda.serves(query):
        return cuda.ops().segment_attention(query, key, value, starts, scale, causal)
    return reference_attention.varlen_attention(query, key, value, starts, scale, causal)


def vision_attention(
    qkv: torch.Tensor,
    bias: torch.Tensor | None,
    cos: torch.Tensor,
    sin: torch.Tensor,
    segments: Segments,
    num_heads: int,
    scale: float,
) -> torch.Tensor:
    """Turn queries and keys, and attend inside each segment.

    Args:
        qkv: (n, 3 * num_heads * head_dim), queries, keys, values side by side; may be changed.
        bias: (3 * num_heads * head_dim,), still to be added; None: it has been.
        cos: fp32 (n, half), half <= head_dim / 2; sin likewise.
        sin: see cos.
        segments: of the n rows.
        num_heads: heads of each.
        scale: of the scores.

    Returns:
        (n, num_heads * head_dim).
    """
    head_dim = qkv.shape[1] // (3 * num_heads)
    if cuda.serves(qkv):
        # Ours takes heads of any multiple of 8, so none are padded in memory.
        prepared = cuda.ops().qkv_prepare(qkv, bias, cos, sin, num_heads, head_dim)
        return cuda.ops().segment_attention(*prepared.unbind(0), segments.starts, scale, False).flatten(1)
    assert bias is None, "only CUDA leaves biases to be added"
    heads.rope_qk(qkv, cos, sin, num_heads)
    return segment_attention(qkv.view(qkv.shape[0], 3, num_heads, -1), segments.lens, scale).flatten(1)
