"""Keeps what users type from becoming special tokens while a chat template passes it on.

A template sees its callers' strings and writes its own special tokens between them; in the rendered text the two look
alike. So, before rendering, each spelled-out special token in a caller's string is replaced by one private-use
character that occurs nowhere else; what is found in the rendered text is then the template's own, and the characters
are turned back afterwards. One character, because templates strip, split and compare strings: it survives all that.

Two strings could also spell a token together where the template puts them side by side. A string that ends like the
beginning of a token therefore gets the first character of that ending replaced, and one that begins like the end of a
token the last character of that beginning.

Next: chat_template.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from tessera.errors import InvalidArgument

MAX_DEPTH = 64
_PRIVATE_USE = (range(0xF0000, 0xFFFFE), range(0x100000, 0x10FFFE), range(0xE000, 0xF900))
_PRIVATE_USE_PATTERN = re.compile("[\U000f0000-\U000ffffd\U00100000-\U0010fffd\ue000-\uf8ff]")


class SpecialSpellings:
    """The spellings that must stay text; made once for a tokenizer.

    Args:
        spellings: special tokens as they are written.
    """

    def __init__(self, spellings: Iterable[str]) -> None:
        longest_first = sorted(set(spellings), key=len, reverse=True)
        self.pattern = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        self.beginnings = frozenset(s[:i] for s in longest_first for i in range(1, len(s)))
        self.endings = frozenset(s[i:] for s in longest_first for i in range(1, len(s)))
        self.reach = max(map(len, longest_first), default=1) - 1


class Shield:
    """The replacements of one request.

    Args:
        spellings: what to replace.
        values: all that the template will see: strings, lists, dicts; and its own source.
    """

    def __init__(self, spellings: SpecialSpellings, *values: Any) -> None:
        self._spellings = spellings
        self._free = _unused_characters(values)
        self._stand_ins: dict[str, str] = {}

    def cover(self, value: Any, depth: int = 0) -> Any:
        """Return `value` with all strings in it, keys included, made harmless.

        Raises:
            InvalidArgument: nested too deeply, or no private-use character is left.
        """
        _check_depth(depth)
        if isinstance(value, str):
            return self._cover_text(value)
        if isinstance(value, dict):
            return {self.cover(key, depth + 1): self.cover(entry, depth + 1) for key, entry in value.items()}
        if isinstance(value, list | tuple):
            return [self.cover(entry, depth + 1) for entry in value]
        return value

    def uncover(self, text: str) -> str:
        """Return `text` with every replacement turned back."""
        for original, stand_in in self._stand_ins.items():
            text = text.replace(stand_in, original)
        return text

    def _cover_text(self, text: str) -> str:
        text = self._spellings.pattern.sub(lambda match: self._stand_in(match[0]), text)
        return self._cover_beginning(self._cover_ending(text))

    def _cover_ending(self, text: str) -> str:
        # Templates strip white space, so what counts as the end is what stands before it.
        end = len(text.rstrip())
        for start in range(max(end - self._spellings.reach, 0), end):
            if text[start:end] in self._spellings.beginnings:
                text = text[:start] + self._stand_in(text[start]) + text[start + 1 :]
        return text

    def _cover_beginning(self, text: str) -> str:
        start = len(text) - len(text.lstrip())
        for end in range(start + 1, min(start + self._spellings.reach, len(text)) + 1):
            if text[start:end] in self._spellings.endings:
                text = text[: end - 1] + self._stand_in(text[end - 1]) + text[end:]
        return text

    def _stand_in(self, original: str) -> str:
        if original not in self._stand_ins:
            free = next(self._free, None)
            if free is None:
                raise InvalidArgument(
                    "The text uses every private-use character of Unicode.",
                    reason="PRIVATE_USE_EXHAUSTED",
                    field="messages",
                )
            self._stand_ins[original] = free
        return self._stand_ins[original]


def _unused_characters(values: Any) -> Iterator[str]:
    """Yield private-use characters that occur in none of the strings; looks at them only when first asked."""
    used = {character for text in _strings(values) for character in _PRIVATE_USE_PATTERN.findall(text)}
    for block in _PRIVATE_USE:
        yield from (chr(code) for code in block if chr(code) not in used)


def _strings(value: Any, depth: int = 0) -> Iterator[str]:
    _check_depth(depth)
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, entry in value.items():
            yield from _strings(key, depth + 1)
            yield from _strings(entry, depth + 1)
    elif isinstance(value, list | tuple):
        for entry in value:
            yield from _strings(entry, depth + 1)


def _check_depth(depth: int) -> None:
    if depth > MAX_DEPTH:
        # Messages are flat: only arguments can be deep.
        raise InvalidArgument(
            f"Nested more than {MAX_DEPTH} levels deep.", reason="NESTED_TOO_DEEPLY", field="template_args"
        )
