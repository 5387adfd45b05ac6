"""Linear attention against its formulas in float64: the C++ ops in every build that runs here, and both torch forms.

Next: kernels/tessera_kernels/reference_gated_delta.py
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest
import torch

from tessera_kernels import ops, reference_gated_delta
from tessera_kernels.ops import Sequences

NAN = float("nan")
STEPS = [
    ((1,), (1,)),  # a first token
    ((1, 1, 1), (5, 1, 300)),  # decodes, one of them a first token
    ((3, 0, 1, 2), (3, 7, 40, 9)),  # fewer tokens than taps, and a sequence without new tokens
    ((67, 1, 130), (67, 9, 181)),  # a prefill, a decode, and a chunk far into its prompt; runs that are not full
]


@pytest.fixture(autouse=True)
def poisoned() -> Iterator[None]:
    """Memory that torch hands out holds NaN, so that what an op forgets to write shows."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    """A tensor that depends on its shape and the seed alone."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def make_sequences(query_lens: tuple[int, ...], kv_lens: tuple[int, ...], slots: list[int]) -> Sequences:
    """Return the sequences of a step."""
    start = torch.tensor([0, *query_lens]).cumsum(0).int()
    return Sequences(torch.tensor(slots), start, torch.tensor(kv_lens, dtype=torch.int32), query_lens, kv_lens)


