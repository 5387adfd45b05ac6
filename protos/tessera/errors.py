"""The one tree of errors and the one table to gRPC status codes.

An error names its reason (UPPER_SNAKE, for programs), its text (for people)
and, where a field is at fault, the field's path in the request. Whatever is
not a ServeError reaches the caller as INTERNAL with a generic text.

Next: interceptors.py, which turns them into a status.
"""

from __future__ import annotations

from typing import ClassVar, Self

import grpc

DOMAIN = "tessera"


class ServeError(Exception):
    """A failure that the caller is told about.

    Args:
        message: one sentence for the user; nothing of the server's insides.
        reason: UPPER_SNAKE, stable.
        field: path of the field at fault, such as "messages[0].parts[1].image.media.data".
        retry_after_s: seconds after which to try again (RESOURCE_EXHAUSTED).
    """

    code: ClassVar[grpc.StatusCode] = grpc.StatusCode.INTERNAL
    default_reason: ClassVar[str] = "INTERNAL"

    def __init__(
        self,
        message: str,
        *,
        reason: str | None = None,
        field: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason or self.default_reason
        self.field = field
        self.retry_after_s = retry_after_s

    def under(self, prefix: str) -> Self:
        """Return the same error with `prefix` put before its field's path."""
        if not self.field:
            field = prefix
        elif self.field.startswith("["):
            field = f"{prefix}{self.field}"
        else:
            field = f"{prefix}.{self.field}"
        error = type(self)(self.message, reason=self.reason, field=field, retry_after_s=self.retry_after_s)
        error.__cause__ = self.__cause__
        return error


class InvalidArgument(ServeError):
    """It can never succeed: malformed, contradictory, or it does not fit."""

    code = grpc.StatusCode.INVALID_ARGUMENT
    default_reason = "INVALID_ARGUMENT"


class NotFound(ServeError):
    """The model is not served here."""

    code = grpc.StatusCode.NOT_FOUND
    default_reason = "NOT_FOUND"


class FailedPrecondition(ServeError):
    """VISION_DISABLED, or ITEM_NOT_FOUND."""

    code = grpc.StatusCode.FAILED_PRECONDITION
    default_reason = "FAILED_PRECONDITION"


class Unimplemented(ServeError):
    """A modality or feature that the model does not have."""

    code = grpc.StatusCode.UNIMPLEMENTED
    default_reason = "UNIMPLEMENTED"


class PermissionDenied(ServeError):
    """Policy forbids it."""

    code = grpc.StatusCode.PERMISSION_DENIED
    default_reason = "PERMISSION_DENIED"


class Unauthenticated(ServeError):
    """The caller is not known."""

    code = grpc.StatusCode.UNAUTHENTICATED
    default_reason = "UNAUTHENTICATED"


class ResourceExhausted(ServeError):
    """Load, byte budgets, sizes above a cap."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    default_reason = "RESOURCE_EXHAUSTED"

    def __init__(
        self,
        message: str,
        *,
        reason: str | None = None,
        field: str | None = None,
        retry_after_s: float | None = 1.0,
    ) -> None:
        super().__init__(message, reason=reason, field=field, retry_after_s=retry_after_s)


class DeadlineExceeded(ServeError):
    """The caller's deadline has passed."""

    code = grpc.StatusCode.DEADLINE_EXCEEDED
    default_reason = "DEADLINE_EXCEEDED"


class Cancelled(ServeError):
    """The caller has left."""

    code = grpc.StatusCode.CANCELLED
    default_reason = "CANCELLED"


class Unavailable(ServeError):
    """No worker is left to do it."""

    code = grpc.StatusCode.UNAVAILABLE
    default_reason = "UNAVAILABLE"


class Internal(ServeError):
    """Our fault; the text is generic, the log has the rest."""

    code = grpc.StatusCode.INTERNAL
    default_reason = "INTERNAL"

    def __init__(
        self,
        message: str = "The server failed; its log has the details.",
        *,
        reason: str | None = None,
        field: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message, reason=reason, field=field, retry_after_s=retry_after_s)


ERRORS: tuple[type[ServeError], ...] = (
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
_BY_CODE = {error.code.value[0]: error for error in ERRORS}


def error_for_code(code: int, message: str, *, reason: str, field: str | None = None) -> ServeError:
    """Return the error of a numeric gRPC status code; unknown codes become Internal."""
    return _BY_CODE.get(code, Internal)(message, reason=reason, field=field or None)
