"""The causal convolution on CUDA against float64.

Next: kernels/csrc/causal_conv.cu
"""

from itertools import pairwise

import pytest
import torch

from tessera_kernels import cuda, ops
from tests.cuda_ops import Target, check_error, check_guards, check_op, strided
from tests.linear_attention import STEPS, exact_conv, make_sequences, make_states, randn

# sequences around the taps and the tile of 8 rows; then one after another that none of these begins on a tile's edge
LENGTHS = (*range(1, 6), 8, 0, 11, 12, 17)


def place(target: Target, sequences: ops.Sequences) -> ops.Sequences:
    """The same on the device, amid large numbers; behind the first rows lie zeros, which come before any row."""
    start = sequences.query_start
    behind = target.guarded(torch.cat((start, start.new_zeros(64))))[: start.shape[0]]
    return ops.Sequences(
        target.guarded(sequences.slots), behind, target.guarded(sequences.context_lens), *sequences[3:]
    )


def check(target: Target, sequences: ops.Sequences, channels: int, taps: int, dtype: torch.dtype) -> None:
    """Compare a step's outputs with float64, and its states bit by bit."""
    x, weight = (
        target.randn(*shape, dtype=dtype) for shape in ((sum(sequences.query_lens), channels), (taps, channels))
    )
    states = make_states(sequences, (channels, taps - 1), dtype)
    exact_states = states.double()
    exact = exact_conv(x.cpu(), weight.cpu(), exact_states, sequences)
    for rows in (x, strided(x), strided(x, 3)):
        ours = target.guarded(states)
        out = ops.causal_conv(rows, weight, ours, place(target, sequences))
        check_error("causal_conv", out, exact)
        torch.testing.assert_close(ours.cpu().double(), exact_states, rtol=0, atol=0, equal_nan=True)
        check_guards(ours)


@pytest.mark.parametrize(("query_lens", "kv_lens"), STEPS)
@pytest.mark.parametrize(("channels", "taps"), [(37, 4), (40, 2), (72, 3), (1032, 4)])
def test_causal_conv(
    target: Target, dtype: torch.dtype, query_lens: tuple[int, ...], kv_lens: tuple[int, ...], channels: int, taps: int
) -> None:
    """Each row sees its own sequence's last inputs, across steps too; slots of others are neither read nor written."""
    check(target, make_sequences(query_lens, kv_lens, [5, 2, 7, 0][: len(query_lens)]), channels, taps, dtype)


@pytest.mark.parametrize("carried", [0, 100])
def test_lengths_around_the_tile(target: Target, dtype: torch.dtype, carried: int) -> None:
    """Sequences may begin and end anywhere in a tile of rows, be shorter than the taps, and hold no rows."""
    kv_lens = tuple(length + carried for length in LENGTHS)
    check(target, make_sequences(LENGTHS, kv_lens, list(range(len(LENGTHS)))[::-1]), 48, 4, dtype)


def test_many_sequences(target: Target) -> None:
    """The sequence of a row is found among more than a warp asks for at once, empty ones between them."""
    lengths = tuple((9, 0, 1, 5, 0)[index % 5] for index in range(91))
    sequences = make_sequences(lengths, tuple(length + 1 for length in lengths), list(range(91)))
    check(target, sequences, 3, 4, torch.float32)


def test_padding(target: Target, dtype: torch.dtype) -> None:
    """Rows of sequences with negative slots, and rows of none, are zero; what is real is as without them."""
    x, weight = target.randn(32, 24, dtype=dtype), target.randn(4, 24, dtype=dtype)
    states = target.guarded(make_states(make_sequences((2, 11), (9, 11), [1, 3]), (24, 3), dtype))
    alone = states.clone()
    start = torch.tensor([0, 2, 13, 14, 23, 23, 23], dtype=torch.int32)
    slots, lens = torch.tensor([1, 3, -1, -1, -1, 0]), torch.tensor([9, 11, 5, 9, 0, 0], dtype=torch.int32)
    out = cuda.ops().causal_conv(x, weight, states, *(target.guarded(part) for part in (slots, start, lens)))
    expected = ops.causal_conv(x[:13], weight, alone, place(target, make_sequences((2, 11), (9, 11), [1, 3])))
    assert torch.equal(out[:13], expected)
    assert not out[13:].any()
    torch.testing.assert_close(states, alone, rtol=0, atol=0, equal_nan=True)
    check_guards(states)


