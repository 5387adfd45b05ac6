"""Linear attention: a causal convolution and the gated delta rule over carried states, and the norm behind them.

Next: kernels/tessera_kernels/reference_gated_delta.py
"""

import torch

from tessera_kernels import cpu, cuda, gated_delta, invariance, reference_gated_delta
from tessera_kernels.reference_gated_delta import CHUNK, Sequences


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
    if cuda.serves(x):
        return cuda.ops().causal_conv(x, weight, states, *sequences[:3])
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
    if cuda.serves(qkv):
        # Chunks begin where a prompt was cut, which may change no bit in the batch-invariant mode.
        chunked = not invariance.enabled() and max(sequences.query_lens, default=0) >= CHUNK
        return cuda.ops().gated_delta_rule(qkv, gates, rate, bias, states, *sequences[:3], key_heads, chunked)
    implementation = gated_delta if cpu.serves(qkv) else reference_gated_delta
    return implementation.gated_delta_rule(qkv, gates, rate, bias, states, sequences, key_heads)


def gated_rms_norm(x: torch.Tensor, gate: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Return x / rms(x) * weight * silu(gate), head by head. x: (n, heads, dim), gate: (n, heads * dim) -> as gate."""
    if cuda.serves(x):
        return cuda.ops().gated_rms_norm(x.contiguous(), gate, weight, eps)
    implementation = gated_delta if cpu.serves(x) else reference_gated_delta
    return implementation.gated_rms_norm(x, gate, weight, eps)
