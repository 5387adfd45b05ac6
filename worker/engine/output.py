"""What a step gives back: news of sequences, items that are needed, the load.

Next: worker/engine/engine.py
"""

from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from typing import NamedTuple


class FinishReason(StrEnum):
    """Why a sequence has ended."""

    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"
    ERROR = "error"


class FailureCode(IntEnum):
    """The gRPC status codes that a sequence may fail with; scheduling code does not import grpc."""

    CANCELLED = 1
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    INTERNAL = 13


@dataclass(frozen=True, slots=True)
class SequenceFailure:
    """Why a sequence has ended badly.

    Args:
        code: gRPC status code.
        reason: UPPER_SNAKE.
        message: for the user; nothing of the server's insides.
        field: path of the field at fault, or empty.
    """

    code: int
    reason: str
    message: str
    field: str = ""


CANCELLED = SequenceFailure(FailureCode.CANCELLED, "CANCELLED", "The request was cancelled.")
DEADLINE_EXCEEDED = SequenceFailure(
    FailureCode.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED", "The request's deadline has passed."
)
INTERNAL = SequenceFailure(FailureCode.INTERNAL, "INTERNAL", "The server failed; its log has the details.")


class TokenLogprob(NamedTuple):
    """A token id and its natural log probability under the raw logits."""

    token_id: int
    logprob: float


class Logprob(NamedTuple):
    """Log probabilities of one generated token: its own, and those of the likeliest."""

    chosen: TokenLogprob
    top: tuple[TokenLogprob, ...] = ()


@dataclass(slots=True)
class SequenceUpdate:
    """News of one choice.

    Args:
        owner: the gateway stream that it belongs to.
        request_id: as submitted.
        epoch: as submitted.
        choice: which choice.
        token_ids: new tokens.
        logprobs: one for each new token, where asked for.
        finish_reason: set on the last update.
        matched_stop_token_id: the stop or end-of-sequence token that ended it.
        failure: set when it has ended badly (reason CANCELLED or ERROR).
        cached_tokens: prompt tokens found in the prefix cache, on the request's first update.
    """

    owner: int
    request_id: str
    epoch: int
    choice: int
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[Logprob] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    matched_stop_token_id: int | None = None
    failure: SequenceFailure | None = None
    cached_tokens: int = 0


class NeedItem(NamedTuple):
    """An item that a waiting sequence needs and that is not here."""

    owner: int
    request_id: str
    content_hash: bytes


@dataclass(frozen=True, slots=True)
class LoadReport:
    """How busy the engine is after a step; blocks satisfy free + cached + used = total.

    Slots of recurrent state are all 0 for a model that keeps none; running and checkpoints leave the free ones.
    """

    waiting: int
    running: int
    total_blocks: int
    free_blocks: int
    cached_blocks: int
    used_blocks: int
    pinned_items: int
    encoder_cache_bytes: int
    staged_bytes: int
    total_state_slots: int = 0
    running_state_slots: int = 0
    state_checkpoints: int = 0


@dataclass(slots=True)
class StepOutput:
    """All news of one step.

    Args:
        step: counts steps.
        updates: of sequences.
        need_items: to be staged.
        load: after the step.
        worked: something was run; False means that the next step waits for commands, items or deadlines.
    """

    step: int
    updates: list[SequenceUpdate]
    need_items: list[NeedItem]
    load: LoadReport
    worked: bool = False
