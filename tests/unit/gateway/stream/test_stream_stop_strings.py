"""Stop strings: found wherever the text is cut, and nothing that may be one is shown."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.stream.stop_strings import StopMatcher, StopStrings

STOPS = st.lists(st.text("ab", min_size=1, max_size=5), max_size=4)


def run(stops: list[str], pieces: list[str]) -> tuple[list[str], str | None]:
    """The pieces shown, and the match."""
    matcher = StopMatcher(StopStrings(stops))
    shown = []
    for piece in pieces:
        shown.append(matcher.push(piece))
        if matcher.matched is not None:
            return shown, matcher.matched
    return [*shown, matcher.finish()], None


def oracle(stops: list[str], text: str) -> tuple[str, str | None]:
    """The first end of any stop string, and of those that end there the longest."""
    for end in range(1, len(text) + 1):
        matches = [stop for stop in stops if text[:end].endswith(stop)]
        if matches:
            longest = max(matches, key=len)
            return text[: end - len(longest)], longest
    return text, None


@given(STOPS, st.lists(st.text("abc", max_size=6), max_size=8))
def test_the_cut_does_not_depend_on_the_pieces(stops: list[str], pieces: list[str]) -> None:
    """Any split of a text gives the same text and match."""
    shown, matched = run(stops, pieces)
    assert ("".join(shown), matched) == oracle(stops, "".join(pieces))


@given(STOPS, st.text("abc", max_size=20))
def test_no_more_is_held_back_than_may_become_a_stop(stops: list[str], text: str) -> None:
    """After each character, what is not shown is a beginning of a stop string, and the longest one at the end."""
    matcher = StopMatcher(StopStrings(stops))
    shown = ""
    for i, character in enumerate(text):
        shown += matcher.push(character)
        if matcher.matched is not None:
            return
        held = text[len(shown) : i + 1]
        beginnings = {stop[:n] for stop in stops for n in range(1, len(stop))}
        assert held == max(
            (text[j : i + 1] for j in range(i + 1) if text[j : i + 1] in beginnings), key=len, default=""
        )


def test_without_stop_strings_text_passes() -> None:
    """No stop strings, no delay."""
    assert run([], ["ab", "c"]) == (["ab", "c", ""], None)


def test_what_was_held_back_comes_when_it_was_no_stop() -> None:
    """A beginning that goes on otherwise is shown whole."""
    assert run(["STOP"], ["xST", "O", "x", "ST"]) == (["x", "", "STOx", "", "ST"], None)


def test_a_stop_across_pieces_is_cut_out() -> None:
    """Of a stop string in two pieces neither half is shown."""
    assert run(["\n\n"], ["a\n", "\nb"]) == (["a", ""], "\n\n")


@pytest.mark.slow
def test_long_self_similar_stops_cost_linear_time() -> None:
    """The worst case of sixteen long stop strings stays a bounded cost for each character."""
    stops = StopStrings(["a" * (255 - i) + "b" for i in range(16)])
    matcher = StopMatcher(stops)
    start = time.perf_counter()
    for _ in range(2_000):
        matcher.push("aaaa")
    assert time.perf_counter() - start < 2
