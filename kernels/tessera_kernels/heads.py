"""Query and key heads: normed, turned, and written into the paged cache.

Next: kernels/tessera_kernels/attention.py
"""

import torch

from tessera_kernels import cpu, cuda, reference


def rotary_table(
    positions: torch.Tensor, inv_freq: torch.Tensor, axes: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (cos, sin) of each token's angles, each frequency taking the position of its own axis.

    Args:
        positions: (num_axes, n) int64.
        inv_freq: (half,) fp32.
        axes: (half,) int64, the row of `positions` that a frequency uses.

    Returns:
        Two fp32 (n, half).
    """
    implementation = cuda.ops() if cuda.serves(inv_freq) else reference
    cos, sin = implementation.rotary_table(positions, inv_freq, axes)
    return cos, sin


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
        k_weight: see q_weight.
        eps: of the norm.
        cos: fp32 (n, half), half <= head_dim / 2, or (n, num_kv_heads, half) where each key head and its queries have
            their own; sin likewise.
        sin: see cos.
        num_heads: query heads.
        num_kv_heads: key heads, and as many value heads.
    """
    _turn_heads(qkv, q_weight, k_weight, eps, cos, sin, num_heads, num_kv_heads, q_weight.shape[0])


def rope_qk(
    qkv: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, num_heads: int, num_kv_heads: int | None = None
) -> None:
    """Rotate queries and keys that have no norm, *in place*.

    Args:
        qkv: (n, (num_heads + 2 * num_kv_heads) * head_dim), queries, keys, values side by side.
        cos: see `qk_norm_rope`; sin likewise.
        sin: see cos.
        num_heads: query heads.
        num_kv_heads: key heads, and as many value heads; None: as many as query heads.
    """
    key_heads = num_heads if num_kv_heads is None else num_kv_heads
    head_dim = qkv.shape[1] // (num_heads + 2 * key_heads)
    _turn_heads(qkv, None, None, 0.0, cos, sin, num_heads, key_heads, head_dim)


def _turn_heads(
    qkv: torch.Tensor,
    q_weight: torch.Tensor | None,
    k_weight: torch.Tensor | None,
    eps: float,
    cos: torch.Tensor,
    sin: torch.Tensor,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
) -> None:
    arguments = qkv, q_weight, k_weight, eps, cos, sin, num_heads, num_kv_heads, head_dim
    if cuda.serves(qkv):
        cuda.ops().qk_norm_rope(*arguments)
    else:
        (cpu if cpu.serves(qkv) else reference).qk_norm_rope(*arguments)


def qk_norm_rope_store(
    qkv: torch.Tensor,
    q_weight: torch.Tensor | None,
    k_weight: torch.Tensor | None,
    eps: float,
    cos: torch.Tensor,
    sin: torch.Tensor,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    slots: torch.Tensor,
) -> None:
    """Norm and rotate queries *in place*, and keys on their way into the cache; write the values there too.

    Where that is one kernel, the keys in `qkv` stay as they were.

    Args:
        qkv: (n, heads * head_dim), queries, keys, values side by side, and whatever follows.
        q_weight: (head_dim,), None: no norm; k_weight likewise.
        k_weight: see q_weight.
        eps: of the norm.
        cos: see `qk_norm_rope`; sin likewise.
        sin: see cos.
        num_heads: query heads.
        num_kv_heads: key heads, and as many value heads.
        head_dim: elements of a head.
        key_cache: (num_blocks, num_kv_heads, block_size, head_dim); value_cache likewise.
        value_cache: see key_cache.
        slots: (n,) int64, see `store_kv`.
    """
    arguments = qkv, q_weight, k_weight, eps, cos, sin, num_heads, num_kv_heads, head_dim
    if cuda.serves(qkv):
        cuda.ops().qk_norm_rope_store(*arguments, key_cache, value_cache, slots)
        return
    _turn_heads(*arguments)
    heads, first_value = qkv.unflatten(1, (-1, head_dim)), num_heads + num_kv_heads
    key, value = heads[:, num_heads:first_value], heads[:, first_value : first_value + num_kv_heads]
    store_kv(key, value, key_cache, value_cache, slots)


def store_kv(
    key: torch.Tensor, value: torch.Tensor, key_cache: torch.Tensor, value_cache: torch.Tensor, slots: torch.Tensor
) -> None:
    """Write new keys and values into the cache, *in place*.

    Args:
        key: (n, num_kv_heads, head_dim); value likewise.
        key_cache: (num_blocks, num_kv_heads, block_size, head_dim); value_cache likewise.
        slots: (n,) int64, block_id * block_size + offset; a token of a negative one is written nowhere.
    """
    if cuda.serves(key):
        cuda.ops().store_kv(key, value, key_cache, value_cache, slots)
        return
    implementation = cpu if cpu.serves(key) else reference
    implementation.store_kv(key, value, key_cache, value_cache, slots)
