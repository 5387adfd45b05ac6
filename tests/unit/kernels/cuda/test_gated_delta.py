"""The gated delta rule and its gated norm on CUDA against float64.

Next: kernels/csrc/gated_delta.cu
"""

from itertools import pairwise

import pytest
import torch

from tessera_kernels import cuda, ops
from tests.cuda_ops import Target, check_error, check_guards, check_op, strided
from tests.linear_attention import NAN, STEPS, Rule, exact_rule, make_rule, make_sequences, make_states, randn

# key heads, heads, key_dim, value_dim: keys that fill one, two and four steps of 64 rows (vectors), and that do not;
# values of a part of a stripe, of several stripes and of several blocks
DIMS = [(2, 2, 16, 16), (1, 3, 7, 45), (2, 4, 33, 8), (1, 2, 64, 36), (1, 2, 128, 16), (1, 1, 256, 8), (1, 1, 130, 6)]


def place(target: Target, sequences: ops.Sequences) -> ops.Sequences:
    """The same on the device, amid large numbers."""
    return ops.Sequences(*(target.guarded(x) for x in sequences[:3]), *sequences[3:])


def rule_of(target: Target, tokens: int, dims: tuple[int, int, int, int], dtype: torch.dtype) -> Rule:
    """Arguments in storage of a type, their rows in wider ones.

    No update gate lies where the type's rounding could fall to either side of it: that would show in the fp32 state.
    """
    rule = make_rule(tokens, *dims)
    gates = rule.gates.to(dtype)
    beta = gates.double().sigmoid()
    gates = gates.masked_fill((beta * (1 - 1e-6)).to(dtype) != (beta * (1 + 1e-6)).to(dtype), 0)
    if dtype is torch.float32:
        gates = rule.gates
    qkv, gates = (strided(target.guarded(x)) for x in (rule.qkv.to(dtype), gates))
    return Rule(qkv, gates, target.guarded(rule.rate), target.guarded(rule.bias), rule.key_heads)


def on_host(rule: Rule) -> Rule:
    """The same numbers on the CPU."""
    return Rule(*(x.cpu() for x in rule[:4]), rule.key_heads)


def check(target: Target, rule: Rule, sequences: ops.Sequences, shape: tuple[int, int, int]) -> None:
    """Compare a step's reads and states with float64; states of others stay NaN."""
    states = make_states(sequences, shape)
    exact_states = states.double()
    exact = exact_rule(on_host(rule), exact_states, sequences, rule.gates.dtype)
    ours = target.guarded(states)
    out = rule.run(ops.gated_delta_rule, ours, place(target, sequences))
    assert out.dtype is rule.qkv.dtype
    check_error("gated_delta_rule", out, exact)
    assert torch.equal(ours.cpu().isnan(), exact_states.isnan())
    check_error("gated_delta_rule, state", ours.cpu().nan_to_num(), exact_states.nan_to_num())
    check_guards(ours)


@pytest.mark.parametrize(("query_lens", "kv_lens"), STEPS)
@pytest.mark.parametrize("dims", DIMS)
def test_gated_delta_rule(
    target: Target,
    dtype: torch.dtype,
    query_lens: tuple[int, ...],
    kv_lens: tuple[int, ...],
    dims: tuple[int, int, int, int],
) -> None:
    """Reads and states equal the rule's formulas; slots of others are neither read nor written."""
    sequences = make_sequences(query_lens, kv_lens, [5, 2, 7, 0][: len(query_lens)])
    check(target, rule_of(target, sum(query_lens), dims, dtype), sequences, dims[1:])


def test_long_run(target: Target, dtype: torch.dtype) -> None:
    """Errors do not pile up over hundreds of tokens."""
    check(target, rule_of(target, 300, (1, 2, 16, 4), dtype), make_sequences((300,), (300,), [1]), (2, 16, 4))


