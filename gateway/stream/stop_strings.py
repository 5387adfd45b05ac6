"""Finds stop strings in a text that comes in pieces, and holds back what may become one.

Next: choice.py.
"""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """Stop strings, prepared once for all choices of a request.

    Args:
        strings: none of them empty.
    """

    def __init__(self, strings: Sequence[str] = ()) -> None:
        assert all(strings), "an empty stop string is refused at the edge"
        self.strings = tuple(dict.fromkeys(strings))
        self.first_characters = frozenset(s[0] for s in self.strings)
        self.borders = tuple(_borders(s) for s in self.strings)


class StopMatcher:
    """One choice's search.

    The string that is complete first ends the text, and of those that complete with the same character the longest:
    so the result does not depend on how the text was cut into pieces.

    Attributes:
        matched: the stop string that was found.
    """

    def __init__(self, stops: StopStrings) -> None:
        self._stops = stops
        self._lengths = [0] * len(stops.strings)  # how much of each string the text ends with
        self._held = ""
        self.matched: str | None = None

    def push(self, text: str) -> str:
        """Return the text that is now certain to stand before any stop string."""
        if not self._held and self._stops.first_characters.isdisjoint(text):
            return text
        pending = self._held + text
        for i, character in enumerate(text):
            if found := self._advance(character):
                self.matched = found
                end = len(self._held) + i + 1
                self._held = ""
                return pending[: end - len(found)]
        certain = len(pending) - max(self._lengths)
        self._held = pending[certain:]
        return pending[:certain]

    def finish(self) -> str:
        """Return what was held back when no more text comes."""
        held, self._held = self._held, ""
        return held

    def _advance(self, character: str) -> str:
        """Take one more character; return the longest string that it completes."""
        found = ""
        for k, string in enumerate(self._stops.strings):
            length, borders = self._lengths[k], self._stops.borders[k]
            while length and string[length] != character:
                length = borders[length]
            length += string[length] == character
            self._lengths[k] = length
            if length == len(string) and length > len(found):
                found = string
        return found


def _borders(string: str) -> list[int]:
    """Return, for each length, the longest proper prefix that is also a suffix of that much of the string.

    Source: Knuth, Morris, Pratt 1977.
    """
    borders = [0] * (len(string) + 1)
    for i in range(1, len(string)):
        length = borders[i]
        while length and string[length] != string[i]:
            length = borders[length]
        borders[i + 1] = length + (string[length] == string[i])
    return borders
