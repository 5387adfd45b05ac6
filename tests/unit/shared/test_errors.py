"""Tests of protos/tessera/errors.py and of the status that interceptors.py makes of an error."""

import re

import grpc
import pytest
from google.rpc import error_details_pb2

from tessera.errors import (
    DOMAIN,
    ERRORS,
    Internal,
    InvalidArgument,
    ResourceExhausted,
    ServeError,
    Unavailable,
    error_for_code,
)
from tessera.interceptors import status_of


@pytest.mark.parametrize("kind", ERRORS)
def test_reasons_are_upper_snake(kind: type[ServeError]) -> None:
    """A default reason is what google.rpc.ErrorInfo allows."""
    assert re.fullmatch(r"[A-Z][A-Z0-9_]+[A-Z0-9]", kind.default_reason)


def test_one_class_for_each_status() -> None:
    """No two classes share a status: the table can be read backwards."""
    assert len({kind.code for kind in ERRORS}) == len(ERRORS)


@pytest.mark.parametrize("kind", ERRORS)
def test_an_error_survives_the_trip_between_worker_and_gateway(kind: type[ServeError]) -> None:
    """Status code, text, reason and field of a worker's error are the gateway's."""
    error = error_for_code(kind.code.value[0], "Too big.", reason="TOO_BIG", field="items[0]")
    assert type(error) is kind
    assert (error.message, error.reason, error.field) == ("Too big.", "TOO_BIG", "items[0]")


@pytest.mark.parametrize("code", [0, 2, 10, 15, 99, -1])
def test_codes_that_are_not_ours_become_internal(code: int) -> None:
    """UNKNOWN, DATA_LOSS, OK and nonsense are our fault, not the caller's."""
    assert type(error_for_code(code, "text", reason="X")) is Internal


@pytest.mark.parametrize(
    ("field", "prefix", "expected"),
    [
        (None, "items[0]", "items[0]"),
        ("", "items[0]", "items[0]"),
        ("tensor.data", "items[0]", "items[0].tensor.data"),
        ("[2]", "frames", "frames[2]"),
    ],
)
def test_paths_grow_from_the_inside(field: str | None, prefix: str, expected: str) -> None:
    """A helper names the field as it sees it; its callers put their own path before it."""
    cause = ValueError("why")
    error = InvalidArgument("No.", reason="NO", field=field)
    error.__cause__ = cause
    moved = error.under(prefix)
    assert (type(moved), moved.message, moved.reason, moved.field) == (InvalidArgument, "No.", "NO", expected)
    assert moved.__cause__ is cause


def details(error: ServeError) -> dict[str, object]:
    """The details of an error's status by the name of their type."""
    found: dict[str, object] = {}
    for packed in status_of(error).details:
        name = packed.TypeName().rpartition(".")[2]
        message = getattr(error_details_pb2, name)()
        packed.Unpack(message)
        found[name] = message
    return found


def test_status_of_a_field_error() -> None:
    """ErrorInfo has reason and domain; BadRequest has the path and says why."""
    error = InvalidArgument(
        "fps is above 0.", reason="SAMPLING_INVALID", field="messages[0].parts[1].video.options.fps"
    )
    status, found = status_of(error), details(error)
    assert status.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    assert status.message == "fps is above 0."
    info, request = found["ErrorInfo"], found["BadRequest"]
    assert isinstance(info, error_details_pb2.ErrorInfo)
    assert isinstance(request, error_details_pb2.BadRequest)
    assert (info.reason, info.domain) == ("SAMPLING_INVALID", DOMAIN)
    assert [(v.field, v.description) for v in request.field_violations] == [(error.field, error.message)]
    assert "RetryInfo" not in found


def test_overload_says_when_to_try_again() -> None:
    """RESOURCE_EXHAUSTED carries RetryInfo by default; what can never fit carries none."""
    retry = details(ResourceExhausted("Busy.", retry_after_s=1.5))["RetryInfo"]
    assert isinstance(retry, error_details_pb2.RetryInfo)
    assert retry.retry_delay.ToMilliseconds() == 1500
    assert "RetryInfo" in details(ResourceExhausted("Busy."))
    assert "RetryInfo" not in details(ResourceExhausted("Too big.", retry_after_s=None))


def test_errors_without_a_field_have_no_bad_request() -> None:
    """A loss of workers blames no field."""
    assert set(details(Unavailable("No worker."))) == {"ErrorInfo"}


def test_internal_says_nothing() -> None:
    """The text of an unknown failure is generic."""
    assert Internal().message == "The server failed; its log has the details."
