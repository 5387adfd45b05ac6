"""Linear attention with a carried state, in plain torch: convolution, gated delta rule, gated norm.

Sequences of equal length run side by side, so that all decodes of a step are one batch. Maths is fp32 inside (fp64 for
fp64 tensors), storage is the tensors' own type.

Next: kernels/csrc/cpu/gated_delta.cpp
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F

CHUNK = 64  # tokens whose updates are solved for at once
_EPS = 1e-6  # of the unit length of queries and keys


class Sequences(NamedTuple):
    """The sequences of a step, one after the other, and where each keeps its state.

    A sequence whose cache length is its number of new tokens starts from zero, whatever its slot holds; one without
    new tokens leaves its slot alone.

    Args:
        slots: (num_seqs,) int64, no two alike.
        query_start: (num_seqs + 1,) int32, first row of each sequence, and n.
        context_lens: (num_seqs,) int32, cache length of each sequence, its new tokens counted.
        query_lens: differences of query_start, on the host.
        kv_lens: context_lens, on the host.
    """

    slots: torch.Tensor
    query_start: torch.Tensor
    context_lens: torch.Tensor
    query_lens: tuple[int, ...]
    kv_lens: tuple[int, ...]


class _Batch(NamedTuple):
    """Sequences of equal length: their rows (k, length), their slots (k,), and which of them are fresh (k,)."""

    rows: torch.Tensor
    slots: torch.Tensor
    fresh: torch.Tensor

    def carried(self, states: torch.Tensor) -> torch.Tensor:
        """Return the state of each sequence, zero for fresh ones, fp32 or wider."""
        wide = states[self.slots].to(_wide(states))
        return wide.masked_fill(self.fresh.view(-1, *[1] * (states.dim() - 1)), 0)


def _wide(x: torch.Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _batches(sequences: Sequences) -> Iterator[_Batch]:
    by_length: dict[int, list[int]] = {}
    for index, length in enumerate(sequences.query_lens):
        if length:
            by_length.setdefault(length, []).append(index)
    device = sequences.slots.device
    for length, indices in by_length.items():
        chosen = torch.tensor(indices, device=device)
        rows = sequences.query_start.long()[chosen, None] + torch.arange(length, device=device)
        fresh = torch.tensor([sequences.kv_lens[index] == length for index in indices], device=device)
        yield _Batch(rows, sequences.slots[chosen], fresh)


def causal_conv(x: torch.Tensor, weight: torch.Tensor, states: torch.Tensor, sequences: Sequences) -> torch.Tensor:
    """Return silu of a causal depthwise convolution, moving the carried inputs on *in place*.

    Args:
        x: (n, channels).
        weight: (taps, channels), the newest input's last.
        states: (slots, channels, taps - 1), inputs before a sequence's new tokens, oldest first.
        sequences: of the batch.

    Returns:
        (n, channels).
    """
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    taps = weight.shape[0]
    for batch in _batches(sequences):
        length = batch.rows.shape[1]
        inputs = torch.cat((batch.carried(states).transpose(1, 2), x[batch.rows].to(_wide(x))), dim=1)
        mixed = torch.zeros_like(inputs[:, :length])
        for tap in range(taps):
            mixed += inputs[:, tap : tap + length] * weight[tap]
        out[batch.rows] = F.silu(mixed).to(x.dtype)
        states[batch.slots] = inputs[:, length:].transpose(1, 2).to(states.dtype)
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
    """Return the reads of a state that forgets and corrects itself token by token, moving it on *in place*.

    With q, k of unit length (q also times key_dim ** -0.5), beta = sigmoid(b) and g = -rate * softplus(a + bias):
    S <- S e^g; S <- S + k (beta (v - S^T k))^T; o = S^T q.

    Args:
        qkv: (n, 2 * key_heads * key_dim + heads * value_dim), queries, keys, values side by side.
        gates: (n, 2 * heads), b of each value head, then a.
        rate: (heads,), exp(A_log); bias likewise.
        bias: of the decay gate.
        states: (slots, heads, key_dim, value_dim).
        sequences: of the batch.
        key_heads: heads of queries and keys; each serves heads / key_heads neighbouring value heads.

    Returns:
        (n, heads, value_dim).
    """
    _, heads, key_dim, value_dim = states.shape
    out = torch.empty(qkv.shape[0], heads, value_dim, dtype=qkv.dtype, device=qkv.device)
    keys = key_heads * key_dim
    update, decay = gates.split(heads, dim=1)
    beta = update.sigmoid().to(_wide(gates))
    log_decay = -rate * F.softplus(decay.to(_wide(gates)) + bias)
    for batch in _batches(sequences):
        query, key, value = qkv[batch.rows].to(_wide(qkv)).split((keys, keys, heads * value_dim), dim=2)
        query, key = (_unit_heads(part, key_dim, heads // key_heads) for part in (query, key))
        value = value.unflatten(2, (heads, value_dim)).transpose(1, 2)
        run = recurrent if batch.rows.shape[1] == 1 else chunked
        read, state = run(
            query * key_dim**-0.5, key, value, log_decay[batch.rows].transpose(1, 2),
            beta[batch.rows].transpose(1, 2), batch.carried(states),
        )  # fmt: skip
        out[batch.rows] = read.transpose(1, 2).to(out.dtype)
        states[batch.slots] = state.to(states.dtype)
    return out


def _unit_heads(x: torch.Tensor, dim: int, repeats: int) -> torch.Tensor:
    """Return heads of unit length, each repeated. x: (k, length, key_heads * dim) -> (k, heads, length, dim)."""
    x = x.unflatten(2, (-1, dim))
    x = x * torch.rsqrt(x.square().sum(-1, keepdim=True) + _EPS)
    return x.repeat_interleave(repeats, dim=2).transpose(1, 2)


def recurrent(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    log_decay: torch.Tensor,
    beta: torch.Tensor,
    state: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Run the rule as it is defined, token by token.

    Args:
        query: (k, heads, length, key_dim), of unit length and scaled; key likewise, not scaled.
        key: see `query`.
        value: (k, heads, length, value_dim).
        log_decay: (k, heads, length), not above zero.
        beta: (k, heads, length).
        state: (k, heads, key_dim, value_dim).

    Returns:
        The reads (k, heads, length, value_dim), and the state after them.
    """
    reads = torch.empty_like(value)
    for token in range(value.shape[2]):
        state = state * log_decay[:, :, token, None, None].exp()
        now = key[:, :, token, :, None]
        delta = beta[:, :, token, None] * (value[:, :, token] - (state * now).sum(-2))
        state = state + now * delta[:, :, None]
        reads[:, :, token] = (state * query[:, :, token, :, None]).sum(-2)
    return reads, state


