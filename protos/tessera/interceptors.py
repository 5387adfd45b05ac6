"""The one interceptor that turns errors into statuses.

Handlers raise ServeErrors; whatever else they raise is logged with its
traceback and reaches the caller as INTERNAL with a generic text (grpc.aio
would send the exception's own text, heap addresses included). Requests are
parsed here too: bytes that are no message would end in UNKNOWN.

Next: gateway/server.py and worker/server.py, which install it.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterable, Awaitable, Callable
from contextlib import aclosing
from typing import Any, NoReturn

import grpc
import structlog
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import DecodeError
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from tessera.errors import DOMAIN, Internal, InvalidArgument, ServeError

log = structlog.get_logger(__name__)
Parse = Callable[[Any], Any]

# Names that a caller chose stand in texts and paths; all trailing metadata together has 8 KiB.
_MAX_TEXT_CHARS = 500


def status_of(error: ServeError) -> status_pb2.Status:
    """Return google.rpc.Status with ErrorInfo, and BadRequest and RetryInfo where they apply."""
    details = [error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN)]
    message = error.message[:_MAX_TEXT_CHARS]
    if error.field:
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=error.field[:_MAX_TEXT_CHARS], description=message, reason=error.reason
        )
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    if error.retry_after_s is not None:
        delay = duration_pb2.Duration()
        delay.FromNanoseconds(round(error.retry_after_s * 1e9))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    packed = []
    for detail in details:
        packed.append(any_pb2.Any())
        packed[-1].Pack(detail)
    return status_pb2.Status(code=code_pb2.Code.Value(error.code.name), message=message, details=packed)


class ErrorInterceptor(grpc.aio.ServerInterceptor):
    """Wraps every handler so that it ends in a message or in one described status."""

    async def intercept_service(  # type: ignore[override]
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler:
        """Return the method's handler with its errors translated."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return handler
        method = handler_call_details.method
        if handler.response_streaming:
            kind = "stream_stream" if handler.request_streaming else "unary_stream"
            make = getattr(grpc, f"{kind}_rpc_method_handler")
            wrap = _streaming if inspect.isasyncgenfunction(getattr(handler, kind)) else _writing
            inner = wrap(getattr(handler, kind), method, _parser(handler))
        else:
            kind = "stream_unary" if handler.request_streaming else "unary_unary"
            make = getattr(grpc, f"{kind}_rpc_method_handler")
            inner = _unary(getattr(handler, kind), method, _parser(handler))
        return make(inner, None, handler.response_serializer)


def _parser(handler: grpc.RpcMethodHandler) -> Parse:
    """Return what turns the bytes that a handler gets, or an iterator of them, into its messages."""

    deserialize = handler.request_deserializer or bytes

    def parse(data: bytes) -> Any:
        try:
            return deserialize(data)
        except DecodeError:
            raise InvalidArgument(
                "The request is no protobuf of its type, or is nested too deeply.", reason="MESSAGE_MALFORMED"
            ) from None

    return (lambda requests: _Parsed(requests, parse)) if handler.request_streaming else parse


class _Parsed:
    """An iterator of messages; no generator, which would have to be closed."""

    def __init__(self, requests: AsyncIterable[bytes], parse: Parse) -> None:
        self._requests = requests
        self._parse = parse

    def __aiter__(self) -> _Parsed:
        return self

    async def __anext__(self) -> Any:
        return self._parse(await anext(aiter(self._requests)))  # grpc's is one iterator, however often it is asked


def _unary(inner: Callable, method: str, parse: Parse) -> Callable:
    async def handle(request: Any, context: grpc.aio.ServicerContext) -> Any:
        try:
            return await inner(parse(request), context)
        except BaseException as error:
            await _end(error, context, method)

    return handle


def _streaming(inner: Callable, method: str, parse: Parse) -> Callable:
    async def handle(request: Any, context: grpc.aio.ServicerContext) -> Any:
        try:
            # Closed here and now: left to the garbage collector, a cancelled request would run on.
            async with aclosing(inner(parse(request), context)) as responses:
                async for response in responses:
                    yield response
        except BaseException as error:
            await _end(error, context, method)

    return handle


def _writing(inner: Callable, method: str, parse: Parse) -> Callable:
    # A streaming handler may also be a coroutine that writes to the context, as the health service's Watch is.
    async def handle(request: Any, context: grpc.aio.ServicerContext) -> None:
        try:
            await inner(parse(request), context)
        except BaseException as error:
            await _end(error, context, method)

    return handle


async def _end(error: BaseException, context: grpc.aio.ServicerContext, method: str) -> NoReturn:
    if isinstance(error, asyncio.CancelledError | GeneratorExit | grpc.aio.AbortError):
        raise error
    if not isinstance(error, ServeError):
        if not isinstance(error, Exception):
            raise error
        log.error("unexpected_error", method=method, exc_info=error)
        error = Internal()
    status = rpc_status.to_status(status_of(error))
    context.set_trailing_metadata(status.trailing_metadata)
    await context.abort(status.code, status.details, status.trailing_metadata)
    raise AssertionError("abort returned")
