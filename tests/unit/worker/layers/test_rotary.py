"""Which frequency turns by which axis.

Next: tests/unit/worker/layers/test_patch_embed.py
"""

import pytest
import torch

from worker.layers.rotary import RotaryTable, inverse_frequencies, mrope_axes


def test_no_sections_turn_by_time() -> None:
    """A family without mRoPE uses the first row alone."""
    assert mrope_axes("none", (), 4) == [0, 0, 0, 0]


def test_chunked_sections_are_bands() -> None:
    """Time, height and width take contiguous bands."""
    assert mrope_axes("chunked", (2, 1, 3), 6) == [0, 0, 1, 2, 2, 2]


def test_chunked_sections_fill_the_head() -> None:
    """Bands that do not add up are an error."""
    with pytest.raises(ValueError, match="mrope_section"):
        mrope_axes("chunked", (2, 1, 3), 8)


def test_interleaved_sections_alternate_until_they_are_used_up() -> None:
    """Height takes each frequency i with i mod 3 = 1 below its section, width those with 2, time the rest."""
    assert mrope_axes("interleaved", (4, 2, 2), 8) == [0, 1, 2, 0, 1, 2, 0, 0]
    assert mrope_axes("interleaved", (3, 3, 2), 8) == [0, 1, 2, 0, 1, 2, 0, 1]
    axes = mrope_axes("interleaved", (24, 20, 20), 64)
    assert [axes.count(axis) for axis in range(3)] == [24, 20, 20]


def test_frequencies() -> None:
    """Frequency i is theta to the power of -2 i / dim."""
    expected = [1.0, 10.0**-0.5, 0.1, 10.0**-1.5]
    assert inverse_frequencies(100.0, 8, torch.device("cpu")).tolist() == pytest.approx(expected)


def test_the_table_mixes_axes() -> None:
    """Each angle comes from its frequency's own row of positions."""
    table = RotaryTable(100.0, 4, [0, 2], torch.device("cpu"))
    cos, sin = table(torch.tensor([[3], [5], [7]]))
    angles = torch.tensor([[3.0, 0.7]])
    assert torch.allclose(cos, angles.cos())
    assert torch.allclose(sin, angles.sin(), atol=1e-6)
