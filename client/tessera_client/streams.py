"""Answers: unary ones decoded, streamed ones added up delta by delta.

Next: sync_client.py and async_client.py, which iterate.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from tessera.v1 import inference_service_pb2 as pb
from tessera_client.decoding import decode
from tessera_client.results import (
    Answer,
    ChatResult,
    Choice,
    Delta,
    GenerateResult,
    MediaReport,
    PrepareResult,
    Prompt,
    UploadResult,
    Usage,
)

D = TypeVar("D", bound=Delta)
R = TypeVar("R", bound=Answer)


def decode_choice(cls: type[D], message: pb.ChatChoice | pb.ChoiceDelta) -> D:
    """Return a choice or a delta."""
    which = message.WhichOneof("matched_stop")
    return decode(cls, message, matched_stop=getattr(message, which) if which else None)


def decode_answer(cls: type[R], message: pb.ChatResponse | pb.GenerateResponse) -> R:
    """Return the result of Chat or Generate."""
    choices = tuple(decode_choice(Choice, choice) for choice in message.choices)
    return decode(cls, message, choices=choices, usage=decode(Usage, message.usage))


def decode_prepare(message: pb.PrepareResponse) -> PrepareResult:
    """Return the result of Prepare; items that came as tensors keep their array."""
    return decode(PrepareResult, message, usage=decode(Usage, message.usage))


def decode_upload(message: pb.UploadMediaResponse) -> UploadResult:
    """Return the result of an upload."""
    return decode(UploadResult, message)


@dataclass
class StreamState(Generic[R]):
    """What has come of a streamed answer so far.

    Attributes:
        result_type: ChatResult or GenerateResult.
        request_id, model, seed, usage: known from the first message on; `usage` grows.
        media: what was used of each medium (chat).
        prompt: the prompt as it is run (generate).
        done: the stream has ended well.
    """

    result_type: type[R]
    request_id: str = ""
    model: str = ""
    seed: int = 0
    usage: Usage = field(default_factory=Usage)
    media: tuple[MediaReport, ...] = ()
    prompt: Prompt | None = None
    done: bool = False
    _parts: dict[int, list[Delta]] = field(default_factory=dict)

    def feed(self, message: pb.StreamChatResponse | pb.StreamGenerateResponse) -> list[Delta]:
        """Take one message of the stream; return what it adds."""
        self.request_id = message.request_id or self.request_id
        self.model = message.model or self.model
        self.seed = message.seed or self.seed
        if message.HasField("usage"):
            self.usage = decode(Usage, message.usage)
        if isinstance(message, pb.StreamChatResponse):
            self.media = tuple(decode(MediaReport, report) for report in message.media) or self.media
        elif message.HasField("prompt"):
            self.prompt = decode(Prompt, message.prompt)
        deltas = [decode_choice(Delta, choice) for choice in message.choices]
        for delta in deltas:
            self._parts.setdefault(delta.index, []).append(delta)
        return deltas

    @property
    def choices(self) -> tuple[Choice, ...]:
        """The choices as far as they have come, in order of index."""
        return tuple(_joined(self._parts[index]) for index in sorted(self._parts))

    @property
    def text(self) -> str:
        """Text of the first choice so far."""
        return "".join(delta.text for delta in self._parts.get(0, ()))

    def answer(self) -> R:
        """Return all that has come as a result."""
        extra: dict[str, Any] = {"media": self.media} if self.result_type is ChatResult else {"prompt": self.prompt}
        return self.result_type(
            request_id=self.request_id,
            model=self.model,
            choices=self.choices,
            usage=self.usage,
            seed=self.seed,
            **extra,
        )


def chat_state() -> StreamState[ChatResult]:
    """Return the empty state of StreamChat."""
    return StreamState(ChatResult)


def generate_state() -> StreamState[GenerateResult]:
    """Return the empty state of StreamGenerate."""
    return StreamState(GenerateResult)


def _joined(deltas: list[Delta]) -> Choice:
    last = deltas[-1]
    return Choice(
        index=last.index,
        text="".join(delta.text for delta in deltas),
        token_ids=tuple(token for delta in deltas for token in delta.token_ids),
        finish_reason=last.finish_reason,
        matched_stop=last.matched_stop,
        logprobs=tuple(entry for delta in deltas for entry in delta.logprobs),
    )