@pytest.mark.parametrize("key_dim", [64, 128])
def test_wide_stripes(target: Target, dtype: torch.dtype, key_dim: int) -> None:
    """A large batch of decodes runs in wide stripes, to the same bits as each sequence by itself in narrow ones."""
    count, dims = 80 if target.name == "cuda" else 4, (2, 8, key_dim, 36)
    sequences = make_sequences((1,) * count, tuple(range(1, count + 1)), list(range(count))[::-1])
    rule = rule_of(target, count, dims, dtype)
    check(target, rule, sequences, dims[1:])
    states = target.guarded(make_states(sequences, dims[1:]))
    alone = states.clone()
    reads = rule.run(ops.gated_delta_rule, states, place(target, sequences))
    for index in range(count):
        one = place(target, make_sequences((1,), (index + 1,), [count - 1 - index]))
        part = Rule(rule.qkv[index : index + 1], rule.gates[index : index + 1], *rule[2:])
        assert torch.equal(part.run(ops.gated_delta_rule, alone, one)[0], reads[index])
    torch.testing.assert_close(states, alone, rtol=0, atol=0, equal_nan=True)


def test_wide_stripes_take_any_length(target: Target) -> None:
    """As many sequences as tokens need not mean one token each."""
    count, dims = 80 if target.name == "cuda" else 6, (1, 4, 64, 64)
    lengths = (5, *(0,) * 4, *(1,) * (count - 5))
    sequences = make_sequences(lengths, tuple(length + 2 for length in lengths), list(range(count)))
    check(target, rule_of(target, sum(lengths), dims, torch.float32), sequences, dims[1:])


