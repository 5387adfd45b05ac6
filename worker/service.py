"""WorkerService: Execute, StageItem and Describe over the engine's bridge.

Next: worker/bridge.py
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING

import grpc
import structlog

from tessera.errors import Internal, InvalidArgument, ServeError, Unavailable
from tessera.v1 import worker_service_pb2 as pb
from tessera.v1.worker_service_pb2_grpc import WorkerServiceServicer
from worker.answers import error_of, response_of
from worker.bridge import EngineBridge, GatewayStream
from worker.engine.failures import failure_of
from worker.engine.output import FinishReason, SequenceUpdate
from worker.staging import Upload
from worker.status import WorkerStatus
from worker.submission import SubmitReader

if TYPE_CHECKING:
    from worker.engine.engine import Engine

log = structlog.get_logger(__name__)


class WorkerService(WorkerServiceServicer):
    """Implements the contract; see worker_service.proto.

    Args:
        bridge: to the engine.
        status: what the worker is doing.
        clock: the engine's own, in seconds.
    """

    def __init__(self, bridge: EngineBridge, status: WorkerStatus, clock: Callable[[], float] = time.monotonic) -> None:
        self._bridge = bridge
        self._status = status
        self._clock = clock
        self._engine: Engine | None = None
        self._reader: SubmitReader | None = None
        self._static: pb.DescribeResponse | None = None

    def open(self, engine: "Engine", static: pb.DescribeResponse) -> None:
        """Begin to take requests.

        Args:
            engine: ready.
            static: what Describe says of it.
        """
        self._engine, self._static = engine, static
        self._reader = SubmitReader(engine.model.info, engine.config.max_model_len)
        self._status.report("ready", 1.0)

    @property
    def is_open(self) -> bool:
        """Whether there is an engine that takes, or has taken, requests."""
        return self._engine is not None

    async def Describe(self, request: pb.DescribeRequest, context: grpc.aio.ServicerContext) -> pb.DescribeResponse:  # noqa: N802
        """Answer at any time."""
        return self._status.describe(self._static, self._bridge.last_load)

    async def Execute(  # noqa: N802
        self, request_iterator: AsyncIterator[pb.ExecuteRequest], context: grpc.aio.ServicerContext
    ) -> AsyncIterator[pb.ExecuteResponse]:
        """Run what one gateway asks for, until it leaves."""
        self._check_ready()
        stream = self._bridge.open_stream()
        commands = asyncio.create_task(self._follow(request_iterator, stream))
        try:
            async for news in stream.news():
                yield response_of(news)
        finally:
            commands.cancel()
            await asyncio.gather(commands, return_exceptions=True)
            self._bridge.close_stream(stream)
            log.info("gateway_left", owner=stream.owner)

    async def StageItem(  # noqa: N802
        self, request_iterator: AsyncIterator[pb.StageItemRequest], context: grpc.aio.ServicerContext
    ) -> AsyncIterator[pb.StageItemResponse]:
        """Take items one after the other; one that is wrong is rejected, and the next may come."""
        self._check_ready()
        upload: Upload | None = None
        try:
            async for request in request_iterator:
                match request.WhichOneof("message"):
                    case "header":
                        if upload is not None:
                            raise InvalidArgument("The item before is not complete.", field="header")
                        upload, answer = self._begin(request.header)
                        yield answer
                    case "chunk":
                        if upload is None:
                            raise InvalidArgument("A chunk without a header.", reason="HEADER_MISSING", field="chunk")
                        upload.feed(request.chunk)
                        if upload.complete:
                            finished, upload = upload, None
                            yield await self._finish(finished)
                    case _:
                        raise InvalidArgument("A message has content.", reason="FIELD_REQUIRED", field="message")
        finally:
            if upload is not None:
                upload.abandon()

    def _check_ready(self) -> None:
        if not self._status.is_ready:
            raise Unavailable(f"The worker is {self._status.state}.", reason="WORKER_NOT_READY")

    async def _follow(self, requests: AsyncIterator[pb.ExecuteRequest], stream: GatewayStream) -> None:
        """Carry out a gateway's commands; its half-close ends the stream once all its choices have ended."""
        try:
            async for request in requests:
                match request.WhichOneof("command"):
                    case "submit":
                        self._submit(stream, request.submit)
                    case "cancel":
                        cancel = request.cancel
                        choice = cancel.choice if cancel.HasField("choice") else None
                        self._bridge.cancel(stream, cancel.request_id, cancel.epoch, choice)
                    case "hello":
                        log.info("gateway_connected", owner=stream.owner, gateway_id=request.hello.gateway_id[:64])
                    case _:
                        raise InvalidArgument("A message holds a command.", reason="FIELD_REQUIRED", field="command")
        except ServeError as error:
            stream.end(error)
        except Exception as error:
            log.error("commands_failed", owner=stream.owner, exc_info=error)
            stream.end(Internal())
        else:
            stream.end()

    def _submit(self, stream: GatewayStream, submit: pb.Submit) -> None:
        assert self._reader is not None
        try:
            self._check_ready()
            group = self._reader.read(submit, stream.owner, self._clock())
        except Exception as error:
            if not isinstance(error, ServeError):
                log.error("submit_failed", request_id=submit.request_id[:64], exc_info=error)
            self._bridge.refuse(stream, _refusal(submit, stream.owner, error))
        else:
            self._bridge.submit(stream, group)

    def _begin(self, header: pb.StageItemHeader) -> tuple[Upload | None, pb.StageItemResponse]:
        assert self._engine is not None and self._reader is not None
        if self._engine.has_item(header.content_hash):
            return None, pb.StageItemResponse(content_hash=header.content_hash, status=pb.STAGE_STATUS_HAVE)
        try:
            upload = Upload(header, self._engine.items, self._reader, self._engine.config.max_item_tokens)
        except ServeError as error:
            return None, _rejected(header.content_hash, error)
        return upload, pb.StageItemResponse(content_hash=header.content_hash, status=pb.STAGE_STATUS_SEND)

    async def _finish(self, upload: Upload) -> pb.StageItemResponse:
        try:
            item = await asyncio.to_thread(upload.build)
            upload.keep(item)
        except ServeError as error:
            return _rejected(upload.content_hash, error)
        finally:
            upload.abandon()
        self._bridge.wake()
        return pb.StageItemResponse(content_hash=upload.content_hash, status=pb.STAGE_STATUS_STORED)


def _rejected(content_hash: bytes, error: ServeError) -> pb.StageItemResponse:
    return pb.StageItemResponse(
        content_hash=content_hash, status=pb.STAGE_STATUS_REJECTED, error=error_of(failure_of(error))
    )


def _refusal(submit: pb.Submit, owner: int, error: Exception) -> SequenceUpdate:
    choice = submit.choices[0] if submit.choices else 0
    return SequenceUpdate(
        owner, submit.request_id, submit.epoch, choice, finish_reason=FinishReason.ERROR, failure=failure_of(error)
    )
