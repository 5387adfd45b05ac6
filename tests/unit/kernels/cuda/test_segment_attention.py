"""Attention inside segments on CUDA against float64.

Next: kernels/csrc/segment_attention.cu
"""

from collections.abc import Sequence
from itertools import accumulate

import pytest
import torch

from tessera_kernels import ops, reference_attention
from tests.cuda_ops import LIMITS, NAN, Target, check_error, check_op

# Weights between the two products are rounded to the storage type as well.
FACTOR = 2.0
# one row; none anywhere; a tile's ends (32, 64, 128) and beside them; odd lengths, with empty ones among them
MIXES = [(1,), (), (0, 0), (64, 128), (63, 1, 65, 0, 127), (0, 129, 0, 33), (1, 1, 2, 3, 200, 5)]
TENSOR_CORE_DIMS = (8, 16, 64, 72, 80, 128)
MANY = [1, 0, 7, 64, 0, 0, 3] * 11  # more segments than a warp has lanes


def starts_of(target: Target, lens: Sequence[int], dtype: torch.dtype = torch.int32) -> torch.Tensor:
    """First row of each segment, and the end."""
    return target.guarded(torch.tensor([0, *accumulate(lens)], dtype=dtype))


def exact_attention(
    parts: Sequence[torch.Tensor], lens: Sequence[int], scale: float, causal: bool = False
) -> torch.Tensor:
    """The formula in float64, row by row of each segment; zeros behind the last."""
    query, key, value = (part.cpu().double().transpose(0, 1) for part in parts)
    out, start = torch.zeros_like(query), 0
    for length in lens:
        rows = slice(start, start := start + length)
        scores = query[:, rows] @ key[:, rows].mT * scale
        if causal:
            scores.masked_fill_(torch.ones_like(scores, dtype=torch.bool).triu(1), -torch.inf)
        out[:, rows] = scores.softmax(-1) @ value[:, rows]
    return out.transpose(0, 1)


def heads(target: Target, rows: int, dim: int, dtype: torch.dtype, num_heads: int = 2) -> list[torch.Tensor]:
    """Queries, keys and values, each with NaN around it."""
    return [target.randn(rows, num_heads, dim, dtype=dtype, seed=seed) for seed in range(3)]


def many_heads(target: Target) -> int:
    """Heads that fill the device with tall tiles of two segments."""
    return 4 if target.device.type == "cpu" else torch.cuda.get_device_properties(target.device).multi_processor_count


def check(target: Target, parts: Sequence[torch.Tensor], lens: Sequence[int], scale: float, causal: bool) -> None:
    """Compare one call with the formula."""
    ours = target.ops.segment_attention(*parts, starts_of(target, lens), scale, causal)
    assert ours.dtype is parts[0].dtype and ours.is_contiguous()
    check_error("segment_attention", ours, exact_attention(parts, lens, scale, causal), FACTOR)


@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("lens", MIXES, ids=str)
def test_segments_of_all_lengths(target: Target, dtype: torch.dtype, lens: tuple[int, ...], causal: bool) -> None:
    """A row sees its own segment alone, and in causal attention nothing behind itself."""
    check(target, heads(target, sum(lens), 64, dtype), lens, 0.125, causal)


@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("dim", [*TENSOR_CORE_DIMS, 88, 20, 136, 256])
def test_heads_of_all_sizes(target: Target, dtype: torch.dtype, dim: int, causal: bool) -> None:
    """Heads of 1 to 256 elements are taken, whether or not tensor cores take them."""
    lens = (5, 70)
    check(target, heads(target, sum(lens), dim, dtype), lens, dim**-0.5, causal)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
@pytest.mark.parametrize("dim", [64, 72, 128])
def test_tall_tiles(target: Target, dtype: torch.dtype, dim: int) -> None:
    """Long segments of many heads, for which tiles are taller, give the same formula."""
    lens = (129, 130)
    check(target, heads(target, sum(lens), dim, dtype, many_heads(target)), lens, dim**-0.5, dim == 72)