def test_cuts_change_nothing(target: Target, dtype: torch.dtype) -> None:
    """A sequence in one step, in chunks, or token by token has the same outputs and carried inputs, to the last bit."""
    x, weight = target.randn(21, 40, dtype=dtype), target.randn(4, 40, dtype=dtype)

    def run(cuts: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        states = torch.full((2, 40, 3), float("nan"), dtype=dtype, device=target.device)
        outs = []
        for start, end in pairwise(cuts):
            step = place(target, make_sequences((end - start,), (end,), [1]))
            outs.append(ops.causal_conv(x[start:end], weight, states, step))
        return torch.cat(outs), states[1]

    whole = run([0, 21])
    for cuts in ([0, 2, 3, 12, 21], list(range(22))):
        assert all(torch.equal(ours, exact) for ours, exact in zip(run(cuts), whole, strict=True))


def test_large_inputs_stay_finite(target: Target) -> None:
    """SiLU of a large negative sum is zero, of a large positive one the sum."""
    x = target.guarded(torch.tensor([[200.0, -200.0, -1e30, 1e30]]))
    weight, states = target.guarded(torch.ones(2, 4)), target.guarded(torch.zeros(1, 4, 1))
    out = ops.causal_conv(x, weight, states, place(target, make_sequences((1,), (1,), [0])))
    assert out.tolist() == [[200.0, 0.0, 0.0, pytest.approx(1e30)]]


def test_bad_arguments_are_refused(target: Target) -> None:
    """A wrong shape or type is an error that names the argument, not a wrong result."""
    x, weight, states = target.randn(3, 8), target.randn(4, 8), target.randn(2, 8, 3)
    sequences = place(target, make_sequences((3,), (3,), [0]))
    none = place(target, make_sequences((), (), []))
    assert ops.causal_conv(x[:0], weight, states, none).shape == (0, 8)
    for match, arguments in {
        "weight has another shape": (x, target.randn(4, 9), states),
        "weight has another dtype": (x, weight.bfloat16(), states),
        "weight has 5 taps; the op takes 2 to 4": (x, target.randn(5, 8), target.randn(2, 8, 4)),
        "states has another shape": (x, weight, target.randn(2, 8, 4)),
        "states has another dtype": (x, weight, states.half()),
        "states must be contiguous": (x, weight, target.randn(2, 3, 8).transpose(1, 2)),
        "x must have its last axis contiguous": (target.randn(8, 3).t(), weight, states),
    }.items():
        with pytest.raises(RuntimeError, match=match):
            ops.causal_conv(*arguments, sequences)
    with pytest.raises(RuntimeError, match="query_start has another shape"):
        ops.causal_conv(x, weight, states, sequences._replace(query_start=sequences.query_start[:1]))
    with pytest.raises(RuntimeError, match="slots has another dtype"):
        ops.causal_conv(x, weight, states, sequences._replace(slots=sequences.slots.int()))


def test_op_traces(target: Target, dtype: torch.dtype) -> None:
    """Schema, declared mutation, fake and tracing hold up to torch's own checks."""
    with torch.inference_mode(False):
        sequences = make_sequences((3, 1), (3, 7), [1, 0])
        x, weight, states = (randn(*shape).to(target.device, dtype) for shape in ((4, 16), (4, 16), (2, 16, 3)))
        step = tuple(part.to(target.device) for part in sequences[:3])
        check_op(target.ops.causal_conv, (x, weight, states, *step))
