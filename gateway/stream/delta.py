"""What a stream adds to a choice, and how additions coalesce while a client is slow.

Next: choice.py.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from gateway.stream.logprobs import Logprob


class FinishReason(StrEnum):
    """Why a choice ended."""

    STOP = "stop"
    LENGTH = "length"


@dataclass(frozen=True)
class Delta:
    """News of one choice.

    Attributes:
        index: which choice.
        text: whole code points; may be empty.
        token_ids: new ids; a stop token is among them, its text is not in `text`.
        logprobs: one for each new id, or none at all.
        finish_reason: on the last delta of the choice only.
        matched_stop: the stop string or token id that ended it, with STOP.
    """

    index: int
    text: str = ""
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[Logprob, ...] = ()
    finish_reason: FinishReason | None = None
    matched_stop: str | int | None = None


def merge(deltas: list[Delta]) -> Delta:
    """Return one delta that says what several of the same choice say, in order; at least one."""
    last = deltas[-1]
    if len(deltas) == 1:
        return last
    return Delta(
        index=last.index,
        text="".join(delta.text for delta in deltas),
        token_ids=tuple(token for delta in deltas for token in delta.token_ids),
        logprobs=tuple(entry for delta in deltas for entry in delta.logprobs),
        finish_reason=last.finish_reason,
        matched_stop=last.matched_stop,
    )


@dataclass
class DeltaBuffer:
    """News that the client has not read yet; merging costs as much as what is merged, once.

    Attributes:
        size_bytes: about what the waiting news take on the wire, so that a stream can be held up or ended.
    """

    size_bytes: int = 0
    _waiting: dict[int, list[Delta]] = field(default_factory=dict)

    def add(self, delta: Delta) -> None:
        """Take one delta; those of one choice in order."""
        self._waiting.setdefault(delta.index, []).append(delta)
        self.size_bytes += _size(delta)

    def take(self) -> list[Delta]:
        """Return one merged delta for each choice with news, in order of index, and forget them."""
        waiting, self._waiting = self._waiting, {}
        self.size_bytes = 0
        return [merge(deltas) for _, deltas in sorted(waiting.items())]

    def __bool__(self) -> bool:
        return bool(self._waiting)


_DELTA_BYTES, _TOKEN_BYTES, _LOGPROB_BYTES = 16, 4, 24


def _size(delta: Delta) -> int:
    # UTF-8 takes at most 4 bytes a character, and ASCII is by far the most of it.
    text = len(delta.text) if delta.text.isascii() else 4 * len(delta.text)
    logprobs = sum(1 + len(list(entry.top)) for entry in delta.logprobs)
    return _DELTA_BYTES + text + _TOKEN_BYTES * len(delta.token_ids) + _LOGPROB_BYTES * logprobs
