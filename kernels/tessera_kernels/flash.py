"""Torch's own FlashAttention over segments, beside ours (csrc/segment_attention.cu), for the benchmarks to compare.

The vision tower runs ours: its grid follows from shapes alone, whereas this one takes the longest segment as a number
on the host, which a captured graph would freeze; it writes zeros behind the last segment; it takes fp32 as well; and
its rows depend on nothing beside their segment, bit for bit, which torch does not promise. Which of the two is faster
has not been measured yet.

Next: kernels/tessera_kernels/ops.py
"""

import torch

DTYPES = (torch.bfloat16, torch.float16)
MAX_HEAD_DIM = 256


def flash_varlen(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    starts: torch.Tensor,
    max_seqlen: int,
    scale: float,
    causal: bool,
) -> torch.Tensor:
    """Return attention inside each segment, by torch's kernel.

    Args:
        query: (n, heads, dim), bf16 or fp16 on CUDA, dim a multiple of 8, last axis contiguous.
        key: as query.
        value: as query.
        starts: int32 (segments + 1,), first row of each segment from 0 on, and the end of the last.
        max_seqlen: rows of the longest segment, or more.
        scale: of the scores.
        causal: whether a row sees only those before it and itself.

    Returns:
        (n, heads, dim); rows behind the last segment are undefined.

    Raises:
        ValueError: the tensors are not what torch's kernel takes.
    """
    if query.device.type != "cuda" or query.dtype not in DTYPES:
        raise ValueError(f"torch's flash attention takes bf16 and fp16 on CUDA, not {query.dtype} on {query.device}")
    if query.shape[2] % 8 or query.shape[2] > MAX_HEAD_DIM:
        raise ValueError(f"torch's flash attention takes heads of 8, 16 to {MAX_HEAD_DIM}, not of {query.shape[2]}")
    if starts.dtype is not torch.int32:
        raise ValueError(f"starts must be int32, not {starts.dtype}")
    # The aten op rather than torch.nn.attention.varlen, which is younger, and which calls it.
    out, *_ = torch.ops.aten._flash_attention_forward(
        query, key, value, starts, starts, max_seqlen, max_seqlen, 0.0, causal, False, scale=scale
    )
    return out
