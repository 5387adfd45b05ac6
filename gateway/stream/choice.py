"""One choice on its way to the client: tokens in, deltas out.

Next: gateway/dispatch.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gateway.processor.tokenizer import Tokenizer
from gateway.stream.delta import Delta, FinishReason
from gateway.stream.detokenizer import Detokenizer
from gateway.stream.logprobs import Logprob, name_tokens
from gateway.stream.stop_strings import StopMatcher, StopStrings


@dataclass(frozen=True)
class Finish:
    """How the worker ended a choice.

    Attributes:
        reason: why.
        stop_token_id: the stop or end-of-sequence token, which is then the last of the tokens that come with it.
    """

    reason: FinishReason
    stop_token_id: int | None = None


class ChoiceStream:
    """The state of one choice; plain and synchronous.

    Args:
        tokenizer: the checkpoint's.
        index: which choice.
        stops: the request's stop strings.

    Attributes:
        index: which choice.
        num_tokens: tokens that were passed on: what usage counts.
        finish_reason: set once the choice has ended; later tokens are dropped.
        ended_early: a stop string ended it while the worker goes on: it has to be told.
    """

    def __init__(self, tokenizer: Tokenizer, index: int = 0, stops: StopStrings | None = None) -> None:
        self.index = index
        self.num_tokens = 0
        self.finish_reason: FinishReason | None = None
        self.ended_early = False
        self._tokenizer = tokenizer
        self._detokenizer = Detokenizer(tokenizer)
        self._stops = StopMatcher(stops or StopStrings())

    def push(
        self, token_ids: Sequence[int], logprobs: Sequence[Logprob] = (), finish: Finish | None = None
    ) -> Delta | None:
        """Take what the worker sent and return the news.

        Args:
            token_ids: new tokens, in order.
            logprobs: one for each, or none; their tokens' text and bytes are filled in here.
            finish: with the last tokens.

        Returns:
            The news; None where there is none, as after the end.
        """
        if self.finish_reason is not None or not (token_ids or finish):
            return None
        assert len(logprobs) in (0, len(token_ids)), "logprobs are aligned with the tokens"
        text, kept = self._read(token_ids, finish)
        matched: str | int | None = self._stops.matched
        if matched is not None:
            self.finish_reason = FinishReason.STOP
            self.ended_early = finish is None
        elif finish is not None:
            self.finish_reason, matched = finish.reason, finish.stop_token_id
        self.num_tokens += kept
        entries = tuple(logprobs[:kept])
        for entry in entries:
            name_tokens(entry, self._tokenizer)
        return Delta(self.index, text, tuple(token_ids[:kept]), entries, self.finish_reason, matched)

    def _read(self, token_ids: Sequence[int], finish: Finish | None) -> tuple[str, int]:
        """Return the text that may be shown, and how many tokens it took: none after a stop string's last one."""
        silent = finish is not None and finish.stop_token_id is not None
        shown = len(token_ids) - silent if token_ids else 0
        text: list[str] = []
        for position in range(shown):
            text.append(self._stops.push(self._detokenizer.push(token_ids[position])))
            if self._stops.matched is not None:
                return "".join(text), position + 1
        if finish is not None:
            text.append(self._stops.push(self._detokenizer.finish()))
            if self._stops.matched is None:
                text.append(self._stops.finish())
        return "".join(text), len(token_ids)
