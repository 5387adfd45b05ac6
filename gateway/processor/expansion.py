"""Builds a prompt out of text, ids and placeholder runs, noting where each run lands.

Text between two special tokens is encoded whole, however many pieces it was put together from: byte-pair merges see
what they would see in the finished string. Offsets are counted while the ids are laid down, never searched for.

Next: multimodal.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from tessera.errors import InvalidArgument
from tessera.items import MultimodalItem, PlaceholderRange
from tessera.modality import Modality


@dataclass(frozen=True)
class Marker:
    """A placeholder that stands for one whole item, before expansion."""

    modality: Modality


Piece = str | tuple[int, ...] | Marker
"""Part of a prompt: plain text, ids taken as they are, or a marker."""


class PromptBuilder:
    """Lays down a prompt from left to right.

    Args:
        encode: plain text to ids.
    """

    def __init__(self, encode: Callable[[str], Sequence[int]]) -> None:
        self._encode = encode
        self._ids: list[int] = []
        self._text: list[str] = []

    def add_text(self, text: str) -> None:
        """Append plain text; encoded together with the text round it."""
        self._text.append(text)

    def add_ids(self, ids: Iterable[int]) -> None:
        """Append ids as they are."""
        self._flush()
        self._ids.extend(ids)

    def add_run(self, token_id: int, length: int) -> PlaceholderRange:
        """Append a placeholder run and return where it lies."""
        self._flush()
        run = PlaceholderRange(len(self._ids), length)
        self._ids.extend([token_id] * length)
        return run

    def finish(self) -> tuple[int, ...]:
        """Return the ids."""
        self._flush()
        return tuple(self._ids)

    def _flush(self) -> None:
        if self._text:
            self._ids.extend(self._encode("".join(self._text)))
            self._text.clear()


def mark_pieces(pieces: Iterable[str | int], modality_of: Mapping[int, Modality]) -> list[Piece]:
    """Return the pieces of a rendered text with its placeholder ids as markers."""
    return [
        piece if isinstance(piece, str) else Marker(modality_of[piece]) if piece in modality_of else (piece,)
        for piece in pieces
    ]


def mark_ids(ids: Sequence[int], modality_of: Mapping[int, Modality]) -> list[Piece]:
    """Return a token prompt cut at its placeholder ids, which become markers."""
    positions = [i for i, token in enumerate(ids) if token in modality_of]
    pieces: list[Piece] = []
    for before, position in pairwise([-1, *positions]):
        pieces += [tuple(ids[before + 1 : position]), Marker(modality_of[ids[position]])]
    pieces.append(tuple(ids[positions[-1] + 1 if positions else 0 :]))
    return [piece for piece in pieces if piece != ()]


def unwrap(pieces: Sequence[Piece], modality: Modality, start: int, end: int) -> list[Piece]:
    """Drop `start` right before and `end` right after each marker of `modality` that has both."""
    result = list(pieces)
    for i, piece in enumerate(pieces):
        if piece != Marker(modality) or not 0 < i < len(pieces) - 1:
            continue
        before, after = result[i - 1], result[i + 1]
        if isinstance(before, tuple) and isinstance(after, tuple) and before[-1:] == (start,) and after[:1] == (end,):
            result[i - 1], result[i + 1] = before[:-1], after[1:]
    return [piece for piece in result if piece != ()]


def match_markers(pieces: Iterable[Piece], items: Sequence[MultimodalItem]) -> None:
    """Check that the n-th marker stands for the n-th item.

    Raises:
        InvalidArgument: another number of markers than of items, or another modality.
    """
    markers = [piece for piece in pieces if isinstance(piece, Marker)]
    if len(markers) != len(items):
        raise InvalidArgument(
            f"The prompt has {len(markers)} placeholders for {len(items)} items.",
            reason="PLACEHOLDER_COUNT",
            field="items",
        )
    for i, (marker, item) in enumerate(zip(markers, items, strict=True)):
        if marker.modality != item.modality:
            raise InvalidArgument(
                f"Placeholder {i} of the prompt is of modality {marker.modality}, item {i} of {item.modality}.",
                reason="PLACEHOLDER_MODALITY",
                field=f"items[{i}].modality",
            )
