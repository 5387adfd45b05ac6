"""The gated delta rule of long sequences, solved in chunks, against float64 and the recurrent kernel.

Next: kernels/csrc/gated_delta_chunks.cu
"""

from itertools import pairwise

import pytest
import torch

from tessera_kernels import cuda, invariance, ops
from tests.cuda_ops import Target, check_error, check_guards, check_op, strided
from tests.linear_attention import NAN, Rule, exact_rule, make_rule, make_sequences, make_states, randn
from tests.unit.kernels.cuda.test_gated_delta import check, on_host, place, rule_of

# key heads, heads, key_dim, value_dim: keys that fill 64 and 128 rows, and that do not; values of a part of a slice of
# 32, of one, and of two; heads that share keys
DIMS = [(1, 2, 24, 36), (2, 4, 64, 8), (1, 1, 128, 32)]
STEPS = [
    ((64,), (64,)),  # one chunk, fresh
    ((65,), (99,)),  # a token more, on from a state
    ((1, 127, 0, 63, 70), (9, 127, 5, 63, 300)),  # beside a decode, an empty sequence, and one a token too short
    ((200, 64, 1), (300, 64, 1)),  # chunks that begin between windows of rows
]


@pytest.fixture(params=[torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    """Run a test in each storage type that chunks are solved for."""
    return request.param


def run(
    target: Target, rule: Rule, sequences: ops.Sequences, states: torch.Tensor, chunked: bool | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Reads, and states after them; `chunked`: of the op, None for what `ops` chooses."""
    ours, step = target.guarded(states), place(target, sequences)
    if chunked is None:
        reads = rule.run(ops.gated_delta_rule, ours, step)
    else:
        reads = cuda.ops().gated_delta_rule(*rule[:4], ours, *step[:3], rule.key_heads, chunked)
    check_guards(ours)
    return reads, ours


def same(ours: tuple[torch.Tensor, ...], theirs: tuple[torch.Tensor, ...]) -> bool:
    """Whether two runs agree in every bit."""
    return all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize(("query_lens", "kv_lens"), STEPS)
@pytest.mark.parametrize("dims", DIMS)
def test_chunks(
    target: Target,
    dtype: torch.dtype,
    query_lens: tuple[int, ...],
    kv_lens: tuple[int, ...],
    dims: tuple[int, int, int, int],
) -> None:
    """Reads and states equal the rule's formulas, whatever else is in the step; slots of others are left alone."""
    sequences = make_sequences(query_lens, kv_lens, [5, 2, 7, 0, 3][: len(query_lens)])
    check(target, rule_of(target, sum(query_lens), dims, dtype), sequences, dims[1:])


def test_long_run(target: Target, dtype: torch.dtype) -> None:
    """Errors do not pile up over many chunks, with gates that forget next to nothing."""
    rule = rule_of(target, 900, (1, 1, 128, 8), dtype)
    rule = rule._replace(rate=target.guarded(torch.full((1,), 1e-3)))
    check(target, rule, make_sequences((900,), (900,), [1]), (1, 128, 8))


@pytest.mark.parametrize("rate", [0.0, 1.0, 30.0])
def test_decay(target: Target, dtype: torch.dtype, rate: float) -> None:
    """From no decay at all to one that leaves nothing of a token before."""
    rule = rule_of(target, 150, (1, 1, 32, 8), dtype)
    rule = rule._replace(rate=target.guarded(torch.full((1,), rate)))
    check(target, rule, make_sequences((150,), (170,), [1]), (1, 32, 8))


def test_saturated_gates(target: Target, dtype: torch.dtype) -> None:
    """Gates at the ends of their range, in turns, forget all or nothing without overflow."""
    signs = torch.tensor([[1.0, 1.0], [-1.0, -1.0], [1.0, -1.0], [-1.0, 1.0], [1.0, -1.0]]).repeat(20, 1)
    rule = rule_of(target, 100, (1, 1, 16, 8), dtype)
    rule = rule._replace(gates=target.guarded((signs * 200).to(dtype)), rate=target.guarded(torch.full((1,), 3e36)))
    sequences = make_sequences((100,), (120,), [0])
    states = make_states(sequences, (1, 16, 8))
    exact_states = states.double()
    wide = rule._replace(gates=(signs * 200).clamp(max=30))  # softplus is the same, and exp does not overflow
    exact = exact_rule(on_host(wide), exact_states, sequences, dtype)
    reads, ours = run(target, rule, sequences, states)
    check_error("gated_delta_rule", reads, exact)
    check_error("gated_delta_rule, state", ours[0], exact_states[0])


@pytest.mark.parametrize("dims", DIMS)
def test_each_sequence_has_one_kernel(target: Target, dtype: torch.dtype, dims: tuple[int, int, int, int]) -> None:
    """Beside long sequences, short ones have the bits of a step without them; the long ones are solved in chunks."""
    lens = (63, 1, 64, 5)
    rule, sequences = rule_of(target, sum(lens), dims, dtype), make_sequences(lens, (70, 1, 70, 9), [3, 1, 0, 2])
    states = make_states(sequences, dims[1:])
    mixed, plain = (run(target, rule, sequences, states, chunked) for chunked in (None, False))
    short = torch.ones(sum(lens), dtype=torch.bool)
    short[64:128] = False
    assert same((mixed[0][short], mixed[1][1:4]), (plain[0][short], plain[1][1:4]))
    assert not same((mixed[1][:1],), (plain[1][:1],))


@pytest.mark.parametrize("case", ["decodes", "short", "invariant"])
def test_when_chunks_stay_out(target: Target, dtype: torch.dtype, case: str) -> None:
    """Decodes, short prompts and everything in the batch-invariant mode run on the recurrent kernel alone."""
    lens = {"decodes": (1, 1, 1), "short": (63, 40), "invariant": (130, 1)}[case]
    dims = (1, 1, 32, 16)
    rule = rule_of(target, sum(lens), dims, dtype)
    sequences = make_sequences(lens, tuple(length + 3 for length in lens), list(range(len(lens))))
    states = make_states(sequences, dims[1:])
    with invariance.using(case == "invariant"):
        found = run(target, rule, sequences, states)
    assert same(found, run(target, rule, sequences, states, chunked=False))
    if case == "invariant":
        assert not same(found, run(target, rule, sequences, states))


@pytest.mark.parametrize("dims", [(1, 1, 12, 16), (1, 1, 136, 16), (1, 2, 16, 7), (1, 2, 16, 6)])
def test_what_chunks_do_not_take(target: Target, dtype: torch.dtype, dims: tuple[int, int, int, int]) -> None:
    """Keys that vectors do not divide or that are too long, odd values and rows that are not aligned: recurrent."""
    rule, sequences = rule_of(target, 70, dims, dtype), make_sequences((70,), (80,), [0])
    states = make_states(sequences, dims[1:])
    assert same(run(target, rule, sequences, states, True), run(target, rule, sequences, states, False))


def test_fp32_stays_recurrent(target: Target) -> None:
    """In fp32 a long sequence has the bits of the recurrent kernel."""
    rule, sequences = rule_of(target, 70, (1, 1, 32, 16), torch.float32), make_sequences((70,), (80,), [0])
    states = make_states(sequences, (1, 32, 16))
    assert same(run(target, rule, sequences, states), run(target, rule, sequences, states, False))


def test_cuts(target: Target, dtype: torch.dtype) -> None:
    """A prompt cut where a chunk ends has the same bits; cut elsewhere, the same numbers but for rounding."""
    dims, tokens = (1, 2, 32, 16), 230
    rule = rule_of(target, tokens, dims, dtype)

    def pieces(cuts: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        states = torch.full((2, *dims[1:]), NAN, device=target.device)
        reads = []
        for start, end in pairwise(cuts):
            part = Rule(rule.qkv[start:end], rule.gates[start:end], *rule[2:])
            step = place(target, make_sequences((end - start,), (end,), [1]))
            reads.append(part.run(ops.gated_delta_rule, states, step))
        return torch.cat(reads), states[1]

    whole = pieces([0, tokens])
    assert same(pieces([0, 64, tokens]), whole)
    assert same(pieces([0, 128, tokens]), whole)
    reads, state = pieces([0, 70, 71, 150, tokens])
    check_error("gated_delta_rule, state", state, whole[1].double())
    check_error("gated_delta_rule", reads, whole[0].double())


def test_padding(target: Target, dtype: torch.dtype) -> None:
    """Rows of long sequences with negative slots, and rows of none, are zero; what is real is as without them."""
    rule, real = rule_of(target, 250, (1, 2, 16, 36), dtype), make_sequences((66,), (80,), [1])
    states = target.guarded(make_states(real, (2, 16, 36)))
    alone = states.clone()
    start = torch.tensor([0, 66, 166, 166], dtype=torch.int32)
    slots, lens = torch.tensor([1, -1, -1]), torch.tensor([80, 100, 0], dtype=torch.int32)
    padded = (target.guarded(part) for part in (slots, start, lens))
    out = cuda.ops().gated_delta_rule(*rule[:4], states, *padded, rule.key_heads, True)
    short = Rule(rule.qkv[:66], rule.gates[:66], *rule[2:])
    assert torch.equal(out[:66], short.run(ops.gated_delta_rule, alone, place(target, real)))
    assert not out[66:].any()
    torch.testing.assert_close(states, alone, rtol=0, atol=0, equal_nan=True)
    check_guards(states)


def test_rows_lie_apart(target: Target, dtype: torch.dtype) -> None:
    """Rows as slices of wider ones, and rows side by side, give the same bits."""
    rule, sequences = rule_of(target, 70, (1, 1, 32, 16), dtype), make_sequences((70,), (80,), [0])
    states = make_states(sequences, (1, 32, 16))
    expected = run(target, rule, sequences, states)
    for qkv in (rule.qkv.contiguous(), strided(rule.qkv, 40)):
        assert same(run(target, rule._replace(qkv=qkv), sequences, states), expected)


def test_nothing(target: Target, dtype: torch.dtype) -> None:
    """A step without tokens or sequences is no error, in chunks or not."""
    rule = rule_of(target, 3, (1, 2, 8, 4), dtype)
    none = Rule(rule.qkv[:0], rule.gates[:0], *rule[2:])
    states = target.randn(2, 2, 8, 4)
    for step in (make_sequences((), (), []), make_sequences((0, 0), (3, 4), [1, 0])):
        reads = cuda.ops().gated_delta_rule(*none[:4], states, *place(target, step)[:3], 1, True)
        assert reads.shape == (0, 2, 4)
    rest = target.guarded(torch.zeros(1, dtype=torch.int32))
    slots, lens = torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int32)
    reads = cuda.ops().gated_delta_rule(*rule[:4], states, target.guarded(slots), rest, target.guarded(lens), 1, True)
    assert not reads.any()


def test_op_traces(target: Target, dtype: torch.dtype) -> None:
    """Schema, declared mutation, fake and tracing hold up to torch's own checks where chunks are solved."""
    with torch.inference_mode(False):
        rule = make_rule(66, 1, 1, 16, 4)
        qkv, gates = (x.contiguous().to(target.device, dtype) for x in rule[:2])
        rate, bias, states = (x.to(target.device) for x in (rule.rate, rule.bias, randn(2, 1, 16, 4)))
        step = (part.to(target.device) for part in make_sequences((65, 1), (65, 7), [1, 0])[:3])
        check_op(target.ops.gated_delta_rule, (qkv, gates, rate, bias, states, *step, 1, True))
