"""mRoPE positions from ranges and grids.

Next: tests/unit/worker/layers/test_rotary.py
"""

import numpy as np
import pytest

from tessera.errors import InvalidArgument
from tessera.items import PlaceholderRange
from tests.positions import positions_of
from worker.layers.positions import Item, cut_segments, mrope_segments


def mrope_positions(length: int, items: list[Item], merge: int) -> tuple[np.ndarray, int]:
    """Positions of a whole prompt, and of the token after it."""
    segments, following = mrope_segments(length, items, merge)
    return positions_of(segments, length), following


def test_text_advances_all_rows() -> None:
    """Without items the three rows count the tokens."""
    positions, following = mrope_positions(4, [], 2)
    assert np.array_equal(positions, np.tile(np.arange(4), (3, 1)))
    assert following == 4


def test_an_empty_prompt() -> None:
    """No tokens have no positions, and the first one gets 0."""
    positions, following = mrope_positions(0, [], 2)
    assert positions.shape == (3, 0)
    assert following == 0


def test_an_image_stands_still_in_time() -> None:
    """Two text tokens, an image of 2 x 3 tokens, one text token: it goes on from the longer side."""
    positions, following = mrope_positions(9, [("image", [PlaceholderRange(2, 6)], (1, 4, 6))], 2)
    assert positions.tolist() == [
        [0, 1, 2, 2, 2, 2, 2, 2, 5],
        [0, 1, 2, 2, 2, 3, 3, 3, 5],
        [0, 1, 2, 3, 4, 2, 3, 4, 5],
    ]
    assert following == 6


def test_a_clip_restarts_at_each_of_its_runs() -> None:
    """Every temporal patch is placed like an image of its own, with the timestamps' text between."""
    ranges = [PlaceholderRange(1, 2), PlaceholderRange(4, 2)]
    positions, following = mrope_positions(6, [("video", ranges, (2, 2, 4))], 2)
    assert positions.tolist() == [[0, 1, 1, 3, 4, 4], [0, 1, 1, 3, 4, 4], [0, 1, 2, 3, 4, 5]]
    assert following == 6


def test_frames_may_share_a_range() -> None:
    """A run that holds two frames is cut by the frames' length, not by the run."""
    together, _ = mrope_positions(4, [("video", [PlaceholderRange(0, 4)], (2, 2, 4))], 2)
    apart, _ = mrope_positions(4, [("video", [PlaceholderRange(0, 2), PlaceholderRange(2, 2)], (2, 2, 4))], 2)
    assert np.array_equal(together, apart)


def test_a_tall_image_at_the_end_sets_the_next_position() -> None:
    """Generation goes on from the largest position on any row, plus one."""
    _, following = mrope_positions(5, [("image", [PlaceholderRange(1, 4)], (1, 8, 2))], 2)
    assert following == 5


@pytest.mark.parametrize(
    ("length", "items"),
    [
        (3, [("image", [PlaceholderRange(0, 4)], (1, 4, 4))]),
        (9, [("image", [PlaceholderRange(0, 3)], (1, 4, 4))]),
        (9, [("video", [PlaceholderRange(0, 3), PlaceholderRange(4, 1)], (2, 2, 4))]),
        (9, [("image", [PlaceholderRange(0, 4)], (1, 4, 4)), ("image", [PlaceholderRange(3, 4)], (1, 4, 4))]),
    ],
)
def test_ranges_that_do_not_fit_are_refused(length: int, items: list) -> None:
    """A range outside the prompt, of the wrong length, cut inside a frame, or over another is an error."""
    with pytest.raises(InvalidArgument) as caught:
        mrope_positions(length, items, 2)
    assert caught.value.reason == "RANGE_INVALID"


@pytest.mark.parametrize("start", range(17))
def test_a_cut_prompt_stands_where_it_stood(start: int) -> None:
    """Any chunk of a prompt, at any row of a step, has the positions that the whole prompt gives it."""
    items: list[Item] = [
        ("image", [PlaceholderRange(2, 6)], (1, 4, 6)),
        ("video", [PlaceholderRange(9, 4), PlaceholderRange(14, 2)], (3, 2, 4)),
    ]
    segments, _ = mrope_segments(17, items, 2)
    whole = positions_of(segments, 17)
    for end in range(start + 1, 18):
        part = cut_segments(segments, start, end, 3)
        assert part[:, 1].sum() == end - start and part[0, 0] == 3 and (part[:, 1] > 0).all()
        step = np.concatenate([[(0, 3, 50, 0, 0, 0)], part, [(3 + end - start, 1, 90, 0, 0, 1)]])
        positions = positions_of(step, 4 + end - start)
        assert np.array_equal(positions[:, 3:-1], whole[:, start:end])
        assert positions[:, [0, 1, 2, -1]].tolist() == [[50, 51, 52, 91]] * 3
    assert segments.tolist() == mrope_segments(17, items, 2)[0].tolist(), "the prompt's own segments are not changed"


def test_decodes_stand_behind_their_prompts() -> None:
    """A step of one token a sequence, each a segment."""
    assert positions_of(np.array([(0, 1, 7, 0, 0, 0), (1, 1, 3, 0, 0, 2)]), 2).tolist() == [[7, 5]] * 3
