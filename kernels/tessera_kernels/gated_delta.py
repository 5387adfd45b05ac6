"""The C++ ops of linear attention as Python functions: fp32; shapes and meaning are those of `reference_gated_delta`.

Next: kernels/tessera_kernels/reference_gated_delta.py
"""

import torch

from tessera_kernels import cpu
from tessera_kernels.reference_gated_delta import Sequences

_MOST_TAPS = 16  # kMostTaps in csrc/cpu/gated_delta.cpp


def _rows(x: torch.Tensor) -> torch.Tensor:
    """Return x itself where its rows are contiguous, whatever lies between them, else a copy."""
    return x if x.stride(1) == 1 else x.contiguous()


def _check(states: torch.Tensor, sequences: Sequences) -> None:
    assert states.is_contiguous() and states.dtype is torch.float32
    assert sequences.slots.dtype is torch.int64 and sequences.slots.is_contiguous()
    assert sequences.query_start.dtype is sequences.context_lens.dtype is torch.int32


def causal_conv(x: torch.Tensor, weight: torch.Tensor, states: torch.Tensor, sequences: Sequences) -> torch.Tensor:
    """See `reference_gated_delta.causal_conv`."""
    _check(states, sequences)
    taps, channels = weight.shape
    assert weight.is_contiguous() and taps <= _MOST_TAPS and states.shape[1:] == (channels, taps - 1)
    x = _rows(x)
    out = torch.empty(x.shape[0], channels)
    cpu.native().tessera_causal_conv(
        x.data_ptr(), x.stride(0), weight.data_ptr(), states.data_ptr(), sequences.slots.data_ptr(),
        sequences.query_start.data_ptr(), sequences.context_lens.data_ptr(), out.data_ptr(), sequences.slots.shape[0],
        channels, taps, torch.get_num_threads(),
    )  # fmt: skip
    return out


def gated_delta_rule(
    qkv: torch.Tensor,
    gates: torch.Tensor,
    rate: torch.Tensor,
    bias: torch.Tensor,
    states: torch.Tensor,
    sequences: Sequences,
    key_heads: int,
) -> torch.Tensor:
    """See `reference_gated_delta.gated_delta_rule`."""
    _check(states, sequences)
    _, heads, key_dim, value_dim = states.shape
    assert heads % key_heads == 0 and qkv.shape[1] == 2 * key_heads * key_dim + heads * value_dim
    assert rate.dtype is bias.dtype is torch.float32
    qkv, gates = _rows(qkv), _rows(gates)
    out = torch.empty(qkv.shape[0], heads, value_dim)
    cpu.native().tessera_gated_delta_rule(
        qkv.data_ptr(), qkv.stride(0), gates.data_ptr(), gates.stride(0), rate.data_ptr(), bias.data_ptr(),
        states.data_ptr(), sequences.slots.data_ptr(), sequences.query_start.data_ptr(),
        sequences.context_lens.data_ptr(), out.data_ptr(), sequences.slots.shape[0], key_heads, heads, key_dim,
        value_dim, torch.get_num_threads(),
    )  # fmt: skip
    return out


def gated_rms_norm(x: torch.Tensor, gate: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """See `reference_gated_delta.gated_rms_norm`."""
    rows, heads, dim = x.shape
    assert weight.dtype is torch.float32 and gate.shape == (rows, heads * dim)
    x, gate = x.contiguous(), _rows(gate)
    out = torch.empty(rows, heads * dim)
    cpu.native().tessera_gated_rms_norm(
        x.data_ptr(), gate.data_ptr(), gate.stride(0), weight.data_ptr(), out.data_ptr(), rows, heads, dim, eps,
        torch.get_num_threads(),
    )  # fmt: skip
    return out