def test_many_segments(target: Target, dtype: torch.dtype) -> None:
    """Tiles are found among more segments than a warp has lanes, most of them empty or short."""
    check(target, heads(target, sum(MANY), 16, dtype, num_heads=1), MANY, 0.25, False)
    lens, parts = [1, *[0] * 1100, 1], heads(target, 1250, 8, dtype, num_heads=1)
    # zeros behind the starts would be segments whose tiles begin soonest, if they were looked at
    starts = torch.nn.functional.pad(starts_of(target, lens), (0, 2000))[: len(lens) + 1]
    ours = target.ops.segment_attention(*parts, starts, 0.25, False)
    check_error("segment_attention", ours, exact_attention(parts, lens, 0.25), FACTOR)


def test_padded_heads(target: Target, dtype: torch.dtype) -> None:
    """Heads of 72 padded to 80 with zeros, at the scale of 72, are those of 72 and zeros."""
    parts = heads(target, 90, 72, dtype)
    padded = [target.guarded(torch.nn.functional.pad(part.cpu(), (0, 8))) for part in parts]
    starts = starts_of(target, (50, 40))
    ours = target.ops.segment_attention(*padded, starts, 72**-0.5, False)
    assert torch.equal(ours[..., :72], target.ops.segment_attention(*parts, starts, 72**-0.5, False))
    assert not ours[..., 72:].any()


@pytest.mark.parametrize("dim", [64, 72])
@pytest.mark.parametrize("layout", ["(3, n, heads, dim)", "(n, 3, heads, dim)", "(n, heads, 3, dim)", "rows apart"])
def test_strided_views(target: Target, dtype: torch.dtype, layout: str, dim: int) -> None:
    """Queries, keys and values are read where they lie, side by side in one tensor or in rows that lie apart."""
    lens, stacked = (3, 95), torch.stack([part.cpu() for part in heads(target, 98, dim, dtype)])
    if layout == "rows apart":
        parts = []
        for part in stacked:
            wide = torch.full((98, 5, dim + 8), NAN, dtype=dtype)
            wide[:, 1:3, 8:] = part
            parts.append(target.guarded(wide)[:, 1:3, 8:])
    else:
        axis = layout[1:-1].split(", ").index("3")
        parts = list(target.guarded(stacked.movedim(0, axis).contiguous()).unbind(axis))
    check(target, parts, lens, dim**-0.5, False)


@pytest.mark.parametrize("which", ["query", "key", "value", "heads", "start"])
def test_misaligned_rows(target: Target, dtype: torch.dtype, which: str) -> None:
    """Rows that no 16-byte word begins with are read as well: steps of rows or heads are odd, or the first is off."""
    parts = heads(target, 40, 64, dtype)
    shape, first = {"heads": ((40, 2, 65), 0), "start": ((40, 2, 72), 1)}.get(which, ((40, 131), 0))
    wide = target.randn(*shape, dtype=dtype)
    odd = wide[..., first : first + 64] if len(shape) == 3 else wide[:, :128].unflatten(1, (2, 64))
    parts[{"key": 1, "value": 2}.get(which, 0)] = odd
    check(target, parts, (7, 33), 0.125, True)


