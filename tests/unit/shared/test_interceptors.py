"""Tests of protos/tessera/interceptors.py, on a real grpc.aio server in this process."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
import structlog
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from tessera.errors import ERRORS, InvalidArgument, ServeError
from tessera.interceptors import ErrorInterceptor
from tessera.v1 import inference_service_pb2 as pb
from tessera.v1.inference_service_pb2_grpc import (
    InferenceServiceServicer,
    InferenceServiceStub,
    add_InferenceServiceServicer_to_server,
)

SECRET = "object at 0x7f12 in a private folder"


class Service(InferenceServiceServicer):
    """A service whose methods do what a test says, one of each kind of method."""

    def __init__(self, act: Callable[[], Awaitable[None]]) -> None:
        self.act = act
        self.cancelled = asyncio.Event()

    async def _act(self) -> None:
        try:
            await self.act()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise

    async def GetModel(self, request: Any, context: Any) -> pb.GetModelResponse:  # noqa: N802 - grpc's name
        await self._act()
        return pb.GetModelResponse(model=pb.Model(name="fine"))

    async def StreamChat(self, request: Any, context: Any) -> AsyncIterator[pb.StreamChatResponse]:  # noqa: N802
        yield pb.StreamChatResponse(request_id="first")
        await self._act()
        yield pb.StreamChatResponse(request_id="last")

    async def UploadMedia(self, requests: Any, context: Any) -> pb.UploadMediaResponse:  # noqa: N802
        await self._act()
        return pb.UploadMediaResponse(size_bytes=1)


@asynccontextmanager
async def serving(service: Service) -> AsyncIterator[InferenceServiceStub]:
    """A server with the interceptor, and a stub for it."""
    server = grpc.aio.server(interceptors=[ErrorInterceptor()])
    add_InferenceServiceServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield InferenceServiceStub(channel)
    await server.stop(0)


def failing(error: BaseException) -> Service:
    """A service that raises."""

    async def act() -> None:
        raise error

    return Service(act)


def begin(stub: InferenceServiceStub, method: str) -> Any:
    """A call of a method of each kind, begun."""
    if method == "GetModel":
        return stub.GetModel(pb.GetModelRequest())
    if method == "UploadMedia":
        return stub.UploadMedia(iter([pb.UploadMediaRequest(chunk=b"x")]))
    return stub.StreamChat(pb.ChatRequest())


async def call(stub: InferenceServiceStub, method: str) -> Any:
    """The answer of one call; a stream is read to its end."""
    begun = begin(stub, method)
    return [message async for message in begun] if method == "StreamChat" else await begun


METHODS = ("GetModel", "StreamChat", "UploadMedia")


@pytest.mark.parametrize("method", METHODS)
async def test_answers_pass_unchanged(method: str) -> None:
    """A handler that does not fail is not touched."""

    async def act() -> None:
        return None

    async with serving(Service(act)) as stub:
        answer = await call(stub, method)
    assert answer is not None
    if method == "StreamChat":
        assert [message.request_id for message in answer] == ["first", "last"]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ERRORS)
async def test_each_error_becomes_its_status(kind: type[ServeError], method: str) -> None:
    """Status, text, reason and field path reach the client, also after a stream has begun."""
    async with serving(failing(kind("No way.", reason="NO_WAY", field="a.b[1]"))) as stub:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(stub, method)
    error = caught.value
    assert error.code() is kind.code
    assert error.details() == "No way."
    status = rpc_status.from_call(error)
    info, request = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    assert status.details[0].Unpack(info)
    assert status.details[1].Unpack(request)
    assert (info.reason, request.field_violations[0].field) == ("NO_WAY", "a.b[1]")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("error", [RuntimeError(SECRET), KeyError(SECRET), MemoryError(SECRET), AssertionError(SECRET)])
async def test_unknown_errors_say_nothing_to_the_caller_and_all_to_the_log(error: Exception, method: str) -> None:
    """What is not ours becomes INTERNAL with a generic text; the log has method and traceback."""
    with structlog.testing.capture_logs() as events:
        async with serving(failing(error)) as stub:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call(stub, method)
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    assert SECRET not in repr(caught.value)
    assert SECRET not in str(caught.value.trailing_metadata())
    assert [(event["event"], event["exc_info"]) for event in events] == [("unexpected_error", error)]
    assert events[0]["method"].endswith(method)


@pytest.mark.parametrize("method", METHODS)
async def test_cancellation_reaches_the_handler(method: str) -> None:
    """A caller who leaves cancels the handler; nothing is logged as a failure."""
    started = asyncio.Event()

    async def act() -> None:
        started.set()
        await asyncio.Event().wait()

    service = Service(act)
    with structlog.testing.capture_logs() as events:
        async with serving(service) as stub:
            begun = begin(stub, method)
            await started.wait()
            begun.cancel()
            await asyncio.wait_for(service.cancelled.wait(), 2)
    assert events == []


@pytest.mark.parametrize("method", METHODS)
async def test_requests_that_are_no_messages(method: str) -> None:
    """Bytes that do not parse are the caller's mistake, not ours: grpc.aio by itself would say UNKNOWN, and log it."""

    async def act() -> None:
        return None

    class Reading(Service):
        async def UploadMedia(self, requests: Any, context: Any) -> pb.UploadMediaResponse:  # noqa: N802
            return pb.UploadMediaResponse(size_bytes=len([each async for each in requests]))

    garbage = b"\xff" * 9
    with structlog.testing.capture_logs() as events:
        async with serving(Reading(act)) as stub:
            multi = getattr(stub, method)
            multi._request_serializer = lambda _: garbage
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call(stub, method)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    info = error_details_pb2.ErrorInfo()
    assert rpc_status.from_call(caught.value).details[0].Unpack(info)
    assert info.reason == "MESSAGE_MALFORMED"
    assert events == []


