"""From a worker's updates to what a client reads.

What has come since the client last read goes out as one message, so a slow
client gets fewer, larger messages and never more than its own answer waits.

Next: stream/choice.py.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass

from gateway.dispatch import Dispatcher, Job, Run
from gateway.processor.tokenizer import Tokenizer
from gateway.stream.choice import ChoiceStream, Finish
from gateway.stream.delta import Delta, DeltaBuffer, FinishReason
from gateway.stream.stop_strings import StopStrings
from tessera.v1 import inference_service_pb2 as pb
from tessera.v1 import types_pb2 as types
from tessera.v1 import worker_service_pb2 as worker_pb

FINISH_REASONS = {
    types.FINISH_REASON_STOP: FinishReason.STOP,
    types.FINISH_REASON_LENGTH: FinishReason.LENGTH,
}
FINISH_VALUES = {reason: value for value, reason in FINISH_REASONS.items()}


@dataclass(frozen=True)
class News:
    """What one message of a stream says.

    Attributes:
        choices: one delta for each choice with news.
        usage: cumulative; final with the last news.
    """

    choices: list[pb.ChoiceDelta]
    usage: types.Usage


async def answer(
    dispatcher: Dispatcher, job: Job, tokenizer: Tokenizer, usage: types.Usage
) -> AsyncGenerator[News, None]:
    """Run a job and yield its news until every choice has ended.

    Args:
        dispatcher: places it.
        job: what is to be run.
        tokenizer: turns its tokens into text.
        usage: of the prompt; copied into each message with the completion's counts.

    Raises:
        ServeError: no worker, or the worker failed or was lost.
    """
    stops = StopStrings(job.sampling.stop)
    streams = [ChoiceStream(tokenizer, index, stops) for index in range(job.sampling.n)]
    buffer = DeltaBuffer()
    async with dispatcher.run(job) as run:
        async for updates in run.updates():
            for update in updates:
                usage.cached_tokens = max(usage.cached_tokens, update.cached_tokens)
                _push(streams[update.choice], update, buffer, run)
            if buffer:
                usage.completion_tokens = sum(stream.num_tokens for stream in streams)
                usage.total_tokens = usage.prompt_tokens + usage.completion_tokens
                yield News([delta_to_proto(delta) for delta in buffer.take()], usage)


def _push(stream: ChoiceStream, update: worker_pb.SequenceUpdate, buffer: DeltaBuffer, run: Run) -> None:
    finish = None
    if update.finish_reason:
        stop_token = update.matched_stop_token_id if update.HasField("matched_stop_token_id") else None
        finish = Finish(FINISH_REASONS[update.finish_reason], stop_token)
    ended = stream.finish_reason is not None
    delta = stream.push(update.token_ids, update.logprobs, finish)  # type: ignore[arg-type]
    if delta is not None:
        buffer.add(delta)
    if stream.ended_early and not ended:
        run.stop_choice(stream.index)


def delta_to_proto(delta: Delta) -> pb.ChoiceDelta:
    """Return the message of a delta."""
    message = pb.ChoiceDelta(
        index=delta.index,
        text=delta.text,
        token_ids=delta.token_ids,
        logprobs=delta.logprobs,  # type: ignore[arg-type]
    )
    if delta.finish_reason is not None:
        message.finish_reason = FINISH_VALUES[delta.finish_reason]
    if isinstance(delta.matched_stop, str):
        message.matched_stop_string = delta.matched_stop
    elif delta.matched_stop is not None:
        message.matched_stop_token_id = delta.matched_stop
    return message


class Collector:
    """Puts the news of a stream together for a unary answer."""

    def __init__(self, n: int) -> None:
        self.choices = [pb.ChatChoice(index=index) for index in range(n)]
        self._text: list[list[str]] = [[] for _ in range(n)]
        self.usage = types.Usage()

    def add(self, news: News) -> None:
        """Take one message's news."""
        self.usage = news.usage
        for delta in news.choices:
            choice = self.choices[delta.index]
            self._text[delta.index].append(delta.text)
            choice.token_ids.extend(delta.token_ids)
            choice.logprobs.extend(delta.logprobs)
            choice.finish_reason = delta.finish_reason
            if delta.WhichOneof("matched_stop") == "matched_stop_string":
                choice.matched_stop_string = delta.matched_stop_string
            elif delta.WhichOneof("matched_stop"):
                choice.matched_stop_token_id = delta.matched_stop_token_id

    def finish(self) -> list[pb.ChatChoice]:
        """Return the whole choices."""
        for choice, text in zip(self.choices, self._text, strict=True):
            choice.text = "".join(text)
        return self.choices