@pytest.mark.parametrize("dims", [(1, 2, 16, 4), (1, 1, 128, 12)])
def test_cuts_change_nothing(target: Target, dtype: torch.dtype, dims: tuple[int, int, int, int]) -> None:
    """A sequence in one step, in chunks, or token by token has the same reads and the same state, to the last bit."""
    rule = rule_of(target, 21, dims, dtype)

    def run(cuts: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        states = torch.full((2, *dims[1:]), NAN, device=target.device)
        reads = []
        for start, end in pairwise(cuts):
            part = Rule(rule.qkv[start:end], rule.gates[start:end], *rule[2:])
            reads.append(
                part.run(ops.gated_delta_rule, states, place(target, make_sequences((end - start,), (end,), [1])))
            )
        return torch.cat(reads), states[1]

    whole = run([0, 21])
    for cuts in ([0, 4, 5, 18, 21], list(range(22))):
        assert all(torch.equal(ours, exact) for ours, exact in zip(run(cuts), whole, strict=True))


def test_padding(target: Target, dtype: torch.dtype) -> None:
    """Rows of sequences with negative slots, and rows of none, are zero; what is real is as without them."""
    rule, real = rule_of(target, 32, (1, 2, 16, 36), dtype), make_sequences((2, 11), (9, 11), [1, 3])
    states = target.guarded(make_states(real, (2, 16, 36)))
    alone = states.clone()
    start = torch.tensor([0, 2, 13, 14, 23, 23, 23], dtype=torch.int32)
    slots, lens = torch.tensor([1, 3, -1, -1, -1, 0]), torch.tensor([9, 11, 5, 9, 0, 0], dtype=torch.int32)
    padded = (target.guarded(part) for part in (slots, start, lens))
    out = cuda.ops().gated_delta_rule(*rule[:4], states, *padded, rule.key_heads)
    short = Rule(rule.qkv[:13], rule.gates[:13], *rule[2:])
    assert torch.equal(out[:13], short.run(ops.gated_delta_rule, alone, place(target, real)))
    assert not out[13:].any()
    torch.testing.assert_close(states, alone, rtol=0, atol=0, equal_nan=True)
    check_guards(states)


def test_saturated_gates(target: Target) -> None:
    """Gates at the end of their range forget all or nothing, without overflow."""
    gates = torch.tensor([[200.0, 200.0], [-200.0, -200.0], [200.0, -200.0], [-200.0, 200.0]])
    rule = rule_of(target, 4, (1, 1, 8, 8), torch.float32)
    rule = rule._replace(gates=target.guarded(gates), rate=target.guarded(torch.ones(1) * 50))
    sequences = make_sequences((4,), (6,), [0])
    states = make_states(sequences, (1, 8, 8)).to(target.device)
    exact_states = states.cpu().double()
    wide = rule._replace(gates=gates.clamp(-200, 30))  # where exp would overflow in the formula; softplus is the same
    exact = exact_rule(on_host(wide), exact_states, sequences)
    check_error("gated_delta_rule", rule.run(ops.gated_delta_rule, states, place(target, sequences)), exact)
    assert states[0].abs().max() == 0


@pytest.mark.parametrize(("rows", "heads", "dim"), [(1, 1, 16), (5, 3, 37), (300, 4, 128), (3, 2, 256), (0, 2, 8)])
def test_gated_rms_norm(target: Target, dtype: torch.dtype, rows: int, heads: int, dim: int) -> None:
    """Each head is normed by itself, then gated by SiLU; a gate of any size keeps it finite."""
    if dtype is torch.float32 and dim == 37:
        dim = 253  # the longest that no vector divides
    x, weight = target.randn(rows, heads, dim, dtype=dtype), target.randn(dim)
    gate = target.guarded(target.randn(rows, heads * dim, dtype=dtype, seed=1) * 30)
    wide, by = x.double(), gate.double().view(x.shape)
    exact = wide / (wide.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight.double() * by * by.sigmoid()
    for rows_of in (gate, strided(gate), strided(gate, 3)):
        out = ops.gated_rms_norm(x, rows_of, weight, 1e-6)
        assert out.dtype is dtype
        check_error("gated_rms_norm", out, exact.flatten(1))


def test_bad_arguments_are_refused(target: Target) -> None:
    """A wrong shape or type is an error that names the argument, not a wrong result."""
    rule = rule_of(target, 3, (1, 2, 8, 4), torch.float32)
    states, sequences = target.randn(2, 2, 8, 4), place(target, make_sequences((3,), (3,), [0]))
    none = place(target, make_sequences((), (), []))
    assert Rule(rule.qkv[:0], rule.gates[:0], *rule[2:]).run(ops.gated_delta_rule, states, none).shape == (0, 2, 4)
    for match, changed in {
        "qkv has another shape": {"qkv": rule.qkv[:, 1:]},
        "gates has another shape": {"gates": rule.gates[:, 1:]},
        "gates has another dtype": {"gates": rule.gates.half()},
        "rate has another shape": {"rate": rule.rate[:1]},
        "bias has another dtype": {"bias": rule.bias.bfloat16()},
        "no multiple of key_heads": {"key_heads": 3},
    }.items():
        with pytest.raises(RuntimeError, match=match):
            rule._replace(**changed).run(ops.gated_delta_rule, states, sequences)
    for match, other in {
        "states has another dtype": states.double(),
        "states must be contiguous": states.transpose(2, 3),
        "states has keys of 257 elements; the op takes 1 to 256": target.randn(1, 2, 257, 4),
    }.items():
        with pytest.raises(RuntimeError, match=match):
            rule.run(ops.gated_delta_rule, other, sequences)
    with pytest.raises(RuntimeError, match="context_lens has another shape"):
        rule.run(ops.gated_delta_rule, states, sequences._replace(context_lens=sequences.context_lens[:0]))
    x = target.randn(2, 3, 8)
    with pytest.raises(RuntimeError, match="gate has another shape"):
        ops.gated_rms_norm(x, target.randn(2, 23), target.randn(8), 1e-6)
    with pytest.raises(RuntimeError, match="weight has another dtype"):
        ops.gated_rms_norm(x, target.randn(2, 24), target.randn(8).half(), 1e-6)


def test_ops_trace(target: Target, dtype: torch.dtype) -> None:
    """Schemas, declared mutation, fakes and tracing hold up to torch's own checks."""
    with torch.inference_mode(False):
        rule = make_rule(4, 1, 2, 16, 4)
        qkv, gates = (x.to(target.device, dtype) for x in rule[:2])
        rate, bias, states = (x.to(target.device) for x in (rule.rate, rule.bias, randn(2, 2, 16, 4)))
        step = (part.to(target.device) for part in make_sequences((3, 1), (3, 7), [1, 0])[:3])
        check_op(target.ops.gated_delta_rule, (qkv, gates, rate, bias, states, *step, 1))
        x, gate = (randn(*shape).to(target.device, dtype) for shape in ((3, 2, 8), (3, 16)))
        check_op(target.ops.gated_rms_norm, (x, gate, randn(8).to(target.device), 1e-6))
