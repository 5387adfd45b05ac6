"""The C++ CPU ops as Python functions: fp32, contiguous rows; shapes and meaning are those of `reference`.

Next: kernels/tessera_kernels/library.py
"""

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from tessera_kernels import library

_active: ctypes.CDLL | None = library.load()


def available() -> bool:
    """Tell whether the library is loaded."""
    return _active is not None


def serves(x: torch.Tensor) -> bool:
    """Tell whether the library takes this tensor."""
    return _active is not None and x.is_cpu and x.dtype is torch.float32


def serves_heads(x: torch.Tensor, head_dim: int) -> bool:
    """Tell whether the attention ops take this tensor with heads of this size."""
    return _active is not None and x.is_cpu and x.dtype is torch.float32 and head_dim % lanes() == 0


def lanes() -> int:
    """Return the floats of a vector."""
    return int(native().tessera_lanes())


@contextmanager
def using(chosen: ctypes.CDLL | None) -> Iterator[None]:
    """Run on another library meanwhile, or on the reference (None); for tests and comparisons on one thread."""
    global _active
    before, _active = _active, chosen
    try:
        yield
    finally:
        _active = before


def native() -> ctypes.CDLL:
    """Return the library that is loaded, for bindings in files of their own."""
    assert _active is not None
    return _active


def pack_rows(rows: torch.Tensor, start: int, out_features: int, gated: bool, packed: torch.Tensor) -> None:
    """Copy rows of a matrix into their panels. rows: fp32 (k, in_features), any memory."""
    assert rows.dtype is torch.float32 and rows.is_contiguous()
    native().tessera_pack_rows(
        rows.data_ptr(), rows.shape[0], start, rows.shape[1], out_features, gated, packed.data_ptr(),
        torch.get_num_threads(),
    )  # fmt: skip


def read_rows(packed: torch.Tensor, ids: torch.Tensor, in_features: int) -> torch.Tensor:
    """Read rows by index out of panels. ids: (n,) int64 -> (n, in_features)."""
    ids = ids.contiguous()
    out = torch.empty(ids.shape[0], in_features)
    native().tessera_read_rows(packed.data_ptr(), ids.data_ptr(), ids.shape[0], in_features, out.data_ptr())
    return out


