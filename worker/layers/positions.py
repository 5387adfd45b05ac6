"""Positions of a multimodal prompt, from item ranges and grids; plain numpy, no model.

Next: worker/models/qwen3_vl.py
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

import numpy as np

from tessera.errors import InvalidArgument


class Span(Protocol):
    """A half-open run of prompt tokens; `tessera.items.PlaceholderRange` is one."""

    @property
    def offset(self) -> int:
        """First token."""

    @property
    def length(self) -> int:
        """Number of tokens."""


Item = tuple[str, Sequence[Span], tuple[int, int, int] | None]
"""(modality, ranges, grid in patches); without a grid its tokens advance like text."""


def mrope_positions(prompt_len: int, items: Iterable[Item], merge: int) -> tuple[np.ndarray, int]:
    """Return (time, height, width) of each token of a prompt.

    Text advances all three rows together. A frame (an image, or one temporal patch of a clip) that starts at p stays
    at p in time, spans p + row and p + column, and moves the text after it on by its longer side.

    Args:
        prompt_len: tokens of the prompt.
        items: ordered by first offset.
        merge: patches merged along each side into one token.

    Returns:
        int64 (3, prompt_len), and the position of the first generated token (max + 1).

    Raises:
        InvalidArgument: ranges overlap, leave the prompt, or do not fit their grid.
    """
    positions = np.empty((3, prompt_len), dtype=np.int64)
    cursor = 0  # first token without a position
    base = 0  # position of the next text token
    for start, rows, columns in _frames(items, merge):
        length = rows * columns
        if start < cursor or start + length > prompt_len:
            raise InvalidArgument(
                f"Placeholder tokens [{start}, {start + length}) overlap another item or leave the prompt.",
                reason="RANGE_INVALID",
                field="ranges",
            )
        text = start - cursor
        positions[:, cursor:start] = base + np.arange(text)
        base += text
        frame = positions[:, start : start + length]
        frame[0] = base
        frame[1] = base + np.repeat(np.arange(rows), columns)
        frame[2] = base + np.tile(np.arange(columns), rows)
        cursor, base = start + length, base + max(rows, columns)
    positions[:, cursor:] = base + np.arange(prompt_len - cursor)
    return positions, int(positions.max()) + 1 if prompt_len else 0


def _frames(items: Iterable[Item], merge: int) -> Iterator[tuple[int, int, int]]:
    """Yield (first token, rows, columns) of every frame; a range may hold several frames, a frame one range."""
    for modality, ranges, grid in items:
        if grid is None:
            continue
        frames, height, width = grid
        rows, columns = height // merge, width // merge
        length = rows * columns
        total = sum(span.length for span in ranges)
        if total != frames * length or any(span.length % length for span in ranges):
            raise InvalidArgument(
                f"Modality {modality}: grid {[frames, height, width]} owns {frames} runs of {length} tokens, "
                f"its ranges have {[span.length for span in ranges]}.",
                reason="RANGE_INVALID",
                field="ranges",
            )
        for span in ranges:
            for start in range(span.offset, span.offset + span.length, length):
                yield start, rows, columns
