"""Contestants in processes of their own."""

import pytest

from benchmarks.process import Contestant, ContestantError

pytestmark = pytest.mark.slow


class Counter:
    """Counts calls; lives in the child."""

    def __init__(self, start: int) -> None:
        self.value = start

    def add(self, step: int) -> int:
        """Add and tell."""
        self.value += step
        return self.value

    def fail(self) -> None:
        """Raise."""
        raise RuntimeError("broken inside")


@pytest.fixture(scope="module")
def contestant():  # type: ignore[no-untyped-def]
    """A child that holds a Counter."""
    child = Contestant(f"{__name__}:Counter", 10)
    yield child
    child.close()


def test_state_lives_between_calls(contestant: Contestant) -> None:
    """The object is made once and each call goes to it."""
    first = contestant.call("add", 1)
    assert contestant.call("add", 2) == first + 2


def test_an_error_inside_comes_with_its_traceback(contestant: Contestant) -> None:
    """What fails there fails here, and the contestant goes on."""
    with pytest.raises(ContestantError, match="broken inside"):
        contestant.call("fail")
    assert contestant.call("add", 0) > 0


def test_a_contestant_that_cannot_be_made_says_why() -> None:
    """The traceback of its constructor comes back."""
    with pytest.raises(ContestantError, match="no_such_module"):
        Contestant("no_such_module:Thing")
