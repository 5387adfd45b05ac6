"""A row compares two series and knows whether its target is met."""

import pytest

from benchmarks.row import Row, compared


def test_ratio_is_that_of_the_medians() -> None:
    """The ratio is median over median, and the spread is that of single rounds."""
    row = compared("decode_1", [20.0, 18.0, 30.0], [10.0, 10.0, 10.0], target=1.8, unit="tok/s")
    assert (row.ours, row.other, row.ratio) == (20.0, 10.0, 2.0)
    assert row.spread == (1.8, 3.0)


@pytest.mark.parametrize(("better", "target", "met"), [("higher", 1.8, True), ("higher", 2.1, False)])
def test_a_speed_up_must_reach_its_target(better: str, target: float, met: bool) -> None:
    """A ratio of 2 meets "at least 1.8" and misses "at least 2.1"."""
    assert Row("a", 2.0, 1.0, target, "x", better).met is met  # type: ignore[arg-type]


@pytest.mark.parametrize(("target", "met"), [(2.0, True), (1.9, False)])
def test_a_cost_must_stay_within_its_target(target: float, met: bool) -> None:
    """A ratio of 2 meets "at most 2.0" and misses "at most 1.9"."""
    assert Row("a", 2.0, 1.0, target, "s", "lower").met is met


def test_share_of_the_limit_is_one_at_the_limit() -> None:
    """More is better: ours over the limit; less is better: the limit over ours."""
    assert Row("a", 15.0, 10.0, 1.0, "tok/s", limit=30.0).of_limit == 0.5
    assert Row("a", 4.0, 5.0, 1.0, "s", "lower", limit=2.0).of_limit == 0.5
    assert Row("a", 4.0, 5.0, 1.0, "s").of_limit is None


def test_rounds_of_both_sides_belong_together() -> None:
    """Series of different lengths were not measured in turn."""
    with pytest.raises(ValueError, match="shorter"):
        compared("a", [1.0, 2.0], [1.0], target=1.0, unit="s")
