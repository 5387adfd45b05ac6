"""Rows as text.

Next: results.py
"""

from collections.abc import Sequence

from benchmarks.row import Row

HEADER = ("name", "ours", "other", "ratio", "target", "", "unit", "limit", "of limit", "rounds", "note")
_LEFT = {0, 5, 6, 10}


def render(rows: Sequence[Row]) -> str:
    """Return the table, a line a row, columns aligned."""
    cells = [HEADER, *(_cells(row) for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(HEADER))]
    return "\n".join(_line(line, widths) for line in cells)


def _cells(row: Row) -> tuple[str, ...]:
    sign = "≥" if row.better == "higher" else "≤"
    share = row.of_limit
    return (
        row.name,
        figure(row.ours),
        figure(row.other),
        f"{row.ratio:.2f}",
        f"{sign} {row.target:g}",
        "ok" if row.met else "short",
        row.unit,
        "" if row.limit is None else figure(row.limit),
        "" if share is None else f"{share:.0%}",
        "" if row.spread is None else f"{row.spread[0]:.2f}-{row.spread[1]:.2f}",
        row.note,
    )


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = [
        text.ljust(width) if column in _LEFT else text.rjust(width)
        for column, (text, width) in enumerate(zip(cells, widths, strict=True))
    ]
    return "  ".join(padded).rstrip()


def figure(value: float) -> str:
    """Return three significant digits, without an exponent."""
    if value == 0 or abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}" if abs(value) >= 1 else f"{value:.3f}"
