"""What the tests of linear attention share: steps, their sequences and states, and the formulas in float64.

Next: tests/unit/kernels/test_gated_delta.py
"""

from collections.abc import Callable
from typing import NamedTuple

import torch

from tessera_kernels.ops import Sequences

NAN = float("nan")
STEPS = [
    ((1,), (1,)),  # a first token
    ((1, 1, 1), (5, 1, 300)),  # decodes, one of them a first token
    ((3, 0, 1, 2), (3, 7, 40, 9)),  # fewer tokens than taps, and a sequence without new tokens
    ((67, 1, 130), (67, 9, 181)),  # a prefill, a decode, and a chunk far into its prompt; runs that are not full
]


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    """A tensor that depends on its shape and the seed alone."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def make_sequences(query_lens: tuple[int, ...], kv_lens: tuple[int, ...], slots: list[int]) -> Sequences:
    """Return the sequences of a step."""
    start = torch.tensor([0, *query_lens]).cumsum(0).int()
    places, lens = torch.tensor(slots, dtype=torch.int64), torch.tensor(kv_lens, dtype=torch.int32)
    return Sequences(places, start, lens, query_lens, kv_lens)


def make_states(sequences: Sequences, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Return slots where all is NaN but the states that sequences carry on from."""
    states = torch.full((int(sequences.slots.max()) + 2, *shape), NAN, dtype=dtype)
    for slot, query_len, kv_len in zip(sequences.slots, sequences.query_lens, sequences.kv_lens, strict=True):
        if kv_len > query_len:
            states[slot] = randn(*shape, seed=int(slot)).to(dtype) * 0.3
    return states


def exact_conv(x: torch.Tensor, weight: torch.Tensor, states: torch.Tensor, sequences: Sequences) -> torch.Tensor:
    """Each output from its own sum, in float64; changes the states."""
    x, weight, taps = x.double(), weight.double(), weight.shape[0]
    outputs = []
    for index, (query_len, kv_len) in enumerate(zip(sequences.query_lens, sequences.kv_lens, strict=True)):
        first, slot = int(sequences.query_start[index]), int(sequences.slots[index])
        inputs = [*(states[slot].T if kv_len > query_len else torch.zeros(taps - 1, x.shape[1]).double())]
        for token in range(first, first + query_len):
            inputs.append(x[token])
            total = sum(tap * value for tap, value in zip(weight, inputs[-taps:], strict=True))
            outputs.append(total / (1 + (-total).exp()))
        if query_len:
            states[slot] = torch.stack(inputs[1 - taps :], dim=1)
    return torch.stack(outputs)


class Rule(NamedTuple):
    """Arguments of the delta rule."""

    qkv: torch.Tensor
    gates: torch.Tensor
    rate: torch.Tensor
    bias: torch.Tensor
    key_heads: int

    def to(self, dtype: torch.dtype) -> "Rule":
        """The same in another type."""
        qkv, gates, rate, bias = (x.to(dtype) for x in self[:4])
        return Rule(qkv, gates, rate, bias, self.key_heads)

    def run(self, op: Callable[..., torch.Tensor], states: torch.Tensor, sequences: Sequences) -> torch.Tensor:
        """Call an op."""
        return op(*self[:4], states, sequences, self.key_heads)


def make_rule(tokens: int, key_heads: int, heads: int, key_dim: int, value_dim: int) -> Rule:
    """Return arguments whose rows lie in wider ones, as slices of one product do."""
    width = 2 * key_heads * key_dim + heads * value_dim
    wide = randn(tokens, width + 2 * heads + 3)
    rate = randn(heads).exp()
    return Rule(wide[:, 1 : width + 1], wide[:, width + 2 : width + 2 + 2 * heads], rate, randn(heads), key_heads)


def exact_rule(
    rule: Rule, states: torch.Tensor, sequences: Sequences, beta_dtype: torch.dtype = torch.float64
) -> torch.Tensor:
    """The rule token by token and head by head, in float64; changes the states.

    Args:
        rule: arguments.
        states: float64 (slots, heads, key_dim, value_dim).
        sequences: of the step.
        beta_dtype: what update gates are rounded to.
    """
    qkv, gates, rate, bias = (x.double() for x in rule[:4])
    heads, key_dim, value_dim = states.shape[1:]
    keys = rule.key_heads * key_dim
    out = torch.full((qkv.shape[0], heads, value_dim), NAN).double()
    for index, (query_len, kv_len) in enumerate(zip(sequences.query_lens, sequences.kv_lens, strict=True)):
        first, slot = int(sequences.query_start[index]), int(sequences.slots[index])
        for head in range(heads if query_len else 0):
            state = states[slot, head].clone() if kv_len > query_len else torch.zeros(key_dim, value_dim).double()
            at = head // (heads // rule.key_heads) * key_dim
            for token in range(first, first + query_len):
                row = qkv[token]
                query, key = row[at : at + key_dim], row[keys + at : keys + at + key_dim]
                query = query / (query.square().sum() + 1e-6).sqrt() / key_dim**0.5
                key = key / (key.square().sum() + 1e-6).sqrt()
                value = row[2 * keys + head * value_dim :][:value_dim]
                beta = gates[token, head].sigmoid().to(beta_dtype).double()
                state = state * (-rate[head] * (gates[token, heads + head] + bias[head]).exp().log1p()).exp()
                state = state + torch.outer(key, beta * (value - key @ state))
                out[token, head] = query @ state
            states[slot, head] = state
    return out