def chunked(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    log_decay: torch.Tensor,
    beta: torch.Tensor,
    state: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Do what `recurrent` does, in products of whole chunks.

    Inside a chunk the corrections d_i = beta_i (v_i - what the state before i answers to k_i) depend on each other by a
    unit triangular system, which is solved once. Source: Yang et al., "Gated Delta Networks" (arXiv 2412.06464), 3.3.
    """
    reads = torch.empty_like(value)
    for start in range(0, value.shape[2], CHUNK):
        part = slice(start, start + CHUNK)
        q, k, v, b = query[:, :, part], key[:, :, part], value[:, :, part], beta[:, :, part, None]
        total = log_decay[:, :, part].cumsum(-1)
        # decay from token j to token i >= j; what lies above the diagonal would overflow, and is never meant
        between = (total[..., :, None] - total[..., None, :]).tril().exp().tril()
        seen = v - total.exp()[..., None] * (k @ state)  # what each token finds wrong in the state before the chunk
        system = (b * (k @ k.transpose(-1, -2)) * between).tril(-1)
        delta = torch.linalg.solve_triangular(system, b * seen, upper=False, unitriangular=True)
        reads[:, :, part] = total.exp()[..., None] * (q @ state) + ((q @ k.transpose(-1, -2)) * between) @ delta
        left = (total[..., -1:] - total).exp()[..., None]
        state = total[..., -1].exp()[..., None, None] * state + (k * left).transpose(-1, -2) @ delta
    return reads, state


def gated_rms_norm(x: torch.Tensor, gate: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Return x / rms(x) * weight * silu(gate), head by head.

    Args:
        x: (n, heads, dim).
        gate: (n, heads * dim).
        weight: (dim,).
        eps: of the norm.

    Returns:
        (n, heads * dim), x's type.
    """
    wide = x.to(_wide(x))
    wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight
    return (wide * F.silu(gate.to(_wide(gate)).view(x.shape))).to(x.dtype).flatten(1)
