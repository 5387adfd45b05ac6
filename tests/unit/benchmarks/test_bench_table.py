"""The table that a person reads."""

import pytest

from benchmarks.row import Row
from benchmarks.table import figure, render

ROWS = (
    Row("first_token_1", 2.0, 2.5, 1.0, "s", "lower", limit=1.5, spread=(0.7, 0.9), note="equal"),
    Row("decode_8", 30.0, 20.0, 2.0, "tok/s"),
)


def test_each_row_is_a_line_below_the_header() -> None:
    """Name, figures, ratio, target, verdict, unit, limit, share, spread and note stand in one line."""
    header, first, second = render(ROWS).splitlines()
    assert header.split()[:5] == ["name", "ours", "other", "ratio", "target"]
    assert first.split() == [
        "first_token_1",
        "2.00",
        "2.50",
        "0.80",
        "≤",
        "1",
        "ok",
        "s",
        "1.50",
        "75%",
        "0.70-0.90",
        "equal",
    ]
    assert second.split() == ["decode_8", "30.0", "20.0", "1.50", "≥", "2", "short", "tok/s"]


def test_columns_are_aligned() -> None:
    """The ratios stand one below the other."""
    lines = render(ROWS).splitlines()
    assert lines[1].index("0.80") == lines[2].index("1.50")


@pytest.mark.parametrize(
    ("value", "text"), [(0.0, "0"), (0.01234, "0.012"), (1.234, "1.23"), (12.34, "12.3"), (1234.5, "1234")]
)
def test_figures_are_short(value: float, text: str) -> None:
    """About three digits, no exponents."""
    assert figure(value) == text
