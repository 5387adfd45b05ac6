"""The chunk map: every worked example of the contract, then several ranges, then its inverse."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.engine.chunk_map import chunk_map, item_rows
from worker.engine.sequence import TokenSpan

A = (TokenSpan(0, 4),)
B = (TokenSpan(5, 4),)


@pytest.mark.parametrize(
    ("chunk", "source", "destination"),
    [
        ((0, 33), ((0, 4), (4, 8)), ((0, 4), (5, 9))),
        ((2, 7), ((2, 4), (4, 6)), ((0, 2), (3, 5))),
        ((5, 14), ((0, 4),), ((0, 4),)),
        ((10, 33), (), ()),
        ((1, 3), ((1, 3),), ((0, 2),)),
        ((6, 7), ((1, 2),), ((0, 1),)),
        ((4, 5), (), ()),
        ((3, 4), ((3, 4),), ((0, 1),)),
    ],
)
def test_worked_examples(chunk, source, destination):
    """Rows count over the items that intersect the chunk; the contract's examples hold as they are written."""
    found = chunk_map(*chunk, [A, B])
    assert found.source == source
    assert found.destination == destination


def test_an_item_of_several_ranges():
    """A clip's runs are consecutive rows of one item, wherever they stand in the prompt."""
    clip = (TokenSpan(2, 3), TokenSpan(8, 3), TokenSpan(14, 3))
    assert chunk_map(0, 20, [clip]).source == ((0, 3), (3, 6), (6, 9))
    assert chunk_map(9, 15, [clip]) == (((4, 6), (6, 7)), ((0, 2), (5, 6)))
    assert item_rows(9, 15, clip) == [(4, 0, 2), (6, 5, 1)]


@settings(max_examples=50, deadline=None)
@given(
    lengths=st.lists(st.tuples(st.integers(0, 3), st.integers(1, 5), st.integers(0, 2)), min_size=1, max_size=8),
    cuts=st.sets(st.integers(1, 60), max_size=12),
)
def test_any_cut_gives_each_row_once_and_in_place(lengths, cuts):
    """However a prompt is cut, the chunks together read every row of every item once, at its own token."""
    items: list[list[TokenSpan]] = [[], [], []]
    expected = {}
    offset = 0
    for gap, length, owner in lengths:
        offset += gap
        row = sum(span.length for span in items[owner])
        expected |= {offset + n: (owner, row + n) for n in range(length)}
        items[owner].append(TokenSpan(offset, length))
        offset += length
    bounds = [0, *sorted(cut for cut in cuts if cut < offset), offset]
    found = {}
    for start, end in itertools.pairwise(bounds):
        for owner, ranges in enumerate(items):
            for run in item_rows(start, end, ranges):
                for n in range(run.length):
                    assert start + run.destination + n not in found
                    found[start + run.destination + n] = (owner, run.source + n)
    assert found == expected
