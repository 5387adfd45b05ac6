"""Every op in plain torch: the oracle of the kernels, and what runs where no kernel is built.

Maths is fp32 inside, storage is the tensors' own type. Nothing here is tuned; it is meant to be read.

Next: kernels/tessera_kernels/ops.py
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from tessera_kernels import invariance


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Return x / rms(x) * weight over the last axis. x: (..., hidden), weight: (hidden,)."""
    wide = x.float()
    wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return (wide * weight.float()).to(x.dtype)


def add_rms_norm(x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Add x to residual *in place* and return the norm of the sum. x, residual: (n, hidden)."""
    residual.add_(x)
    return rms_norm(residual, weight, eps)


def layer_norm(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float) -> torch.Tensor:
    """Return (x - mean) / std * weight + bias over the last axis. x: (..., hidden)."""
    return F.layer_norm(x.float(), (x.shape[-1],), weight.float(), bias.float(), eps).to(x.dtype)


def add_layer_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float
) -> torch.Tensor:
    """Add x to residual *in place* and return the layer norm of the sum. x, residual: (n, hidden)."""
    residual.add_(x)
    return layer_norm(residual, weight, bias, eps)


def swiglu(gate_up: torch.Tensor) -> torch.Tensor:
    """Return silu(gate) * up. gate_up: (n, 2 * inner), gate first."""
    gate, up = gate_up.float().chunk(2, dim=-1)
    return (F.silu(gate) * up).to(gate_up.dtype)


def gelu_tanh(x: torch.Tensor) -> torch.Tensor:
    """Return GELU by its tanh formula."""
    return F.gelu(x.float(), approximate="tanh").to(x.dtype)


def gelu(x: torch.Tensor) -> torch.Tensor:
    """Return the exact (erf) GELU."""
    return F.gelu(x.float()).to(x.dtype)


def rotary_table(positions: torch.Tensor, inv_freq: torch.Tensor, axes: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Return (cos, sin) of each token's angles, each frequency taking the position of its own axis.

    Args:
        positions: (num_axes, n) int64.
        inv_freq: (half,) fp32.
        axes: (half,) int64, the row of `positions` that a frequency uses.

    Returns:
        Two fp32 (n, half).
    """
    angles = positions.t()[:, axes].float() * inv_freq
    return invariance.elementwise(torch.cos, angles), invariance.elementwise(torch.sin, angles)


def rotate_half(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate the first 2 * half elements of each head by half-split pairs.

    Args:
        x: (n, heads, dim).
        cos: fp32 (n, half), or (n, tables, half), each table for heads / tables neighbouring heads; sin likewise.
        sin: see cos.
    """
    half = cos.shape[-1]
    if cos.dim() == 2:
        cos, sin = cos[:, None], sin[:, None]
    elif cos.shape[1] != x.shape[1]:
        cos, sin = (table.repeat_interleave(x.shape[1] // table.shape[1], dim=1) for table in (cos, sin))
    first, second = x[..., :half].float(), x[..., half : 2 * half].float()
    turned = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)
    return turned if 2 * half == x.shape[-1] else torch.cat((turned, x[..., 2 * half :]), dim=-1)


def qk_norm_rope(
    qkv: torch.Tensor,
    q_weight: torch.Tensor | None,
    k_weight: torch.Tensor | None,
    eps: float,
    cos: torch.Tensor,
    sin: torch.Tensor,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int | None = None,
) -> None:
    """Norm each query and key head by RMS, then rotate it, *in place*.

    Args:
        qkv: (n, heads * head_dim), queries, keys, values side by side, and whatever follows.
        q_weight: (head_dim,), None: no norm; k_weight likewise.
        k_weight: see q_weight.
        eps: of the norm.
        cos: fp32 (n, half), half <= head_dim / 2, or (n, num_kv_heads, half) where each key head and its queries have
            their own; sin likewise.
        sin: see cos.
        num_heads: query heads.
        num_kv_heads: key heads, and as many value heads.
        head_dim: elements of a head; None: as many as weights.
    """
    if head_dim is None:
        assert q_weight is not None
        head_dim = q_weight.shape[0]
    heads = qkv.unflatten(1, (-1, head_dim))
    query, key = heads[:, :num_heads], heads[:, num_heads : num_heads + num_kv_heads]
    for part, weight in ((query, q_weight), (key, k_weight)):
        part.copy_(rotate_half(part if weight is None else rms_norm(part, weight, eps), cos, sin))


def rope_qk(
    qkv: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, num_heads: int, num_kv_heads: int | None = None
) -> None:
    """Rotate queries and keys that have no norm, *in place*; as many key heads as query heads unless told.

    See `qk_norm_rope` for the arguments.
    """
    key_heads = num_heads if num_kv_heads is None else num_kv_heads
    head_dim = qkv.shape[1] // (num_heads + 2 * key_heads)
    qk_norm_rope(qkv, None, None, 0.0, cos, sin, num_heads, key_heads, head_dim)


def qkv_prepare(
    qkv: torch.Tensor, bias: torch.Tensor | None, cos: torch.Tensor, sin: torch.Tensor, num_heads: int, padded_dim: int
) -> torch.Tensor:
    """Return queries, keys and values of a vision tower in the order of attention.

    Args:
        qkv: (n, 3 * num_heads * head_dim), queries, keys, values side by side.
        bias: (3 * num_heads * head_dim,), added first, or None.
        cos: fp32 (n, half), half <= head_dim / 2, of queries and keys; sin likewise.
        sin: see cos.
        num_heads: heads of each.
        padded_dim: columns of a head in the result; those beyond head_dim are zero.

    Returns:
        (3, n, num_heads, padded_dim).
    """
    wide = qkv.float() if bias is None else qkv.float() + bias.float()
    query, key, value = wide.unflatten(1, (3, num_heads, -1)).unbind(1)
    prepared = torch.stack((rotate_half(query, cos, sin), rotate_half(key, cos, sin), value)).to(qkv.dtype)
    return F.pad(prepared, (0, padded_dim - prepared.shape[-1]))


def store_kv(
    key: torch.Tensor, value: torch.Tensor, key_cache: torch.Tensor, value_cache: torch.Tensor, slots: torch.Tensor
) -> None:
    """Write new keys and values into the cache, *in place*.

    Args:
        key: (n, num_kv_heads, head_dim); value likewise.
        key_cache: (num_blocks, num_kv_heads, block_size, head_dim); value_cache likewise.
        slots: (n,) int64, block_id * block_size + offset; a token of a negative one is written nowhere.
    """
    if bool((slots < 0).any()):
        kept = slots >= 0
        key, value, slots = key[kept], value[kept], slots[kept]
    block_size = key_cache.shape[2]
    blocks, offsets = slots // block_size, slots % block_size
    key_cache[blocks, :, offsets] = key
    value_cache[blocks, :, offsets] = value


def paged_attention(
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    block_tables: torch.Tensor,
    query_lens: Sequence[int],
    kv_lens: Sequence[int],
    scale: float,
) -> torch.Tensor:
    """Return causal attention of each sequence's newest tokens over its whole cache.

    Args:
        query: (n, num_heads, head_dim), sequences one after the other.
        key_cache: (num_blocks, num_kv_heads, block_size, head_dim); value_cache likewise; the queries' own are in it.
        block_tables: (num_seqs, max_blocks) int.
        query_lens: new tokens of each sequence.
        kv_lens: cache length of each sequence, its new tokens counted.
        scale: of the scores.

    Returns:
        (n, num_heads, head_dim).
    """
    out = torch.empty_like(query)
    block_size = key_cache.shape[2]
    start = 0
    for index, (query_len, kv_len) in enumerate(zip(query_lens, kv_lens, strict=True)):
        blocks = block_tables[index, : -(-kv_len // block_size)].long()
        key, value = (
            cache[blocks].transpose(0, 1).flatten(1, 2)[:, :kv_len].unsqueeze(0) for cache in (key_cache, value_cache)
        )
        rows = slice(start, start + query_len)
        attended = _causal_tail_attention(query[rows].transpose(0, 1).unsqueeze(0), key, value, scale)
        out[rows] = attended[0].transpose(0, 1)
        start += query_len
    return out


def _causal_tail_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> torch.Tensor:
    """Attend where queries are the last of the keys. query: (1, heads, q, dim), key and value: (1, kv_heads, k, dim)"""
    query_len, kv_len = query.shape[2], key.shape[2]
    grouped = query.shape[1] != key.shape[1]
    if query_len == kv_len:
        return F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale, enable_gqa=grouped)
    mask = None
    if query_len > 1:
        visible = torch.arange(kv_len - query_len, kv_len, device=query.device)
        mask = torch.arange(kv_len, device=query.device)[None] <= visible[:, None]
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale, enable_gqa=grouped)


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
    outputs = []
    for length, count, start in _equal_runs(segment_lens):
        rows = qkv[start : start + length * count].unflatten(0, (count, length))
        query, key, value = rows.permute(2, 0, 3, 1, 4).unbind(0)
        attended = F.scaled_dot_product_attention(query, key, value, is_causal=causal, scale=scale)
        outputs.append(attended.transpose(1, 2).flatten(0, 1))
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def _equal_runs(lengths: Sequence[int]) -> list[tuple[int, int, int]]:
    """Group neighbours of equal length, as the frames of a clip: (length, count, first row) of each group."""
    runs: list[tuple[int, int, int]] = []
    start = 0
    for length in lengths:
        if runs and runs[-1][0] == length:
            runs[-1] = (length, runs[-1][1] + 1, runs[-1][2])
        else:
            runs.append((length, 1, start))
        start += length
    return runs


def patchify(frames: torch.Tensor, patch: int, merge: int, temporal: int) -> torch.Tensor:
    """Cut frames into patches in merge order: (t, block row, block column, row in block, column in block).

    Args:
        frames: (t * temporal, height, width, channels), sides multiples of patch * merge.
        patch: pixels of a patch's side.
        merge: patches of a block's side.
        temporal: frames of a patch.

    Returns:
        (t * h * w, channels * temporal * patch ** 2), the frames' own type.
    """
    num_frames, height, width, channels = frames.shape
    rows, columns = height // (patch * merge), width // (patch * merge)
    cut = frames.view(num_frames // temporal, temporal, rows, merge, patch, columns, merge, patch, channels)
    # -> t, block row, block column, row in block, column in block, channel, frame in patch, y, x
    cut = cut.permute(0, 2, 5, 3, 6, 8, 1, 4, 7)
    return cut.reshape(-1, channels * temporal * patch * patch)


def centred_patches(
    frames: torch.Tensor, patch: int, merge: int, temporal: int, centre: float, dtype: torch.dtype
) -> torch.Tensor:
    """Cut uint8 frames into patches in merge order, each pixel less `centre`; see `patchify`.

    Returns:
        (t * h * w, channels * temporal * patch ** 2) of `dtype`.
    """
    return patchify(frames, patch, merge, temporal).to(dtype).sub_(centre)


def merge_order(height: int, width: int, merge: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the (row, column) of each patch of a grid in merge order, int64 (height * width,) each."""

    def order(axis: torch.Tensor) -> torch.Tensor:
        return axis.view(height // merge, merge, width // merge, merge).transpose(1, 2).flatten()

    row = torch.arange(height, device=device)[:, None].expand(height, width).contiguous()
    column = torch.arange(width, device=device)[None].expand(height, width).contiguous()
    return order(row), order(column)


def interpolate_positions(table: torch.Tensor, height: int, width: int, merge: int) -> torch.Tensor:
    """Resample a square learned table to a grid: bilinear, corners aligned, in merge order.

    Args:
        table: (side * side, hidden).
        height: patches; width likewise.
        merge: patches of a block's side.

    Returns:
        (height * width, hidden), the table's type.
    """
    side = round(table.shape[0] ** 0.5)
    taps = []
    for index, size in zip(merge_order(height, width, merge, table.device), (height, width), strict=True):
        source = index.float() * (side - 1) / max(size - 1, 1)
        low = source.floor()
        fraction = source - low
        low_tap = low.long()
        taps.append(((low_tap, 1 - fraction), ((low_tap + 1).clamp(max=side - 1), fraction)))
    (rows, columns) = taps
    out = torch.zeros(height * width, table.shape[1], device=table.device)
    for row, row_weight in rows:
        for column, column_weight in columns:
            out += table[row * side + column].float() * (row_weight * column_weight)[:, None]
    return out.to(table.dtype)
