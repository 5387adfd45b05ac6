"""Attention inside segments that lie one after the other, in plain torch: the oracle of the CUDA op.

Next: kernels/tessera_kernels/ops.py
"""

from itertools import pairwise

import torch
import torch.nn.functional as F


def varlen_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    starts: torch.Tensor,
    scale: float,
    causal: bool = False,
) -> torch.Tensor:
    """Return attention inside each segment, and zeros behind the last.

    Args:
        query: (n, heads, dim); key and value likewise.
        key: see query.
        value: see query.
        starts: int (segments + 1,), first row of each segment from 0 on, and the end of the last.
        scale: of the scores.
        causal: whether a row sees only those before it and itself.

    Returns:
        (n, heads, dim), contiguous.
    """
    out = query.new_zeros(query.shape)
    for start, end in pairwise(starts.tolist()):
        if start < end:
            q, k, v = (x[start:end].transpose(0, 1)[None] for x in (query, key, value))
            attended = F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=scale)
            out[start:end] = attended[0].transpose(0, 1)
    return out