@pytest.mark.parametrize("index_dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("dim", [64, 20])
@pytest.mark.parametrize(("lens", "rows"), [((30, 0, 9), 300), ((), 70), ((0,), 1), ((128, 64), 193)])
def test_rows_behind_the_last_segment_are_zeros(
    target: Target, dtype: torch.dtype, index_dtype: torch.dtype, lens: tuple[int, ...], rows: int, dim: int
) -> None:
    """What pads a captured batch is not read, and its output is zeros."""
    parts = heads(target, rows, dim, dtype)
    for part in parts:
        part[sum(lens) :] = NAN
    ours = target.ops.segment_attention(*parts, starts_of(target, lens, index_dtype), 0.125, False)
    assert not ours[sum(lens) :].any()
    exact = exact_attention([part[: sum(lens)] for part in parts], lens, 0.125)
    check_error("segment_attention", ours[: sum(lens)], exact, FACTOR)


@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("dim", [64, 128, 20])
def test_neighbours_change_no_bit(target: Target, dtype: torch.dtype, dim: int, causal: bool) -> None:
    """A segment's rows are bit for bit the same alone, and beside others so many that tiles are taller."""
    parts, lens = heads(target, 288, dim, dtype, many_heads(target)), (152, 136)
    full = target.ops.segment_attention(*parts, starts_of(target, lens), 0.2, causal)
    alone = [part[152:, :1] for part in parts]
    ours = target.ops.segment_attention(*alone, starts_of(target, [136]), 0.2, causal)
    assert torch.equal(ours, full[152:, :1])


@pytest.mark.parametrize("dim", [64, 20])
def test_large_scores(target: Target, dtype: torch.dtype, dim: int) -> None:
    """Scores far beyond what an exponential of theirs could hold give the softmax all the same."""
    query, key, value = heads(target, 150, dim, dtype)
    query, key = (target.guarded(part.cpu() * 60) for part in (query, key))
    for causal in (False, True):
        ours = target.ops.segment_attention(query, key, value, starts_of(target, [150]), 1.0, causal)
        exact = exact_attention((query, key, value), [150], 1.0, causal)
        check_error("segment_attention, large", ours, exact, 200 if dtype is torch.float32 else FACTOR)


def test_equal_rows_give_the_mean(target: Target, dtype: torch.dtype) -> None:
    """Where all scores are equal, as for zeros, the output is the mean of the values."""
    zeros, value = target.guarded(torch.zeros(200, 1, 64, dtype=dtype)), target.randn(200, 1, 64, dtype=dtype)
    ours = target.ops.segment_attention(zeros, zeros, value, starts_of(target, [200]), 1.0, False)
    mean = value.cpu().double().mean(0).expand(200, 1, 64)
    assert (ours.cpu().double() - mean).abs().max() < 4 * LIMITS[dtype]


def test_bad_arguments_are_refused(target: Target, dtype: torch.dtype) -> None:
    """A wrong shape, type or scale is an error that names the argument."""
    query, key, value = heads(target, 6, 16, dtype)
    starts = starts_of(target, [6])
    refused = [
        ((query, key[:5], value, starts, 1.0), "key has another shape"),
        ((query, key, value[:, :1], starts, 1.0), "value has another shape"),
        ((query, key, value.double(), starts, 1.0), "value has another dtype"),
        ((query.transpose(1, 2), key, value, starts, 1.0), "query must have its last axis contiguous"),
        ((query[0], key[0], value[0], starts, 1.0), "query must have three axes"),
        ((query, key, value, starts.short(), 1.0), "starts must be int32 or int64"),
        ((query, key, value, starts[:0], 1.0), "starts must be the first rows"),
        ((query, key, value, starts[None], 1.0), "starts must be the first rows"),
        ((query, key, value, starts, 0.0), "scale must be positive"),
        ((query, key, value, starts, NAN), "scale must be positive"),
        ((*(target.randn(2, 1, 257, dtype=dtype) for _ in range(3)), starts, 1.0), "heads of 257 elements"),
    ]
    for arguments, message in refused:
        with pytest.raises(RuntimeError, match=message):
            target.ops.segment_attention(*arguments, False)


def test_no_heads_and_no_rows(target: Target, dtype: torch.dtype) -> None:
    """Nothing in gives nothing out."""
    for shape in ((0, 2, 64), (5, 0, 64)):
        parts = [torch.empty(shape, dtype=dtype, device=target.device) for _ in range(3)]
        assert target.ops.segment_attention(*parts, starts_of(target, [shape[0]]), 1.0, False).shape == shape


def test_ops_pick_the_kernel(target: Target, dtype: torch.dtype) -> None:
    """`ops.segment_attention` and `ops.varlen_attention` run it where the library takes the tensors."""
    lens, parts = (20, 0, 45), heads(target, 65, 64, dtype)
    expected = target.ops.segment_attention(*parts, starts_of(target, lens), 0.125, True)
    assert torch.equal(ops.varlen_attention(*parts, starts_of(target, lens), 0.125, causal=True), expected)
    assert torch.equal(ops.segment_attention(torch.stack(parts, dim=1), lens, 0.125, causal=True), expected)
    assert not torch.equal(reference_attention.varlen_attention(*parts, starts_of(target, lens), 0.125), expected)


def test_op_traces(target: Target, dtype: torch.dtype) -> None:
    """Schema, fake and tracing hold up to torch's own checks."""
    with torch.inference_mode(False):
        query, key, value = torch.randn(9, 3, 2, 64, dtype=dtype, device=target.device).unbind(1)
        starts = torch.tensor([0, 4, 9], dtype=torch.int32, device=target.device)
        check_op(target.ops.segment_attention, (query, key, value, starts, 0.3, False))
