"""Positions of a multimodal prompt, from item ranges and grids; plain numpy, no model.

A prompt is kept as segments, which are few; a step's tokens get their positions when they run.

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


def mrope_segments(prompt_len: int, items: Iterable[Item], merge: int) -> tuple[np.ndarray, int]:
    """Return where the tokens of a prompt stand, as runs of text and frames of items.

    Text advances time, height and width together. A frame (an image, or one temporal patch of a clip) that starts at p
    stays at p in time, spans p + row and p + column, and moves the text after it on by its longer side.

    Args:
        prompt_len: tokens of the prompt.
        items: ordered by first offset.
        merge: patches merged along each side into one token.

    Returns:
        int64 (count, 6), as `ops.mrope_positions` takes them, and the position of the first generated token (max + 1).

    Raises:
        InvalidArgument: ranges overlap, leave the prompt, or do not fit their grid.
    """
    segments = []
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
        if start > cursor:
            segments.append((cursor, start - cursor, base, 0, 0, 0))
            base += start - cursor
        segments.append((start, length, base, rows, columns, 0))
        cursor, base = start + length, base + max(rows, columns)
    if prompt_len > cursor:
        segments.append((cursor, prompt_len - cursor, base, 0, 0, 0))
    return np.array(segments, np.int64).reshape(-1, 6), base + prompt_len - cursor


def text_segments(prompt_len: int) -> np.ndarray:
    """Return the segments of a prompt whose positions count its tokens, whatever they are."""
    return np.array([(0, prompt_len, 0, 0, 0, 0)], np.int64)


def cut_segments(segments: np.ndarray, start: int, end: int, row: int) -> np.ndarray:
    """Return what lies in tokens [start, end), as segments of a step in which these begin at `row`.

    Args:
        segments: int64 (count, 6) of a prompt, without gaps.
        start: first token.
        end: token after the last; at most the prompt's length.
        row: where `start` stands in the step.
    """
    first = int(np.searchsorted(segments[:, 0], start, side="right")) - 1
    last = int(np.searchsorted(segments[:, 0], end, side="left"))
    part = segments[first:last].copy()
    passed = start - part[0, 0]
    part[0] += (passed, -passed, 0, 0, 0, passed)
    part[-1, 1] = min(part[-1, 1], end - part[-1, 0])
    part[:, 0] += row - start
    return part


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