async def test_long_names_do_not_break_the_status() -> None:
    """A text or a path with a name of the caller's in it is cut before it outgrows what metadata may hold."""
    name = "n" * 100_000
    async with serving(failing(InvalidArgument(f"No {name}.", reason="NO_WAY", field=f"a[{name}]"))) as stub:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(stub, "GetModel")
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert len(caught.value.details()) == 500


async def test_errors_keep_their_cause_for_the_log() -> None:
    """A described error that was caused by another one still tells the client only its own text."""
    error = InvalidArgument("The picture cannot be read.", reason="IMAGE_UNREADABLE")
    error.__cause__ = OSError(SECRET)
    async with serving(failing(error)) as stub:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(stub, "GetModel")
    assert SECRET not in repr(caught.value)


@pytest.mark.parametrize("error", [None, InvalidArgument("No way.", reason="NO_WAY"), RuntimeError(SECRET)])
async def test_handlers_that_write_by_themselves(error: Exception | None) -> None:
    """A streaming handler may be a coroutine that writes to the context, as the health service's Watch is."""

    async def watch(request: bytes, context: Any) -> None:
        await context.write(b"one")
        if error is not None:
            raise error
        await context.write(b"two")

    server = grpc.aio.server(interceptors=[ErrorInterceptor()])
    handlers = {"Watch": grpc.unary_stream_rpc_method_handler(watch)}
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("tests.Health", handlers)])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stream = channel.unary_stream("/tests.Health/Watch")(b"")
        written: list[bytes] = []
        try:
            written += [message async for message in stream]
        except grpc.aio.AioRpcError:
            assert error is not None
        code = await stream.code()
    await server.stop(0)
    assert error is not None or written == [b"one", b"two"]
    expected = {type(None): "OK", InvalidArgument: "INVALID_ARGUMENT", RuntimeError: "INTERNAL"}[type(error)]
    assert code.name == expected


async def test_unknown_methods_are_unimplemented() -> None:
    """A method that nobody registered is answered by grpc itself."""
    server = grpc.aio.server(interceptors=[ErrorInterceptor()])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_unary("/tessera.v1.InferenceService/Unknown")(b"")
    await server.stop(0)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
