"""What a pool process answers is input: checked before it is believed."""

from typing import Any

import numpy as np
import pytest

from gateway.media.item import build_item, result_place
from tessera.modality import Modality


def answer(**changes: object) -> dict[str, Any]:
    """A right answer for a clip, changed."""
    plan = {
        "total_frames": 9,
        "source_fps": 3.0,
        "duration_s": 3.0,
        "frame_indices": [0, 8],
        "timestamps": [0.0, 8 / 3],
        "rule": "default",
        "dropped_frames": 0,
    }
    return {
        "array": {"offset": 64, "shape": [2, 32, 64, 3]},
        "grid_thw": [1, 2, 4],
        "content_hash": "ab" * 32,
        "source_size": [30, 60],
        "min_pixels": 1,
        "max_pixels": 9999,
        "plan": plan,
    } | changes


def test_a_right_answer_becomes_an_item() -> None:
    """Pixels, grid, hash, times and budgets in their types."""
    place = result_place(answer(), 64 + 2 * 32 * 64 * 3)
    assert place == (64, (2, 32, 64, 3))
    built = build_item(Modality.VIDEO, answer(), np.zeros(place[1], np.uint8))
    assert (built.item.grid_thw, built.item.timestamps, built.modality) == ((1, 2, 4), (0.0, 8 / 3), Modality.VIDEO)
    assert (built.source_size, built.effective_max_pixels, built.size_bytes) == ((30, 60), 9999, 2 * 32 * 64 * 3)


@pytest.mark.parametrize(
    "place",
    [
        {"offset": -64, "shape": [2, 32, 64, 3]},
        {"offset": 0, "shape": [2, 32, 64, 4]},
        {"offset": 0, "shape": [2, -32, -64, 3]},
        {"offset": 0, "shape": [1 << 40, 32, 64, 3]},
        {"offset": 1 << 60, "shape": [2, 32, 64, 3]},
        {"offset": 0.5, "shape": [2, 32, 64, 3]},
        {"offset": 0, "shape": [3]},
        {"offset": True, "shape": [2, 32, 64, 3]},
    ],
)
def test_a_place_outside_of_the_shared_memory_is_refused(place: dict[str, object]) -> None:
    """However the numbers are bent."""
    with pytest.raises(ValueError, match="outside"):
        result_place(answer(array=place), 1 << 20)


@pytest.mark.parametrize(
    "changes",
    [
        {"plan": None},
        {"content_hash": "ab"},
        {"content_hash": "zz" * 32},
        {"grid_thw": [1, 2]},
        {"grid_thw": [0, 2, 4]},
        {"grid_thw": [3, 2, 4]},
        {"source_size": [1, "2"]},
        {"plan": answer()["plan"] | {"timestamps": [0.0]}},
        {"plan": answer()["plan"] | {"source_fps": float("nan")}},
    ],
)
def test_numbers_that_do_not_fit_are_refused(changes: dict[str, object]) -> None:
    """A process that was taken over cannot make an item that breaks what follows."""
    with pytest.raises(ValueError):
        build_item(Modality.VIDEO, answer(**changes), np.zeros((2, 32, 64, 3), np.uint8))
