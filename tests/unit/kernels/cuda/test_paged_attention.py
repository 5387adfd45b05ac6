"""Attention over the paged cache on CUDA against float64.

Next: kernels/csrc/paged_attention.cu
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest
import torch

from tessera_kernels import ops
from tests.cuda_ops import NAN, Target, check_error, check_guards, check_op

SPLIT = 128
UNUSED = 1 << 30  # a block that is not there

# new tokens and cache length of each sequence: a first token, less, as much and more than a piece, a block and a split,
# then prompts, chunks, nothing at all, and the padding of a captured batch
DECODED = ((1, 1), (1, 15), (1, 16), (1, 17), (1, 128), (1, 300))
MIXED = ((40, 40), (1, 33), (0, 9), (1, 0), (2, 70), (1, 300), (17, 181), (0, 0), (1, 1))


@dataclass(frozen=True)
class Paged:
    """Sequences whose keys and values lie in scattered blocks of caches that are NaN elsewhere.

    Args:
        query: (n, num_heads, head_dim), where `rows` says.
        caches: keys and values.
        tables: (num_seqs, max_blocks).
        lens: new tokens and cache length of each sequence.
        first: rows before the first sequence.
    """

    query: torch.Tensor
    caches: tuple[torch.Tensor, torch.Tensor]
    tables: torch.Tensor
    lens: tuple[tuple[int, int], ...]
    first: int = 0

    @property
    def scale(self) -> float:
        """Of the scores; they reach about ten."""
        return 2 * self.query.shape[2] ** -0.5

    def attend(
        self, target: Target, split: int = SPLIT, invariant: bool = False, bounds: tuple[int, int] | None = None
    ) -> torch.Tensor:
        """Run the op."""
        query_lens, kv_lens = zip(*self.lens, strict=True)
        start = torch.tensor([self.first, *query_lens]).cumsum(0).int()
        lengths = target.guarded(start), target.guarded(torch.tensor(kv_lens, dtype=torch.int32))
        longest = bounds or (max(query_lens), max(kv_lens))
        return target.ops.paged_attention(
            self.query, *self.caches, self.tables, *lengths, *longest, self.scale, split, invariant
        )

    def exact(self) -> torch.Tensor:
        """The formula in float64; rows that see nothing, and those of no sequence, are zeros."""
        out = torch.zeros(self.query.shape, dtype=torch.float64)
        row = self.first
        for index, (new, length) in enumerate(self.lens):
            query = self.query[row : row + new].double().cpu().transpose(0, 1)
            key, value = (part.double().cpu() for part in self.sequence(index, length))
            key, value = (part.repeat_interleave(query.shape[0] // part.shape[0], 0) for part in (key, value))
            hidden = torch.arange(length) > torch.arange(length - new, length)[:, None]
            scores = (query @ key.mT * self.scale).masked_fill(hidden, -torch.inf)
            weights = scores.softmax(-1).masked_fill(hidden, 0)
            out[row : row + new] = (weights @ value).transpose(0, 1)
            row += new
        return out

    def sequence(self, index: int, length: int) -> tuple[torch.Tensor, ...]:
        """A sequence's keys and values, (num_kv_heads, length, head_dim) each."""
        count = -(-length // self.caches[0].shape[2])
        blocks = self.tables[index, :count].long()
        return tuple(cache[blocks].transpose(0, 1).flatten(1, 2)[:, :length] for cache in self.caches)

    def spans(self, index: int, spans: Sequence[tuple[int, int]]) -> "Paged":
        """Runs of a sequence's new tokens, as so many sequences of one batch; or of its own."""
        new, length = self.lens[index]
        row = self.first + sum(count for count, _ in self.lens[:index])
        query = torch.cat([self.query[row + start : row + end] for start, end in spans])
        lens = tuple((end - start, length - new + end) for start, end in spans)
        tables = self.tables[index : index + 1].expand(len(spans), -1)
        return replace(self, query=query, tables=tables, lens=lens, first=0)


def made(
    target: Target,
    dtype: torch.dtype,
    heads: tuple[int, int, int],
    lens: Sequence[tuple[int, int]],
    block_size: int = 16,
    padding: tuple[int, int] = (0, 0),
) -> Paged:
    """Sequences of random numbers.

    Args:
        target: where.
        dtype: of all.
        heads: query heads, key/value heads, head_dim.
        lens: see `Paged`.
        block_size: of the caches.
        padding: rows before the first sequence and behind the last.
    """
    num_heads, kv_heads, dim = heads
    counts = [-(-length // block_size) for _, length in lens]
    order = torch.randperm(sum(counts) + 2, generator=torch.Generator().manual_seed(sum(counts))).int()
    tables = torch.full((len(lens), max(counts) + 1), UNUSED, dtype=torch.int32)
    caches = [torch.full((sum(counts) + 2, kv_heads, block_size, dim), NAN, dtype=dtype) for _ in range(2)]
    used = 0
    for index, ((_, length), count) in enumerate(zip(lens, counts, strict=True)):
        tables[index, :count] = order[used : used + count]
        slots = torch.arange(length)
        for number, cache in enumerate(caches):
            rows = target.randn(length, kv_heads, dim, dtype=dtype, seed=2 * index + number).cpu()
            cache[tables[index, slots // block_size].long(), :, slots % block_size] = rows
        used += count
    query = target.randn(sum(padding) + sum(new for new, _ in lens), num_heads, dim, dtype=dtype, seed=99)
    return Paged(
        query, (target.guarded(caches[0]), target.guarded(caches[1])), target.guarded(tables), tuple(lens), padding[0]
    )


@pytest.mark.parametrize("heads", [(2, 2, 64), (4, 2, 128), (4, 1, 80), (9, 1, 72), (8, 1, 256), (20, 1, 64)])
def test_mixed_batch(target: Target, dtype: torch.dtype, heads: tuple[int, int, int]) -> None:
    """Decoded tokens, prompts, chunks and padding of one batch each attend to their own, and never to unwritten slots.

    Rows of no sequence, and tokens that see nothing, are zeros.
    """
    paged = made(target, dtype, heads, MIXED, padding=(2, 3))
    ours = paged.attend(target)
    assert ours.dtype is dtype and ours.is_contiguous()
    check_error("paged_attention", ours, paged.exact())
    assert not ours[:2].any() and not ours[-3:].any()
    check_guards(*paged.caches)


@pytest.mark.parametrize("heads", [(4, 4, 64), (16, 2, 128), (8, 1, 256)])
@pytest.mark.parametrize("split", [32, 1024])
def test_decode(target: Target, dtype: torch.dtype, heads: tuple[int, int, int], split: int) -> None:
    """One new token a sequence, over one split or many, some of them shorter than a block's warps."""
    paged = made(target, dtype, heads, DECODED, block_size=32)
    check_error("paged_attention decode", paged.attend(target, split), paged.exact())


def test_long_context(target: Target, dtype: torch.dtype) -> None:
    """Splits grow with the distance from the first key; a token gets the same bits from one block and from many."""
    paged = made(target, dtype, (4, 2, 64), ((2, 1100),))
    full = paged.attend(target, 16, invariant=True)
    check_error("paged_attention, 1100 keys", full, paged.exact())
    assert torch.equal(paged.spans(0, [(0, 1), (1, 2)]).attend(target, 16), full)


@pytest.mark.parametrize(("dim", "block_size"), [(64, 3), (33, 16), (36, 5), (200, 8), (8, 16), (256, 24)])
def test_any_block_size_and_head_dim(target: Target, dtype: torch.dtype, dim: int, block_size: int) -> None:
    """Sizes that tensor cores do not take run without them."""
    paged = made(target, dtype, (6, 2, dim), ((1, 33), (7, 20), (1, 150)), block_size)
    check_error("paged_attention, odd sizes", paged.attend(target), paged.exact())


@pytest.mark.parametrize("columns", [8, 3])
def test_query_inside_a_fused_projection(target: Target, dtype: torch.dtype, columns: int) -> None:
    """Queries may lie among keys, values and gates, aligned or not; only a head's own elements are neighbours."""
    paged = made(target, dtype, (4, 2, 64), ((1, 40), (9, 30)))
    wide = torch.full((10, 6, 64 + columns), NAN, dtype=dtype, device=target.device)
    wide[:, 1:5, :64] = paged.query
    strided = replace(paged, query=wide[:, 1:5, :64])
    assert not strided.query.is_contiguous()
    assert torch.equal(strided.attend(target), paged.attend(target))


def test_large_scores(target: Target, dtype: torch.dtype) -> None:
    """Scores in the hundreds give the weights of their differences."""
    paged = made(target, dtype, (2, 1, 64), ((1, 200), (20, 20)))
    paged.query.mul_(32)
    check_error("paged_attention, large scores", paged.attend(target), paged.exact(), 20)


def test_bounds_may_be_loose(target: Target, dtype: torch.dtype) -> None:
    """What only sizes the grid and the workspace, as a captured batch's bounds, changes no bit of the result."""
    paged = made(target, dtype, (4, 2, 64), ((1, 40), (3, 30), (1, 170)))
    expected = paged.attend(target)
    assert torch.equal(paged.attend(target, bounds=(500, 100000)), expected)
    decoded = made(target, dtype, (4, 2, 64), ((1, 40), (1, 130)))
    assert torch.equal(decoded.attend(target, bounds=(500, 171)), decoded.attend(target))


def test_keys_beyond_the_bound_are_not_read(target: Target, dtype: torch.dtype) -> None:
    """A bound that is too small hides keys, and leads to no access beyond the workspace or the tables."""
    paged = made(target, dtype, (4, 2, 64), ((1, 170), (5, 300)))
    seen = replace(paged, lens=((1, 100), (5, 104)))
    exact = seen.exact()[:2]
    check_error("paged_attention", paged.attend(target, 32, bounds=(5, 100))[:2], exact)
    check_error("paged_attention", paged.attend(target, 32, invariant=True, bounds=(5, 100))[:2], exact)


@pytest.mark.parametrize("heads", [(4, 2, 64), (5, 1, 128), (2, 1, 256)])
def test_rows_do_not_depend_on_the_batch(target: Target, dtype: torch.dtype, heads: tuple[int, int, int]) -> None:
    """A sequence gets the same bits alone as among others."""
    paged = made(target, dtype, heads, MIXED)
    full = paged.attend(target)
    row = 0
    for index, (new, _) in enumerate(paged.lens):
        alone = paged.spans(index, [(0, new)]).attend(target)
        assert torch.equal(alone, full[row : row + new])
        row += new


@pytest.mark.parametrize(("heads", "new"), [((4, 2, 64), 40), ((5, 1, 128), 37), ((12, 1, 256), 12)])
@pytest.mark.parametrize("invariant", [False, True])
def test_rows_do_not_depend_on_the_chunks(
    target: Target, dtype: torch.dtype, heads: tuple[int, int, int], new: int, invariant: bool
) -> None:
    """A token gets the same bits decoded, in chunks of any length, or in the prompt; where not asked for, in chunks."""
    paged = made(target, dtype, heads, ((new, 60),))
    full = paged.attend(target, 32, invariant)
    check_error("paged_attention, invariant" if invariant else "paged_attention", full, paged.exact())
    for chunk in (1, 5) if invariant else (2, 9):
        spans = [(start, min(start + chunk, new)) for start in range(0, new, chunk)]
        if not invariant and spans[-1][1] - spans[-1][0] == 1:
            spans[-2:] = [(spans[-2][0], new)]
        assert torch.equal(paged.spans(0, spans).attend(target, 32, invariant), full), chunk


def test_future_tokens_do_not_show(target: Target, dtype: torch.dtype) -> None:
    """What a chunk's later tokens hold changes no bit of its earlier ones."""
    paged = made(target, dtype, (4, 2, 64), ((30, 100),))
    before = paged.attend(target)
    block = int(paged.tables[0, 90 // 16])
    for cache in paged.caches:
        cache[block, :, 90 % 16 :] = 1000.0
    after = paged.attend(target)
    assert torch.equal(before[:20], after[:20]) and not torch.equal(before[20:], after[20:])


def test_nothing_to_do(target: Target, dtype: torch.dtype) -> None:
    """No rows, no sequences and sequences without rows are fine."""
    paged = made(target, dtype, (4, 2, 64), ((0, 5), (0, 0)))
    assert paged.attend(target).shape == (0, 4, 64)
    padded = made(target, dtype, (4, 2, 64), ((0, 5),), padding=(1, 2))
    assert not padded.attend(target).any()
    empty = torch.zeros(0, dtype=torch.int32, device=target.device)
    out = target.ops.paged_attention(
        padded.query, *padded.caches, padded.tables[:0], torch.zeros_like(padded.tables[0, :1]), empty, 1, 1, 1.0, 16,
        False,
    )  # fmt: skip
    assert out.shape == (3, 4, 64) and not out.any()


def test_the_layers_op_uses_it(target: Target, dtype: torch.dtype) -> None:
    """`ops.paged_attention` gives what the CUDA op gives, with bounds from the lengths on the host."""
    paged = made(target, dtype, (4, 2, 64), ((1, 40), (9, 30), (1, 300)))
    query_lens, kv_lens = zip(*paged.lens, strict=True)
    start = torch.tensor([0, *query_lens], device=target.device).cumsum(0).int()
    context = torch.tensor(kv_lens, dtype=torch.int32, device=target.device)
    ours = ops.paged_attention(
        paged.query, *paged.caches, paged.tables, start, context, query_lens, kv_lens, paged.scale
    )
    assert torch.equal(ours, paged.attend(target, 256))


def test_bad_arguments_are_refused(target: Target) -> None:
    """A wrong shape, type or size is an error that names the argument."""
    paged = made(target, torch.bfloat16, (4, 2, 64), ((1, 20), (2, 20)))
    start = torch.tensor([0, 1, 3], dtype=torch.int32, device=target.device)
    context = torch.tensor([20, 20], dtype=torch.int32, device=target.device)
    good = {
        "query": paged.query, "key_cache": paged.caches[0], "value_cache": paged.caches[1],
        "block_tables": paged.tables, "query_start": start, "context_lens": context, "max_query_len": 2,
        "max_context_len": 20, "scale": 0.1, "split_size": 64, "invariant": False,
    }  # fmt: skip
    target.ops.paged_attention(**good)
    wrong = [
        ({"query": paged.query[:, :3]}, "query: 3 heads over 2"),
        ({"query": paged.query.flatten(1)}, "query must have three axes"),
        ({"query": paged.query.float()}, "key_cache has another dtype"),
        ({"query": paged.query[..., ::2]}, "query must have its last axis contiguous"),
        ({"key_cache": paged.caches[0][..., :32].contiguous()}, "value_cache has another shape"),
        ({"query": paged.query[..., :32]}, "key_cache has another head_dim"),
        ({"key_cache": paged.caches[0].transpose(1, 2)}, "key_cache must be contiguous"),
        ({"block_tables": paged.tables.long()}, "block_tables has another dtype"),
        ({"query_start": start[:2]}, "query_start has another shape"),
        ({"context_lens": context.float()}, "context_lens has another dtype"),
        ({"scale": 0.0}, "scale must be positive"),
        ({"split_size": 40}, "split_size must be a multiple of 16"),
        ({"max_context_len": -1}, "max_query_len and max_context_len are counts"),
    ]
    for change, message in wrong:
        with pytest.raises(RuntimeError, match=message):
            target.ops.paged_attention(**{**good, **change})
    wide = made(target, torch.bfloat16, (2, 1, 264), ((1, 20),))
    with pytest.raises(RuntimeError, match="heads of 264 elements"):
        wide.attend(target)


def test_op_traces(target: Target, dtype: torch.dtype) -> None:
    """Schema, fake and tracing hold up to torch's own checks."""
    with torch.inference_mode(False):
        paged = made(target, dtype, (4, 2, 64), ((1, 20), (2, 20)))
        start = torch.tensor([0, 1, 3], dtype=torch.int32, device=target.device)
        context = torch.tensor([20, 20], dtype=torch.int32, device=target.device)
        arguments = (
            torch.randn(3, 6, 64, device=target.device).to(dtype)[:, :4], *paged.caches, paged.tables, start, context,
            2, 20, 0.1, 16, False,
        )  # fmt: skip
        check_op(target.ops.paged_attention, arguments)
