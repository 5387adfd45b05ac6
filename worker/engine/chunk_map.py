"""Which rows of the items' embeddings go where in a chunk of the prompt.

A chunk may begin and end inside an item; an item may own several ranges. Rows are found by ranges alone, never by
token ids.

Next: worker/engine/batch.py
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol


class Span(Protocol):
    """A half-open run of prompt tokens."""

    @property
    def offset(self) -> int:
        """First token."""

    @property
    def length(self) -> int:
        """Number of tokens."""


class RowRun(NamedTuple):
    """Rows [source, source + length) of one item go to rows [destination, destination + length) of the chunk."""

    source: int
    destination: int
    length: int


class ChunkMap(NamedTuple):
    """Half-open row pairs: into the concatenated rows of all intersecting items, and into the chunk."""

    source: tuple[tuple[int, int], ...]
    destination: tuple[tuple[int, int], ...]


def item_rows(start: int, end: int, ranges: Iterable[Span]) -> list[RowRun]:
    """Return where one item's rows go in the chunk [start, end) of the prompt.

    Args:
        start: first prompt token of the chunk.
        end: first one after it.
        ranges: the item's runs, ascending.

    Returns:
        One run for each range that the chunk touches, ascending.
    """
    runs = []
    base = 0
    for span in ranges:
        first, last = max(span.offset, start), min(span.offset + span.length, end)
        if first < last:
            runs.append(RowRun(base + first - span.offset, first - start, last - first))
        base += span.length
    return runs


def chunk_map(start: int, end: int, items: Sequence[Sequence[Span]]) -> ChunkMap:
    """Return source and destination rows of the chunk [start, end) of the prompt.

    Args:
        start: first prompt token of the chunk.
        end: first one after it.
        items: ranges of every item, items ordered by first offset.

    Returns:
        Source rows count over the items that intersect the chunk, concatenated; destination rows count from `start`.
    """
    pairs: list[tuple[int, int, int]] = []
    base = 0
    for ranges in items:
        runs = item_rows(start, end, ranges)
        pairs += [(run.destination, base + run.source, run.length) for run in runs]
        if runs:
            base += sum(span.length for span in ranges)
    pairs.sort()
    return ChunkMap(
        tuple((source, source + length) for _, source, length in pairs),
        tuple((destination, destination + length) for destination, _, length in pairs),
    )
