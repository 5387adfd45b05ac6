"""One call: its id, its deadline, its line in the log.

Next: service.py.
"""

from __future__ import annotations

import asyncio
import re
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import grpc
import structlog

from tessera.errors import ServeError
from tessera.v1 import types_pb2 as types

log = structlog.get_logger(__name__)

REQUEST_ID_KEY = "x-request-id"
_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")


@dataclass
class Session:
    """One call.

    Attributes:
        request_id: the caller's, or one of our own.
        run_id: unique among running requests, whatever the caller says.
        deadline_s: monotonic time, or None.
        usage: filled in as it is known, for the log.
    """

    request_id: str
    run_id: str
    deadline_s: float | None
    usage: types.Usage


@asynccontextmanager
async def open_session(context: grpc.aio.ServicerContext, method: str) -> AsyncIterator[Session]:
    """Bind the call's id to the log, echo it, and log how the call ended."""
    own_id = uuid.uuid4().hex
    request_id = _asked_id(context) or own_id
    left_s = context.time_remaining()
    deadline_s = None if left_s is None else time.monotonic() + left_s
    session = Session(request_id, own_id, deadline_s, types.Usage())
    started_s = time.monotonic()
    with structlog.contextvars.bound_contextvars(request_id=request_id):
        await context.send_initial_metadata(((REQUEST_ID_KEY, request_id),))
        outcome = "OK"
        try:
            yield session
        except ServeError as error:
            outcome = f"{error.code.name} {error.reason}"
            raise
        except (asyncio.CancelledError, GeneratorExit):
            outcome = "CANCELLED"
            raise
        except BaseException:
            outcome = "INTERNAL"
            raise
        finally:
            log.info(
                "request",
                method=method,
                outcome=outcome,
                duration_ms=round((time.monotonic() - started_s) * 1000, 1),
                prompt_tokens=session.usage.prompt_tokens,
                completion_tokens=session.usage.completion_tokens,
                cached_tokens=session.usage.cached_tokens,
            )


def caller(context: grpc.aio.ServicerContext) -> str:
    """Return whose budget a call is charged to: the peer's address without its port."""
    return context.peer().rpartition(":")[0]


def _asked_id(context: grpc.aio.ServicerContext) -> str:
    for key, value in context.invocation_metadata() or ():
        if key == REQUEST_ID_KEY and isinstance(value, str) and _REQUEST_ID.fullmatch(value):
            return value
    return ""
