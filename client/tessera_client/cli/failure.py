"""One helpful line for a failure, and its exit code.

Next: program.py.
"""

from __future__ import annotations

import argparse
import re
from typing import Any

from tessera_client import errors

_EXIT_CODES: tuple[tuple[type[BaseException], int], ...] = (
    (errors.InvalidArgument, 2),
    (errors.Unavailable, 3),
    (errors.NotFound, 4),
    (errors.FailedPrecondition, 4),
    (errors.Unimplemented, 4),
    (errors.ResourceExhausted, 5),
    (errors.DeadlineExceeded, 6),
    (errors.PermissionDenied, 7),
    (errors.Unauthenticated, 7),
    (errors.TesseraError, 1),
    (OSError, 2),
    (ImportError, 1),
    (Exception, 2),
)
_PART = re.compile(r"(?:chat\.)?messages\[(\d+)\]\.parts\[(\d+)\]")


def exit_code(error: BaseException) -> int:
    """Return the exit code of a failure; see program.py."""
    return next(code for kind, code in _EXIT_CODES if isinstance(error, kind))


def failure_line(error: BaseException, args: argparse.Namespace) -> str:
    """Return what to tell a person: what failed, where, and what to try."""
    match error:
        case errors.ServerUnreachable():
            return _unreachable(error, args)
        case errors.DeadlineExceeded() if error.reason == "DEADLINE_EXCEEDED" and getattr(args, "timeout", None):
            return f"no answer within {args.timeout:g} s: give it more time with --timeout"
        case errors.TesseraError():
            return _told(error, args)
        case OSError() if error.filename and error.strerror:
            return f"{error.filename}: {error.strerror[0].lower()}{error.strerror[1:]}"
        case _:
            return str(error) or type(error).__name__


def failure_object(error: BaseException) -> dict[str, Any]:
    """Return what to tell a program."""
    told: dict[str, Any] = {"message": getattr(error, "message", str(error)), "exit_code": exit_code(error)}
    if isinstance(error, errors.TesseraError):
        told |= {
            "code": error.code.name,
            "reason": error.reason,
            "field": error.field,
            "retry_after": error.retry_after,
            "request_id": error.request_id,
        }
    return {"error": told}


def _unreachable(error: errors.ServerUnreachable, args: argparse.Namespace) -> str:
    address = getattr(args, "address", None) or "the given address"
    if "resolv" in error.message or "DNS" in error.message:
        return f"cannot find the host of {address}: check --server or TESSERA_SERVER"
    return f"no server at {address}: start one with `tessera serve`, or name another with --server or TESSERA_SERVER"


def _told(error: errors.TesseraError, args: argparse.Namespace) -> str:
    line = error.message.rstrip(".")
    where = _label(error.field, getattr(args, "labels", {}))
    if where:
        line = f"{where}: {line[0].lower()}{line[1:]}" if line else where
    notes = [error.reason]
    if error.field and not where:
        notes.append(error.field)
    if error.retry_after:
        notes.append(f"try again in {error.retry_after:g} s")
    if isinstance(error, errors.Unavailable):
        notes.append("--wait waits for it")
    if isinstance(error, errors.Internal) and error.request_id:
        notes.append(f"request {error.request_id}")
    return f"{line} ({'; '.join(notes)})"


def _label(field: str | None, labels: dict[tuple[int, int], str]) -> str | None:
    """Return what the user called the part that a path points at."""
    found = _PART.match(field or "")
    return labels.get((int(found[1]), int(found[2]))) if found else None
