"""A worker without a model: it counts up from the prompt's last token, as scripted.

The token after t is t + 1. A test may hold it back, let it ask for an item again, fail, or vanish.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc

from tessera.grpc_options import server_options
from tessera.v1 import types_pb2 as types
from tessera.v1 import worker_service_pb2 as pb
from tessera.v1.worker_service_pb2_grpc import WorkerServiceServicer, add_WorkerServiceServicer_to_server

FINGERPRINT = "f" * 64


class FakeWorker(WorkerServiceServicer):
    """Implements the contract with arithmetic.

    Attributes:
        state: what Describe says.
        go: unset, and nothing is generated.
        needs_items: sequences wait until all their items are stored.
        submits, cancels: what has come.
        stored: items by hash, as bytes.
        drop_once: hashes that are asked for again once, as if evicted.
        sequence_error: sent in place of the first token.
    """

    def __init__(self) -> None:
        self.state = pb.WORKER_STATE_READY
        self.fingerprint = FINGERPRINT
        self.go = asyncio.Event()
        self.go.set()
        self.submits: list[pb.Submit] = []
        self.cancels: list[pb.Cancel] = []
        self.stored: dict[bytes, bytes] = {}
        self.transfers: list[bytes] = []
        self.drop_once: set[bytes] = set()
        self.sequence_error: pb.SequenceError | None = None
        self.stage_error: pb.SequenceError | None = None
        self.news = asyncio.Condition()
        self._server: grpc.aio.Server | None = None
        self.address = ""

    async def start(self) -> None:
        """Listen on a free port."""
        self._server = grpc.aio.server(options=server_options(64 << 20))
        add_WorkerServiceServicer_to_server(self, self._server)
        port = self._server.add_insecure_port("127.0.0.1:0" if not self.address else self.address)
        self.address = f"127.0.0.1:{port}"
        await self._server.start()

    async def stop(self) -> None:
        """Vanish: every call ends at once."""
        if self._server is not None:
            await self._server.stop(None)
            self._server = None

    async def Describe(self, request: pb.DescribeRequest, context: grpc.aio.ServicerContext) -> pb.DescribeResponse:  # noqa: N802
        return pb.DescribeResponse(
            state=self.state,
            progress=1.0,
            architecture="Fake",
            fingerprint=self.fingerprint,
            max_model_len=64,
            vocab_size=1000,
            max_sequences=8,
        )

    async def StageItem(  # noqa: N802
        self, request_iterator: AsyncIterator[pb.StageItemRequest], context: grpc.aio.ServicerContext
    ) -> AsyncIterator[pb.StageItemResponse]:
        header: pb.StageItemHeader | None = None
        data = b""
        async for request in request_iterator:
            if request.WhichOneof("message") == "header":
                header, data = request.header, b""
                if self.stage_error is not None:
                    status, error = pb.STAGE_STATUS_REJECTED, self.stage_error
                else:
                    held = header.content_hash in self.stored
                    status, error = pb.STAGE_STATUS_HAVE if held else pb.STAGE_STATUS_SEND, None
                yield pb.StageItemResponse(content_hash=header.content_hash, status=status, error=error)
                continue
            assert header is not None
            data += request.chunk
            if len(data) == header.size_bytes:
                await self._store(header.content_hash, data)
                yield pb.StageItemResponse(content_hash=header.content_hash, status=pb.STAGE_STATUS_STORED)

    async def Execute(  # noqa: N802
        self, request_iterator: AsyncIterator[pb.ExecuteRequest], context: grpc.aio.ServicerContext
    ) -> AsyncIterator[pb.ExecuteResponse]:
        out: asyncio.Queue[pb.ExecuteResponse] = asyncio.Queue()
        tasks = [asyncio.create_task(self._read(request_iterator, out))]
        try:
            while True:
                yield await out.get()
        finally:
            for task in tasks:
                task.cancel()

    async def _read(self, requests: AsyncIterator[pb.ExecuteRequest], out: asyncio.Queue[pb.ExecuteResponse]) -> None:
        running = []
        async for request in requests:
            if request.HasField("submit"):
                self.submits.append(request.submit)
                running.append(asyncio.create_task(self._generate(request.submit, out)))
            elif request.HasField("cancel"):
                self.cancels.append(request.cancel)
            async with self.news:
                self.news.notify_all()

    async def _generate(self, submit: pb.Submit, out: asyncio.Queue[pb.ExecuteResponse]) -> None:
        hashes = [item.content_hash for item in submit.items]
        await self._until(lambda: all(name in self.stored for name in hashes))
        for name in [name for name in hashes if name in self.drop_once]:
            self.drop_once.discard(name)
            del self.stored[name]
            need = pb.NeedItem(request_id=submit.request_id, content_hash=name)
            await out.put(pb.ExecuteResponse(need_items=[need]))
            await self._until(lambda name=name: name in self.stored)
        last = submit.prompt_token_ids[-1]
        for step in range(1, submit.sampling.max_tokens + 1):
            await self.go.wait()
            finish = types.FINISH_REASON_LENGTH if step == submit.sampling.max_tokens else 0
            updates = [
                pb.SequenceUpdate(
                    request_id=submit.request_id,
                    epoch=submit.epoch,
                    choice=choice,
                    token_ids=[] if self.sequence_error else [last + step],
                    finish_reason=finish if not self.sequence_error else 0,
                    error=self.sequence_error,
                )
                for choice in range(submit.sampling.n)
            ]
            await out.put(pb.ExecuteResponse(updates=updates, load=pb.LoadReport(running=1)))
            if self.sequence_error:
                return
            await asyncio.sleep(0)

    async def _store(self, name: bytes, data: bytes) -> None:
        self.transfers.append(name)
        self.stored[name] = data
        async with self.news:
            self.news.notify_all()

    async def _until(self, condition) -> None:  # type: ignore[no-untyped-def]
        async with self.news:
            await self.news.wait_for(condition)

    async def until_cancelled(self) -> pb.Cancel:
        """Wait for a cancellation and return it."""
        await self._until(lambda: bool(self.cancels))
        return self.cancels[0]