def linear(
    x: torch.Tensor,
    packed: torch.Tensor,
    bias: torch.Tensor | None,
    out_features: int,
    activation: int,
    fixed_order: bool = False,
) -> torch.Tensor:
    """Multiply by a packed weight. x: (n, in_features); activation: 0 none, 1 gelu_tanh, 2 swiglu.

    With `fixed_order` a row's sums are taken in the same order however many rows there are.
    """
    assert x.dtype is torch.float32 and x.is_contiguous()
    rows, in_features = x.shape
    out = torch.empty(rows, out_features // 2 if activation == 2 else out_features)
    native().tessera_linear(
        x.data_ptr(), packed.data_ptr(), None if bias is None else bias.data_ptr(), out.data_ptr(), rows, in_features,
        out_features, activation, fixed_order, torch.get_num_threads(),
    )  # fmt: skip
    return out


def centred_patches(frames: torch.Tensor, patch: int, merge: int, temporal: int, centre: float) -> torch.Tensor:
    """See `reference.centred_patches`; uint8 RGB frames on the CPU."""
    num_frames, height, width, channels = frames.shape
    assert frames.dtype is torch.uint8 and channels == 3 and num_frames % temporal == 0
    assert height % (patch * merge) == 0 and width % (patch * merge) == 0
    frames = frames.contiguous()
    out = torch.empty(num_frames // temporal * (height // patch) * (width // patch), channels * temporal * patch**2)
    native().tessera_centred_patches(
        frames.data_ptr(), out.data_ptr(), num_frames // temporal, height, width, temporal, patch, merge, centre,
        torch.get_num_threads(),
    )  # fmt: skip
    return out


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """See `reference.rms_norm`."""
    return _rms_norm(None, x.contiguous(), weight, eps)


def add_rms_norm(x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """See `reference.add_rms_norm`."""
    return _rms_norm(x, residual, weight, eps)


def _rms_norm(x: torch.Tensor | None, residual: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    assert residual.is_contiguous() and (x is None or x.is_contiguous())
    hidden = residual.shape[-1]
    out = torch.empty_like(residual)
    native().tessera_rms_norm(
        None if x is None else x.data_ptr(), residual.data_ptr(), weight.data_ptr(), out.data_ptr(),
        residual.numel() // hidden, hidden, eps, torch.get_num_threads(),
    )  # fmt: skip
    return out


def layer_norm(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float) -> torch.Tensor:
    """See `reference.layer_norm`."""
    return _layer_norm(None, x.contiguous(), weight, bias, eps)


def add_layer_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float
) -> torch.Tensor:
    """See `reference.add_layer_norm`."""
    return _layer_norm(x, residual, weight, bias, eps)


def _layer_norm(
    x: torch.Tensor | None, residual: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float
) -> torch.Tensor:
    assert residual.is_contiguous() and (x is None or x.is_contiguous())
    hidden = residual.shape[-1]
    out = torch.empty_like(residual)
    native().tessera_layer_norm(
        None if x is None else x.data_ptr(), residual.data_ptr(), weight.data_ptr(), bias.data_ptr(), out.data_ptr(),
        residual.numel() // hidden, hidden, eps, torch.get_num_threads(),
    )  # fmt: skip
    return out


def qk_norm_rope(
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
    """See `reference.qk_norm_rope`."""
    assert qkv.is_contiguous() and cos.is_contiguous() and sin.is_contiguous()
    if cos.dim() == 3:
        _turn_groups(qkv, q_weight, k_weight, eps, cos, sin, num_heads, num_kv_heads, head_dim)
        return
    native().tessera_qk_norm_rope(
        qkv.data_ptr(), qkv.shape[1], None if q_weight is None else q_weight.data_ptr(),
        None if k_weight is None else k_weight.data_ptr(), eps, cos.data_ptr(), sin.data_ptr(), cos.shape[1],
        qkv.shape[0], num_heads, num_kv_heads, head_dim, torch.get_num_threads(),
    )  # fmt: skip


def _turn_groups(
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
    """Do `qk_norm_rope` where each key head has its own table: seen as that many more rows with one key head each."""
    heads, group = qkv.unflatten(1, (-1, head_dim)), num_heads // num_kv_heads
    query = heads[:, :num_heads].unflatten(1, (num_kv_heads, group))
    key = heads[:, num_heads : num_heads + num_kv_heads].unsqueeze(2)
    rows = torch.cat((query, key), dim=2)
    qk_norm_rope(
        rows.view(-1, (group + 1) * head_dim), q_weight, k_weight, eps, cos.flatten(0, 1), sin.flatten(0, 1),
        group, 1, head_dim,
    )  # fmt: skip
    query.copy_(rows[:, :, :group])
    key.copy_(rows[:, :, group:])


def store_kv(
    key: torch.Tensor, value: torch.Tensor, key_cache: torch.Tensor, value_cache: torch.Tensor, slots: torch.Tensor
) -> None:
    """See `reference.store_kv`."""
    tokens, kv_heads, head_dim = key.shape
    assert key.stride(0) == value.stride(0) and key.stride(1) == head_dim and slots.dtype is torch.int64
    native().tessera_store_kv(
        key.data_ptr(), value.data_ptr(), key.stride(0), key_cache.data_ptr(), value_cache.data_ptr(), slots.data_ptr(),
        tokens, kv_heads, head_dim, key_cache.shape[2],
    )  # fmt: skip


def paged_attention(
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    block_tables: torch.Tensor,
    query_start: torch.Tensor,
    context_lens: torch.Tensor,
    scale: float,
    fixed_order: bool = False,
) -> torch.Tensor:
    """See `reference.paged_attention`; lengths as int32 tensors.

    With `fixed_order` a token's sums are taken in an order that depends on its place in the sequence alone.
    """
    tokens, heads, head_dim = query.shape
    assert query.stride(1) == head_dim and key_cache.is_contiguous() and block_tables.is_contiguous()
    assert block_tables.dtype is query_start.dtype is context_lens.dtype is torch.int32
    out = torch.empty(tokens, heads, head_dim)
    native().tessera_paged_attention(
        query.data_ptr(), query.stride(0), out.data_ptr(), key_cache.data_ptr(), value_cache.data_ptr(),
        block_tables.data_ptr(), block_tables.shape[1], query_start.data_ptr(), context_lens.data_ptr(),
        context_lens.shape[0], heads, key_cache.shape[1], head_dim, key_cache.shape[2], scale, fixed_order,
        torch.get_num_threads(),
    )  # fmt: skip
    return out


def segment_attention(
    qkv: torch.Tensor, segment_lens: Sequence[int], scale: float, causal: bool = False
) -> torch.Tensor:
    """See `reference.segment_attention`; heads of whole vectors."""
    assert qkv.is_contiguous()
    rows, _, heads, head_dim = qkv.shape
    starts = torch.tensor([0, *segment_lens]).cumsum(0)
    out = torch.empty(rows, heads, head_dim)
    native().tessera_segment_attention(
        qkv.data_ptr(), out.data_ptr(), starts.data_ptr(), len(segment_lens), heads, head_dim, scale,
        causal, torch.get_num_threads(),
    )  # fmt: skip
    return out
