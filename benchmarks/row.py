"""One line of the table: a ratio, its target, and how near to the machine's own limit it comes.

Next: table.py
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from benchmarks.interleave import median

Better = Literal["higher", "lower"]


@dataclass(frozen=True)
class Row:
    """One measured question.

    Attributes:
        name: of the question.
        ours: our figure, in `unit`.
        other: what it is compared with, in the same unit.
        target: the ratio to reach.
        unit: of both figures.
        better: whether the ratio should be at least the target ("higher") or at most ("lower").
        limit: the figure that the machine itself allows, in `unit`; None where there is none.
        spread: least and greatest ratio of single rounds.
        note: what else was seen.
    """

    name: str
    ours: float
    other: float
    target: float
    unit: str
    better: Better = "higher"
    limit: float | None = None
    spread: tuple[float, float] | None = None
    note: str = ""

    @property
    def ratio(self) -> float:
        """Ours over the other's."""
        return self.ours / self.other

    @property
    def met(self) -> bool:
        """Whether the ratio reaches its target."""
        return self.ratio >= self.target if self.better == "higher" else self.ratio <= self.target

    @property
    def of_limit(self) -> float | None:
        """Share of the machine's limit that ours reaches, 1.0 = all of it."""
        if self.limit is None:
            return None
        return self.ours / self.limit if self.better == "higher" else self.limit / self.ours

    def to_json(self) -> dict[str, Any]:
        """Return all of it as JSON has it."""
        return asdict(self) | {"ratio": self.ratio, "met": self.met, "of_limit": self.of_limit}


def compared(
    name: str,
    ours: Sequence[float],
    other: Sequence[float],
    *,
    target: float,
    unit: str,
    better: Better = "higher",
    limit: float | None = None,
    note: str = "",
) -> Row:
    """Return the row of two series that were measured in turn: medians, and the spread of the rounds' own ratios.

    Args:
        name: of the question.
        ours: our figure in each round.
        other: the other's, in the same rounds.
        target: see Row; likewise the rest.
        unit: of both.
        better: direction.
        limit: of the machine.
        note: what else was seen.
    """
    ratios = [a / b for a, b in zip(ours, other, strict=True)]
    return Row(name, median(ours), median(other), target, unit, better, limit, (min(ratios), max(ratios)), note)