def make_states(sequences: Sequences, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Return slots where all is NaN but the states that sequences carry on from."""
    states = torch.full((int(sequences.slots.max()) + 2, *shape), NAN, dtype=dtype)
    for slot, query_len, kv_len in zip(sequences.slots, sequences.query_lens, sequences.kv_lens, strict=True):
        if kv_len > query_len:
            states[slot] = randn(*shape, seed=int(slot)).to(dtype) * 0.3
    return states


def assert_close(ours: torch.Tensor, exact: torch.Tensor, tolerance: float = 1e-5) -> None:
    """Check the largest error, relative to the largest value; NaN must stand where it stood, and nowhere else."""
    assert ours.shape == exact.shape
    assert torch.equal(ours.isnan(), exact.isnan())
    error = (ours.double() - exact.double()).nan_to_num().abs()
    assert error.numel() == 0 or error.max() <= tolerance * exact.double().nan_to_num().abs().max().clamp(min=1)


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


def exact_rule(rule: Rule, states: torch.Tensor, sequences: Sequences) -> torch.Tensor:
    """The rule token by token and head by head, in float64; changes the states."""
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
                beta = gates[token, head].sigmoid()
                state = state * (-rate[head] * (gates[token, heads + head] + bias[head]).exp().log1p()).exp()
                state = state + torch.outer(key, beta * (value - key @ state))
                out[token, head] = query @ state
            states[slot, head] = state
    return out


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize(("query_lens", "kv_lens"), STEPS)
@pytest.mark.parametrize(("channels", "taps"), [(37, 4), (300, 2)])
def test_causal_conv(query_lens: tuple[int, ...], kv_lens: tuple[int, ...], channels: int, taps: int) -> None:
    """Each row sees its own sequence's last inputs, across steps too; slots of others are neither read nor written."""
    sequences = make_sequences(query_lens, kv_lens, [5, 2, 7, 0][: len(query_lens)])
    x, weight = randn(sum(query_lens), channels + 5)[:, 2:-3], randn(taps, channels)
    states = make_states(sequences, (channels, taps - 1))
    exact_states, torch_states = states.double(), states.clone()
    exact = exact_conv(x, weight, exact_states, sequences)
    assert_close(ops.causal_conv(x, weight, states, sequences), exact)
    assert_close(states, exact_states)
    assert_close(reference_gated_delta.causal_conv(x, weight, torch_states, sequences), exact)
    assert_close(torch_states, exact_states)


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize(("query_lens", "kv_lens"), STEPS)
@pytest.mark.parametrize(
    ("key_heads", "heads", "key_dim", "value_dim"), [(2, 2, 16, 16), (1, 3, 7, 45), (2, 4, 33, 64)]
)
def test_gated_delta_rule(
    query_lens: tuple[int, ...], kv_lens: tuple[int, ...], key_heads: int, heads: int, key_dim: int, value_dim: int
) -> None:
    """Reads and states equal the rule's formulas in every form; slots of others are neither read nor written."""
    sequences = make_sequences(query_lens, kv_lens, [5, 2, 7, 0][: len(query_lens)])
    rule = make_rule(sum(query_lens), key_heads, heads, key_dim, value_dim)
    states = make_states(sequences, (heads, key_dim, value_dim))
    exact_states, torch_states, wide_states = states.double(), states.clone(), states.double()
    exact = exact_rule(rule, exact_states, sequences)
    assert_close(rule.run(ops.gated_delta_rule, states, sequences), exact)
    assert_close(states, exact_states)
    assert_close(rule.run(reference_gated_delta.gated_delta_rule, torch_states, sequences), exact)
    assert_close(torch_states, exact_states)
    wide = rule.to(torch.float64).run(reference_gated_delta.gated_delta_rule, wide_states, sequences)
    assert_close(wide, exact, 1e-12)
    assert_close(wide_states, exact_states, 1e-12)


@pytest.mark.parametrize("length", [1, 64, 150])
def test_chunked_form_is_the_rule(length: int) -> None:
    """Solving whole chunks at once gives what token by token gives, however fast a head forgets."""
    query, key = (torch.nn.functional.normalize(randn(2, 3, length, 8, seed=s).double(), dim=-1) for s in (1, 2))
    value, state = randn(2, 3, length, 5).double(), randn(2, 3, 8, 5).double()
    decay, beta = -randn(2, 3, length).double().exp() * torch.tensor([1e-3, 1, 300])[:, None], randn(2, 3, length)
    arguments = (query, key, value, decay, beta.double().sigmoid(), state)
    for ours, exact in zip(
        reference_gated_delta.chunked(*arguments), reference_gated_delta.recurrent(*arguments), strict=True
    ):
        assert_close(ours, exact, 1e-12)


@pytest.mark.usefixtures("native")
def test_split_changes_nothing() -> None:
    """A sequence in one step, or split at any token, has the same reads and the same state, to the last bit."""
    rule = make_rule(9, 1, 2, 8, 16)
    whole, parts = torch.full((3, 2, 8, 16), NAN), torch.full((3, 2, 8, 16), NAN)
    exact = rule.run(ops.gated_delta_rule, whole, make_sequences((9,), (9,), [1]))
    done = []
    for start, end in ((0, 4), (4, 5), (5, 9)):
        piece = Rule(rule.qkv[start:end], rule.gates[start:end], *rule[2:])
        done.append(piece.run(ops.gated_delta_rule, parts, make_sequences((end - start,), (end,), [1])))
    assert torch.equal(torch.cat(done), exact)
    assert torch.equal(parts[1], whole[1])


@pytest.mark.usefixtures("native")
def test_saturated_gates() -> None:
    """Gates at the end of their range forget all or nothing, without overflow."""
    rule = make_rule(4, 1, 1, 8, 8)
    gates = torch.tensor([[200.0, 200.0], [-200.0, -200.0], [200.0, -200.0], [-200.0, 200.0]])
    rule = Rule(rule.qkv, gates, torch.ones(1) * 50, torch.zeros(1), 1)
    sequences = make_sequences((4,), (6,), [0])
    states = make_states(sequences, (1, 8, 8))
    torch_states = states.clone()
    ours = rule.run(ops.gated_delta_rule, states, sequences)
    exact = rule.run(reference_gated_delta.gated_delta_rule, torch_states, sequences)
    assert not ours.isnan().any()
    assert_close(ours, exact)
    assert states[0].abs().max() == 0 == torch_states[0].abs().max()


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize(("rows", "heads", "dim"), [(1, 1, 16), (5, 3, 37), (300, 4, 128), (0, 2, 8)])
def test_gated_rms_norm(rows: int, heads: int, dim: int) -> None:
    """Each head is normed by itself, then gated by SiLU; a gate of any size keeps it finite."""
    x, weight = randn(rows, heads, dim + 1)[..., 1:], randn(dim)
    gate = randn(rows, heads * dim + 2)[:, 1:-1] * 100
    out = ops.gated_rms_norm(x, gate, weight, 1e-6)
    wide, by = x.double(), gate.double().reshape(rows, heads, dim)
    exact = wide / (wide.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight.double() * by * by.sigmoid()
    assert_close(out, exact.flatten(1))
    assert_close(reference_gated_delta.gated_rms_norm(x, gate, weight, 1e-6), exact.flatten(1))


def test_bfloat16() -> None:
    """In bf16 the torch forms keep the recurrent state in fp32 and everything else in bf16."""
    sequences = make_sequences((5, 1), (5, 3), [1, 0])
    x, weight = randn(6, 24).bfloat16(), randn(4, 24).bfloat16()
    states = make_states(sequences, (24, 3), torch.bfloat16)
    exact_states = states.double()
    exact = exact_conv(x, weight, exact_states, sequences)
    mixed = ops.causal_conv(x, weight, states, sequences)
    assert mixed.dtype is states.dtype is torch.bfloat16
    assert_close(mixed, exact, 1e-2)
    assert_close(states, exact_states, 0.0)
    rule = make_rule(6, 1, 1, 8, 8)
    rule = Rule(rule.qkv.bfloat16(), rule.gates.bfloat16(), rule.rate, rule.bias, 1)
    states = make_states(sequences, (1, 8, 8))
    exact_states = states.double()
    exact = exact_rule(rule, exact_states, sequences)
    read = rule.run(ops.gated_delta_rule, states, sequences)
    assert read.dtype is torch.bfloat16
    assert_close(read, exact, 1e-2)
    assert_close(states, exact_states, 1e-2)  # the update gate is bf16
    normed = ops.gated_rms_norm(read, read[:, 0], torch.ones(8), 1e-6)
    assert normed.dtype is torch.bfloat16
