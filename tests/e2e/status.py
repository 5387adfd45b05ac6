"""What a failed call says: status, reason, field; and that it says no more.

Next: tests/e2e/test_bad_chat.py
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from tests.e2e.harness import SERVING, Pair
from tests.parity.cases import Case, chat_request, user

INSIDES = re.compile(
    r"/(?:tmp|usr|home|root|var|work|opt|proc)/|0x[0-9a-fA-F]{6,}|Traceback|File \"|\.py\b|<[a-z_.]+ object"
    r"|127\.0\.0\.1|localhost"
)
CANARY = Case("canary", (user("Describe the image. Is it red?"),))
CANARY_TOKENS = 6


@dataclass(frozen=True)
class Status:
    """A call's status with its details.

    Attributes:
        code: name of the gRPC status; "OK" where the call succeeded.
        reason: of ErrorInfo.
        field: of the first BadRequest violation.
        retry_s: of RetryInfo.
        text: the status' text.
    """

    code: str
    reason: str = ""
    field: str = ""
    retry_s: float | None = None
    text: str = ""


def status_of(error: grpc.RpcError) -> Status:
    """The status of a failed call."""
    reason, field, retry_s = "", "", None
    described = rpc_status.from_call(error)
    for detail in described.details if described else ():
        info, request, retry = (
            error_details_pb2.ErrorInfo(),
            error_details_pb2.BadRequest(),
            error_details_pb2.RetryInfo(),
        )
        if detail.Unpack(info):
            reason = info.reason
            assert info.domain == "tessera"
        elif detail.Unpack(request):
            field = request.field_violations[0].field
        elif detail.Unpack(retry):
            retry_s = retry.retry_delay.ToTimedelta().total_seconds()
    return Status(error.code().name, reason, field, retry_s, error.details() or "")


def outcome(call: Callable[[], Any]) -> Status:
    """The status of a call."""
    try:
        call()
    except grpc.RpcError as error:
        return status_of(error)
    return Status("OK")


def assert_says_nothing_of_the_inside(status: Status) -> None:
    """A status' text is a sentence for the user, without paths, addresses or tracebacks."""
    assert not INSIDES.search(status.text), status.text
    assert status.text, "a status without a text"
    assert len(status.text) < 1000


def canary_tokens(pair: Pair) -> list[int]:
    """The first tokens of a plain request."""
    request = chat_request(CANARY, max_tokens=CANARY_TOKENS)
    return list(pair.stub.Chat(request, timeout=10).choices[0].token_ids)


@dataclass(frozen=True)
class Well:
    """How a healthy pair looks: process ids and the canary's tokens."""

    pids: tuple[int, ...]
    tokens: tuple[int, ...]

    @classmethod
    def look(cls, pair: Pair) -> "Well":
        """Look at a pair now."""
        assert pair.gateway.health() == SERVING
        assert all(worker.health() == SERVING for worker in pair.workers)
        return cls(tuple(pair.pids), tuple(canary_tokens(pair)))
