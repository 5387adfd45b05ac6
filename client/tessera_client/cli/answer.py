"""Writes an answer: streamed to a person, or as JSON lines to a program.

Next: chat.py and generate.py.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

from tessera_client.cli.console import Console
from tessera_client.cli.progress import Activity
from tessera_client.results import Answer, Delta
from tessera_client.sync_client import Stream


def add_answer_flags(parser: argparse.ArgumentParser) -> None:
    """Add --no-stream and --stats."""
    parser.add_argument("--no-stream", action="store_true", help="write the answer when it is complete")
    parser.add_argument("--stats", action="store_true", help="then tokens, time and rate, on stderr")


def write_stream(stream: Stream[Any], console: Console, activity: Activity, *, stats: bool = False) -> Answer:
    """Write a stream's deltas as they come; several choices are written one after the other at the end.

    Args:
        stream: not begun.
        console: where to write.
        activity: shown until the first text.
        stats: then tokens, time and rate.

    Returns:
        The whole answer.
    """
    clock = Stopwatch()
    with activity:
        for delta in stream:
            if delta.text or delta.finish_reason:
                activity.stop()
            clock.take(delta)
            _write_delta(delta, console)
    answer = stream.answer()
    _finish(answer, console)
    if stats:
        console.note(clock.summary(answer))
    return answer


def write_answer(answer: Answer, console: Console) -> None:
    """Write a complete answer."""
    if console.json:
        console.object(answer)
    elif len(answer.choices) == 1:
        console.line(answer.text)
    else:
        _write_choices(answer, console)


class Stopwatch:
    """Times of a stream.

    Args:
        clock: seconds.
    """

    def __init__(self, clock: Any = time.perf_counter) -> None:
        self._clock = clock
        self._start = clock()
        self._first: float | None = None
        self._first_tokens = 0

    def take(self, delta: Delta) -> None:
        """Note the arrival of a delta."""
        if self._first is None and delta.token_ids:
            self._first = self._clock()
            self._first_tokens = len(delta.token_ids)

    def summary(self, answer: Answer) -> str:
        """Return the line for --stats."""
        now, usage = self._clock(), answer.usage
        kinds = (
            ("image", usage.image_tokens),
            ("video", usage.video_tokens),
            ("series", usage.time_series_tokens),
            ("cached", usage.cached_tokens),
        )
        inside = ", ".join(f"{count} {kind}" for kind, count in kinds if count)
        parts = [f"{usage.prompt_tokens} prompt tokens" + (f" ({inside})" if inside else "")]
        parts.append(f"{usage.completion_tokens} generated")
        if self._first is not None:
            parts.append(f"first after {self._first - self._start:.2f} s")
            later = usage.completion_tokens - self._first_tokens
            if later > 0 and now > self._first:
                parts.append(f"then {later / (now - self._first):.1f} tokens/s")
        parts.append(f"{answer.finish_reason or 'cut short'}, seed {answer.seed}")
        return " · ".join(parts)


def _write_delta(delta: Delta, console: Console) -> None:
    if console.json:
        console.object({name: value for name, value in vars(delta).items() if value not in (None, (), [])})
    elif delta.index == 0 and delta.text:
        console.write(delta.text)


def _finish(answer: Answer, console: Console) -> None:
    if console.json:
        console.object({"done": True} | vars(answer))
    elif len(answer.choices) > 1:
        console.line()
        _write_choices(answer, console, first=1)
    else:
        console.line()


def _write_choices(answer: Answer, console: Console, first: int = 0) -> None:
    for choice in answer.choices[first:]:
        console.line(choice.text)
