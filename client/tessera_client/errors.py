"""What a call can raise: one class for each gRPC status, with the server's reason, field and delay.

    try:
        client.chat([Image("cat.png"), "What is this?"])
    except ResourceExhausted as error:
        time.sleep(error.retry_after or 1.0)

Next: requests.py, which raises InvalidArgument before anything is sent.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

import grpc
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status


class TesseraError(Exception):
    """A call failed.

    Attributes:
        message: the server's sentence for people.
        code: gRPC status.
        reason: UPPER_SNAKE, stable; the status' name where the server gave none.
        field: path of the request's field at fault, such as "messages[0].parts[1].image.media.data".
        retry_after: seconds after which to try again, where the server said so.
        request_id: what the server's log calls the request.
    """

    code: grpc.StatusCode = grpc.StatusCode.UNKNOWN
    retryable: ClassVar[bool] = False

    def __init__(
        self,
        message: str,
        *,
        reason: str | None = None,
        field: str | None = None,
        retry_after: float | None = None,
        request_id: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason or self.code.name
        self.field = field
        self.retry_after = retry_after
        self.request_id = request_id

    def __str__(self) -> str:
        where = f" at {self.field}" if self.field else ""
        return f"{self.message} [{self.reason}{where}]"


class InvalidArgument(TesseraError, ValueError):
    """The request can never succeed: malformed, contradictory, or it does not fit the context."""

    code = grpc.StatusCode.INVALID_ARGUMENT


class NotFound(TesseraError):
    """The model is not served here."""

    code = grpc.StatusCode.NOT_FOUND


class FailedPrecondition(TesseraError):
    """VISION_DISABLED, or ITEM_NOT_FOUND: an upload or item that is unknown or has expired."""

    code = grpc.StatusCode.FAILED_PRECONDITION


class Unimplemented(TesseraError):
    """A modality or feature that the model does not have."""

    code = grpc.StatusCode.UNIMPLEMENTED


class PermissionDenied(TesseraError):
    """The server's policy forbids it."""

    code = grpc.StatusCode.PERMISSION_DENIED


class Unauthenticated(TesseraError):
    """The server does not know the caller."""

    code = grpc.StatusCode.UNAUTHENTICATED


class ResourceExhausted(TesseraError):
    """Load, byte budgets, or media above the server's caps; see `retry_after`."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    retryable = True


class DeadlineExceeded(TesseraError, TimeoutError):
    """The call's timeout has passed."""

    code = grpc.StatusCode.DEADLINE_EXCEEDED


class Cancelled(TesseraError):
    """The call was cancelled."""

    code = grpc.StatusCode.CANCELLED


class Unavailable(TesseraError):
    """No worker is up, or the one that served the request was lost."""

    code = grpc.StatusCode.UNAVAILABLE
    retryable = True


class ServerUnreachable(Unavailable, ConnectionError):
    """Nothing answers at the server's address."""


class Internal(TesseraError):
    """The server failed; its log has the rest, under `request_id`."""

    code = grpc.StatusCode.INTERNAL


_BY_CODE: dict[grpc.StatusCode, type[TesseraError]] = {
    error.code: error
    for error in (
        InvalidArgument,
        NotFound,
        FailedPrecondition,
        Unimplemented,
        PermissionDenied,
        Unauthenticated,
        ResourceExhausted,
        DeadlineExceeded,
        Cancelled,
        Unavailable,
        Internal,
    )
}


def error_from_rpc(rpc_error: grpc.RpcError, address: str = "", request_id: str | None = None) -> TesseraError:
    """Return the typed error of a failed call, decoded from google.rpc.Status where the server sent one."""
    code: grpc.StatusCode = rpc_error.code()  # type: ignore[attr-defined]
    text = rpc_error.details() or code.name  # type: ignore[attr-defined]
    status = rpc_status.from_call(rpc_error)
    if status is None and code is grpc.StatusCode.UNAVAILABLE:
        return ServerUnreachable(f"No server answers at {address}: {text}", request_id=request_id)
    error = _BY_CODE.get(code, TesseraError)(text, request_id=request_id)
    error.code = code
    error.reason = code.name
    _add_details(error, status)
    return error


def _add_details(error: TesseraError, status: status_pb2.Status | None) -> None:
    for packed in status.details if status else ():
        info, bad, retry = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
        if packed.Unpack(info):
            error.reason = info.reason
        elif packed.Unpack(bad) and bad.field_violations:
            error.field = bad.field_violations[0].field
        elif packed.Unpack(retry):
            error.retry_after = retry.retry_delay.ToNanoseconds() / 1e9


@contextmanager
def typed_errors(address: str, request_id: str | None) -> Iterator[None]:
    """Turn grpc.RpcError into TesseraError; for sync and async calls alike."""
    try:
        yield
    except grpc.RpcError as rpc_error:
        raise error_from_rpc(rpc_error, address, request_id) from None
