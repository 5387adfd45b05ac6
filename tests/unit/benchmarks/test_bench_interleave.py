"""Runs take turns."""

from benchmarks.interleave import interleave, median


def test_contestants_run_in_turn_within_each_round() -> None:
    """Ours, other, ours, other: never one side's runs in a row."""
    order: list[str] = []

    def run(name: str):  # type: ignore[no-untyped-def]
        return lambda number: order.append(f"{name}{number}")

    interleave({"ours": run("a"), "other": run("b")}, 3)
    assert order == ["a0", "b0", "a1", "b1", "a2", "b2"]


def test_results_are_kept_by_contestant_and_round() -> None:
    """What a contestant returned in round n is the n-th of its results."""
    results = interleave({"ours": lambda number: number, "other": lambda number: number * 10}, 3)
    assert results == {"ours": [0, 1, 2], "other": [0, 10, 20]}


def test_median_ignores_one_outlier() -> None:
    """One run that something else on the machine disturbed does not move the figure."""
    assert median([1.0, 1.1, 900.0]) == 1.1
    assert median([1.0, 3.0]) == 2.0
