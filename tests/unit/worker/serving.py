"""A worker service on loopback in the test's own loop, with the fake model behind it."""

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Iterable

import grpc

from tessera.grpc_options import channel_options, server_options
from tessera.interceptors import ErrorInterceptor
from tessera.items import MultimodalItem, item_to_proto
from tessera.tensors import from_array
from tessera.v1 import types_pb2 as types
from tessera.v1 import worker_service_pb2 as pb
from tessera.v1.worker_service_pb2_grpc import WorkerServiceStub, add_WorkerServiceServicer_to_server
from tests.unit.worker.engine.fakes import FakeModel
from worker.bridge import EngineBridge
from worker.engine.config import EngineConfig
from worker.engine.engine import Engine
from worker.engine.sequence import SequenceItem
from worker.service import WorkerService
from worker.status import WorkerStatus

TIMEOUT_S = 10.0


class GatedModel(FakeModel):
    """A fake model that runs only while its gate is open."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()
        self.gate.set()

    def forward(self, batch, kv_cache):  # type: ignore[no-untyped-def]
        assert self.gate.wait(TIMEOUT_S)
        return super().forward(batch, kv_cache)


class Serving:
    """What a test talks to."""

    def __init__(self, stub: WorkerServiceStub, engine: Engine, model: GatedModel, bridge: EngineBridge) -> None:
        self.stub, self.engine, self.model, self.bridge = stub, engine, model, bridge
        self.status = WorkerStatus()

    async def stage(self, item: MultimodalItem, data: bytes | None = None) -> list[pb.StageItemResponse]:
        """Stage an item, in chunks of 100 bytes; returns the answers."""
        call = self.stub.StageItem(timeout=TIMEOUT_S)
        await call.write(pb.StageItemRequest(header=header_of(item)))
        answers = [await call.read()]
        if answers[0].status == pb.STAGE_STATUS_SEND:
            data = item.array.tobytes() if data is None else data  # type: ignore[union-attr]
            for start in range(0, len(data), 100):
                await call.write(pb.StageItemRequest(chunk=data[start : start + 100]))
            answers.append(await call.read())
        await call.done_writing()
        return answers

    async def idle(self) -> pb.LoadReport:
        """Return the load once nothing is held."""
        async with asyncio.timeout(TIMEOUT_S):
            while True:
                load = (await self.stub.Describe(pb.DescribeRequest())).load
                if not (load.running or load.waiting or load.used_blocks or load.pinned_items):
                    return load


class Gateway:
    """One Execute stream and what has come over it."""

    def __init__(self, serving: Serving) -> None:
        self.call = serving.stub.Execute(timeout=TIMEOUT_S)
        self.messages: list[pb.ExecuteResponse] = []
        self.tokens: dict[tuple[str, int], list[int]] = {}
        self.ends: dict[tuple[str, int], pb.SequenceUpdate] = {}

    async def send(self, *commands: pb.Submit | pb.Cancel) -> None:
        """Send submissions and cancellations."""
        for command in commands:
            field = "submit" if isinstance(command, pb.Submit) else "cancel"
            await self.call.write(pb.ExecuteRequest(**{field: command}))

    async def read(self) -> pb.ExecuteResponse:
        """Read one message and note its news."""
        message = await self.call.read()
        assert message is not grpc.aio.EOF
        self.messages.append(message)
        for update in message.updates:
            key = (update.request_id, update.choice)
            assert key not in self.ends
            self.tokens.setdefault(key, []).extend(update.token_ids)
            if update.finish_reason or update.HasField("error"):
                self.ends[key] = update
        return message

    async def until(self, *keys: tuple[str, int]) -> None:
        """Read until these choices have ended."""
        while not set(keys) <= self.ends.keys():
            await self.read()


@contextlib.asynccontextmanager
async def serving(heartbeat_s: float = 60.0, **limits: int) -> AsyncIterator[Serving]:
    """Serve a fake model."""
    sizes = {"max_model_len": 64, "num_blocks": 64, "block_size": 4, "max_sequences": 8, "max_batched_tokens": 32}
    cache = {"encoder_cache_bytes": 64 * 32, "item_token_bytes": 32, "staged_bytes": 1 << 16}
    model, ready, status = GatedModel(), asyncio.Event(), WorkerStatus()
    engine = Engine(EngineConfig(**(sizes | cache | limits)), model)  # type: ignore[arg-type]

    def fail(error: BaseException) -> None:
        raise error

    bridge = EngineBridge(lambda: engine, lambda _: ready.set(), fail, heartbeat_s)
    service = WorkerService(bridge, status)
    server = grpc.aio.server(interceptors=[ErrorInterceptor()], options=server_options(16 << 20))
    add_WorkerServiceServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    bridge.start()
    await ready.wait()
    service.open(engine, pb.DescribeResponse(architecture="Fake"))
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=channel_options()) as channel:
        served = Serving(WorkerServiceStub(channel), engine, model, bridge)
        served.status = status
        yield served
    model.gate.set()
    await server.stop(None)
    await bridge.stop()


def submit_of(
    request_id: str, prompt: Iterable[int], items: Iterable[tuple[MultimodalItem, SequenceItem]] = (), **fields
) -> pb.Submit:  # type: ignore[no-untyped-def]
    """Return a submission; `sampling` is a dict."""
    messages = []
    for item, placed in items:
        message = item_to_proto(item.without_bytes())
        message.ranges.extend(types.PlaceholderRange(offset=r.offset, length=r.length) for r in placed.ranges)
        messages.append(message)
    sampling = types.SamplingParams(**({"max_tokens": 8} | fields.pop("sampling", {})))
    return pb.Submit(request_id=request_id, prompt_token_ids=prompt, items=messages, sampling=sampling, **fields)


def header_of(item: MultimodalItem) -> pb.StageItemHeader:
    """Return an item's header."""
    message = item_to_proto(item.without_bytes())
    message.tensor.CopyFrom(from_array(item.array, item.dtype, with_data=False))  # type: ignore[arg-type]
    return pb.StageItemHeader(item=message, content_hash=item.content_hash, size_bytes=item.size_bytes)
