"""Items' rows into the stream on CUDA, against indexing.

Next: kernels/csrc/embedding_merge.cu
"""

import pytest
import torch

from tessera.items import PlaceholderRange
from tessera_kernels import ops, reference_multimodal
from tests.cuda_ops import Target, check_guards, check_op, strided
from worker.engine.chunk_map import chunk_map

Ranges = list[tuple[int, int]]
# (source, target): none; one row; the whole stream; several, one empty, not in the features' order, one row twice
RANGES: dict[str, tuple[Ranges, Ranges]] = {
    "none": ([], []),
    "one row": ([(4, 5)], [(12, 13)]),
    "all rows": ([(0, 13)], [(0, 13)]),
    "several": ([(5, 8), (9, 9), (0, 4), (3, 4)], [(0, 3), (3, 3), (4, 8), (12, 13)]),
}


def ranges(target: Target, pairs: Ranges) -> torch.Tensor:
    """As the op takes them."""
    return target.guarded(torch.tensor(pairs, dtype=torch.int64).view(-1, 2))


@pytest.mark.parametrize("add", [False, True])
@pytest.mark.parametrize("width", [8, 37, 1032, 4160])
@pytest.mark.parametrize("name", RANGES)
def test_merge(target: Target, dtype: torch.dtype, name: str, width: int, add: bool) -> None:
    """Rows in a range are replaced or added to, bit by bit as indexing does it; the others stay as they are."""
    source, destination = RANGES[name]
    features, before = target.randn(13, width, dtype=dtype, seed=1), target.randn(13, width, dtype=dtype)
    expected = before.clone()
    for (first, last), (start, end) in zip(source, destination, strict=True):
        rows = features[first:last]
        expected[start:end] = (before[start:end].float() + rows.float()).to(dtype) if add else rows
    for columns in (0, 8, 3):
        hidden, rows = target.guarded(before), strided(features, columns) if columns else features
        ops.merge_embeddings(hidden, rows, ranges(target, source), ranges(target, destination), add)
        assert torch.equal(hidden, expected)
        check_guards(hidden)
    wide = strided(before)
    ops.merge_embeddings(wide, features, ranges(target, source), ranges(target, destination), add)
    assert torch.equal(wide, expected)
    torch_hidden = before.clone()
    reference_multimodal.merge_embeddings(
        torch_hidden, features, *(torch.tensor(x) for x in (source, destination)), add
    )
    assert torch.equal(torch_hidden, expected)


@pytest.mark.parametrize(("start", "end"), [(0, 20), (4, 9), (5, 13), (9, 12), (18, 20)])
def test_chunks_of_a_prompt(target: Target, start: int, end: int) -> None:
    """What the chunk map says of a chunk that cuts items is what the op takes."""
    items = [[PlaceholderRange(2, 3), PlaceholderRange(7, 2)], [PlaceholderRange(12, 6)]]
    spans = [span for item in items for span in item]
    rows_of = {
        span.offset + i: [base + i] for base, span in zip((0, 3, 5), spans, strict=True) for i in range(span.length)
    }
    chosen = [item for item in items if any(span.offset < end and span.offset + span.length > start for span in item)]
    whole = target.randn(11, 16)
    features = torch.cat([whole[:5] if item is items[0] else whole[5:] for item in chosen] or [whole[:0]])
    before = target.randn(end - start, 16, seed=1)
    expected = before.clone()
    for token in range(start, end):
        if token in rows_of:
            expected[token - start] = whole[rows_of[token][0]]
    chosen_map = chunk_map(start, end, items)
    ops.merge_embeddings(
        before, features, ranges(target, list(chosen_map.source)), ranges(target, list(chosen_map.destination))
    )
    assert torch.equal(before, expected)


def test_bad_arguments_are_refused(target: Target) -> None:
    """A wrong shape or type is an error that names the argument, not a wrong result."""
    hidden, features, one = target.randn(4, 8), target.randn(3, 8), ranges(target, [(0, 1)])
    for match, arguments in {
        "features has another shape": (hidden, target.randn(3, 9), one, one),
        "features has another dtype": (hidden, features.half(), one, one),
        "source has another dtype": (hidden, features, one.int(), one),
        "target has another shape": (hidden, features, one, ranges(target, [(0, 1), (1, 2)])),
        "hidden must have its last axis contiguous": (target.randn(8, 4).t(), features, one, one),
    }.items():
        with pytest.raises(RuntimeError, match=match):
            ops.merge_embeddings(*arguments)


def test_op_traces(target: Target, dtype: torch.dtype) -> None:
    """Schema, declared mutation, fake and tracing hold up to torch's own checks."""
    with torch.inference_mode(False):
        hidden, features = (torch.randn(n, 8, dtype=dtype, device=target.device) for n in (4, 3))
        source, destination = (torch.tensor(pairs, device=target.device) for pairs in ([[1, 3]], [[0, 2]]))
        check_op(target.ops.merge_embeddings, (hidden, features, source, destination, True))
