"""One worker as the gateway reaches it: its Execute stream, its items, its load.

The link describes the worker until it is ready, opens the one stream, hands
each update to the request that waits for it, and starts over when the worker
is lost. Requests of a lost worker end with UNAVAILABLE.

Next: dispatch.py.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial

import grpc
import numpy as np
import structlog

from gateway.schedule.placement import WorkerView
from tessera.errors import Internal, ServeError, Unavailable, error_for_code
from tessera.grpc_options import channel_options
from tessera.items import MultimodalItem, item_to_proto
from tessera.tensors import from_array
from tessera.v1 import worker_service_pb2 as pb
from tessera.v1.worker_service_pb2_grpc import WorkerServiceStub

log = structlog.get_logger(__name__)

CHUNK_BYTES = 1 << 20
DESCRIBE_TIMEOUT_S = 5.0


class Subscription:
    """News of one submitted request, kept until it is read; what comes meanwhile is read at once."""

    def __init__(self, request_id: str, epoch: int, choices: int) -> None:
        self.request_id = request_id
        self.epoch = epoch
        self.open_choices = set(range(choices))
        self._updates: list[pb.SequenceUpdate] = []
        self._error: ServeError | None = None
        self._news = asyncio.Event()

    @property
    def ended(self) -> bool:
        """Whether every choice has ended and all its news have been read."""
        return not self.open_choices and not self._updates

    def add(self, update: pb.SequenceUpdate) -> None:
        """Take an update; one that ends a choice closes it."""
        if update.HasField("error") or update.finish_reason:
            self.open_choices.discard(update.choice)
        self._updates.append(update)
        self._news.set()

    def fail(self, error: ServeError) -> None:
        """End the request with an error; the first one counts."""
        self._error = self._error or error
        self._news.set()

    async def next(self) -> list[pb.SequenceUpdate]:
        """Return all updates since the last call, waiting for at least one.

        Raises:
            ServeError: the request failed as a whole.
        """
        await self._news.wait()
        self._news.clear()
        if self._error is not None and not self._updates:
            self._news.set()
            raise self._error
        updates, self._updates = self._updates, []
        if self._error is not None:
            self._news.set()
        return updates


class WorkerLink:
    """The gateway's end of one worker.

    Args:
        address: host:port.
        fingerprint: of the gateway's own model files; a worker that differs is refused.
        gateway_id: for the worker's log.
        interval_s: seconds between tries to reach it.
        on_change: called when it becomes ready or is lost.
    """

    def __init__(
        self, address: str, fingerprint: str, gateway_id: str, interval_s: float, on_change: Callable[[], None]
    ) -> None:
        self.address = address
        self.description: pb.DescribeResponse | None = None
        self.ready = False
        self.reachable = False
        self._fingerprint = fingerprint
        self._gateway_id = gateway_id
        self._interval_s = interval_s
        self._on_change = on_change
        self._load = pb.LoadReport()
        self._subscriptions: dict[str, Subscription] = {}
        self._commands: asyncio.Queue[pb.ExecuteRequest] = asyncio.Queue()
        self._staging: dict[bytes, asyncio.Task[None]] = {}
        self._items: dict[str, dict[bytes, MultimodalItem]] = {}
        self._channel: grpc.aio.Channel | None = None
        self._stub: WorkerServiceStub | None = None
        self._refused = ""
        self._closing = False

    # ---- what placement and GetModel see

    def view(self) -> WorkerView:
        """Return what placement needs to know."""
        in_flight = sum(len(s.open_choices) for s in self._subscriptions.values())
        most = self.description.max_sequences if self.description else 1
        return WorkerView(self.ready, in_flight, self._load.waiting + self._load.running, most)

    async def refresh(self) -> None:
        """Ask the worker for its present description and load; silent where it does not answer."""
        if self._stub is None:
            return
        with contextlib.suppress(grpc.aio.AioRpcError):
            self.description = await self._stub.Describe(pb.DescribeRequest(), timeout=1.0)
            self._load = self.description.load

    @property
    def load(self) -> pb.LoadReport:
        """The last load report."""
        return self._load

    # ---- requests

    def submit(self, submit: pb.Submit, items: tuple[MultimodalItem, ...]) -> Subscription:
        """Send a request down the stream and return its news; items follow by `stage`.

        Raises:
            Unavailable: the worker has been lost meanwhile.
        """
        if not self.ready:
            raise Unavailable("The worker was lost.", reason="WORKER_LOST")
        subscription = Subscription(submit.request_id, submit.epoch, submit.sampling.n)
        self._subscriptions[submit.request_id] = subscription
        self._items[submit.request_id] = {item.content_hash: item for item in items}
        self._commands.put_nowait(pb.ExecuteRequest(submit=submit))
        return subscription

    def cancel_choice(self, subscription: Subscription, choice: int) -> None:
        """Stop one choice (a stop string ended it)."""
        subscription.open_choices.discard(choice)
        cancel = pb.Cancel(request_id=subscription.request_id, epoch=subscription.epoch, choice=choice)
        self._commands.put_nowait(pb.ExecuteRequest(cancel=cancel))

    def release(self, subscription: Subscription) -> None:
        """Forget a request, and stop what still runs of it."""
        if self._subscriptions.get(subscription.request_id) is not subscription:
            return
        del self._subscriptions[subscription.request_id]
        del self._items[subscription.request_id]
        if subscription.open_choices and self.ready:
            cancel = pb.Cancel(request_id=subscription.request_id, epoch=subscription.epoch)
            self._commands.put_nowait(pb.ExecuteRequest(cancel=cancel))

    async def stage(self, items: tuple[MultimodalItem, ...]) -> None:
        """Bring items to the worker; several requests that bring the same one share the transfer.

        Raises:
            ServeError: the worker refuses one; field "items[i]".
        """
        for index, item in enumerate(items):
            task = self._staging.get(item.content_hash)
            if task is None:
                task = asyncio.create_task(self._stage_one(item))
                self._staging[item.content_hash] = task
                task.add_done_callback(partial(self._forget_staging, item.content_hash))
            try:
                # One requester's cancellation leaves the others' transfer alone.
                await asyncio.shield(task)
            except ServeError as error:
                raise error.under(f"items[{index}]") from None

    def _forget_staging(self, content_hash: bytes, task: asyncio.Task[None]) -> None:
        self._staging.pop(content_hash, None)
        if not task.cancelled():
            task.exception()  # seen by the requests that wait for it; there may be none left

    async def _stage_one(self, item: MultimodalItem) -> None:
        assert self._stub is not None
        call = self._stub.StageItem()
        try:
            header = item_header(item)
            await call.write(pb.StageItemRequest(header=header))
            answer = await call.read()
            if answer is not grpc.aio.EOF and answer.status == pb.STAGE_STATUS_SEND:
                for chunk in item_chunks(item):
                    await call.write(pb.StageItemRequest(chunk=chunk))
                answer = await call.read()
            await call.done_writing()
            if answer is grpc.aio.EOF:
                status = await call.code()
                raise Unavailable(f"The worker ended the transfer of an item ({status.name}).", reason="WORKER_LOST")
            if answer.status == pb.STAGE_STATUS_REJECTED:
                raise sequence_error(answer.error)
        except grpc.aio.AioRpcError as error:
            raise rpc_error(error) from error
        finally:
            call.cancel()

    # ---- the stream

    async def run(self) -> None:
        """Keep the stream open until cancelled."""
        try:
            while True:
                try:
                    await self._session()
                except grpc.aio.AioRpcError as error:
                    self.reachable = False
                    log.debug("worker_unreachable", worker=self.address, code=error.code().name)
                await asyncio.sleep(self._interval_s)
        finally:
            self._lose()
            await self._close_channel()

    async def _session(self) -> None:
        """One life of the stream: describe until ready, execute until lost."""
        if self._channel is None:
            self._channel = grpc.aio.insecure_channel(self.address, options=channel_options())
            self._stub = WorkerServiceStub(self._channel)
        assert self._stub is not None
        self.description = await self._stub.Describe(
            pb.DescribeRequest(), timeout=DESCRIBE_TIMEOUT_S, wait_for_ready=False
        )
        self._load = self.description.load
        self.reachable = True
        self._on_change()
        if self.description.state != pb.WORKER_STATE_READY or not self._accepts(self.description):
            return
        self._commands = asyncio.Queue()
        call = self._stub.Execute(self._outgoing())
        try:
            self.ready = True
            log.info("worker_ready", worker=self.address, device=self.description.device)
            self._on_change()
            async for response in call:
                self._deliver(response)
        except asyncio.CancelledError:
            self._closing = True
            raise
        finally:
            call.cancel()
            self._lose()

    def _accepts(self, description: pb.DescribeResponse) -> bool:
        if description.fingerprint == self._fingerprint:
            self._refused = ""
            return True
        if self._refused != description.fingerprint:
            self._refused = description.fingerprint
            log.error(
                "worker_refused",
                worker=self.address,
                reason="its model files differ from the gateway's; give both the same --model",
                gateway_fingerprint=self._fingerprint,
                worker_fingerprint=description.fingerprint,
            )
        return False

    async def _outgoing(self) -> AsyncIterator[pb.ExecuteRequest]:
        yield pb.ExecuteRequest(hello=pb.Hello(gateway_id=self._gateway_id))
        while True:
            yield await self._commands.get()

    def _deliver(self, response: pb.ExecuteResponse) -> None:
        self._load = response.load
        for update in response.updates:
            subscription = self._subscriptions.get(update.request_id)
            # Late news of an earlier submission carry an older epoch.
            if subscription is not None and subscription.epoch == update.epoch:
                subscription.add(update)
        for need in response.need_items:
            self._restage(need)

    def _restage(self, need: pb.NeedItem) -> None:
        subscription = self._subscriptions.get(need.request_id)
        item = self._items.get(need.request_id, {}).get(need.content_hash)
        if subscription is None or item is None:
            return
        task = asyncio.create_task(self.stage((item,)))
        task.add_done_callback(lambda done: fail_with(subscription, done))

    def _lose(self) -> None:
        if not self.ready:
            return
        self.ready = False
        if not self._closing:
            log.warning("worker_lost", worker=self.address, requests=len(self._subscriptions))
        for subscription in self._subscriptions.values():
            subscription.fail(Unavailable("The worker that ran the request was lost.", reason="WORKER_LOST"))
        self._load = pb.LoadReport()
        self._on_change()

    async def _close_channel(self) -> None:
        if self._channel is not None:
            await self._channel.close()
            self._channel = self._stub = None


def fail_with(subscription: Subscription, task: asyncio.Task[None]) -> None:
    """Give a request the error with which a task of its own ended, if it did."""
    if task.cancelled() or (error := task.exception()) is None:
        return
    if not isinstance(error, ServeError):
        log.error("unexpected_error", request_id=subscription.request_id, exc_info=error)
        error = Internal()
    subscription.fail(error)


def item_header(item: MultimodalItem) -> pb.StageItemHeader:
    """Return the header of an item's transfer: everything but the bytes."""
    assert item.array is not None
    message = item_to_proto(item.without_bytes())
    message.ClearField("ranges")
    message.tensor.CopyFrom(from_array(item.array, item.dtype, with_data=False))
    for name, side in item.side_arrays.items():
        message.side_tensors[name].CopyFrom(from_array(side.array, side.dtype, with_data=False))
    return pb.StageItemHeader(item=message, content_hash=item.content_hash, size_bytes=item.size_bytes)


def item_chunks(item: MultimodalItem) -> Iterator[bytes]:
    """Yield an item's bytes in order: the tensor's, then those of the side tensors by name."""
    assert item.array is not None
    for array in (item.array, *(item.side_arrays[name].array for name in sorted(item.side_arrays))):
        view = memoryview(np.ascontiguousarray(array)).cast("B")  # type: ignore[arg-type]
        for start in range(0, len(view), CHUNK_BYTES):
            yield bytes(view[start : start + CHUNK_BYTES])


def sequence_error(error: pb.SequenceError) -> ServeError:
    """Return the error that a worker reported."""
    return error_for_code(error.code, error.message, reason=error.reason, field=error.field)


def rpc_error(error: grpc.aio.AioRpcError) -> ServeError:
    """Return the error of a failed call to a worker; what is not the request's fault is the worker's loss."""
    if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
        return error_for_code(error.code().value[0], error.details() or "", reason="WORKER_BUSY")
    return Unavailable("The worker that ran the request was lost.", reason="WORKER_LOST")
