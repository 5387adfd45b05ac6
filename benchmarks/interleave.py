"""Runs that take turns, and the middle of what they gave.

Next: row.py
"""

import statistics
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

T = TypeVar("T")


def interleave(contestants: Mapping[str, Callable[[int], T]], rounds: int) -> dict[str, list[T]]:
    """Run each contestant once a round, in turn: ours, other, ours, other.

    Args:
        contestants: by name, in their order within a round; each gets the round's number.
        rounds: at least one.

    Returns:
        What each returned, round by round.
    """
    assert rounds > 0
    results: dict[str, list[T]] = {name: [] for name in contestants}
    for number in range(rounds):
        for name, run in contestants.items():
            results[name].append(run(number))
    return results


def median(values: Iterable[float]) -> float:
    """Return the middle value, or the mean of the two middle ones."""
    return statistics.median(values)
