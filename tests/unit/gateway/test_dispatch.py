"""gateway/worker_link.py and dispatch.py against a worker that counts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import grpc
import numpy as np
import pytest

from gateway.dispatch import Dispatcher, Job
from gateway.worker_link import WorkerLink, item_chunks
from tessera.errors import DeadlineExceeded, InvalidArgument, Unavailable
from tessera.items import MultimodalItem, PlaceholderRange
from tessera.modality import Modality, PayloadKind
from tessera.v1 import types_pb2 as types
from tessera.v1 import worker_service_pb2 as pb
from tests.fakes.worker import FINGERPRINT, FakeWorker

pytestmark = pytest.mark.timeout(20)


@pytest.fixture
async def worker() -> AsyncIterator[FakeWorker]:
    """A fake worker that listens."""
    fake = FakeWorker()
    await fake.start()
    yield fake
    await fake.stop()


@pytest.fixture
async def link(worker: FakeWorker) -> AsyncIterator[WorkerLink]:
    """A link that is ready."""
    async for made in open_link(worker.address):
        yield made


async def open_link(address: str, fingerprint: str = FINGERPRINT) -> AsyncIterator[WorkerLink]:
    """Run a link and wait until it is ready."""
    changed = asyncio.Event()
    made = WorkerLink(address, fingerprint, "gateway", 0.01, changed.set)
    task = asyncio.create_task(made.run())
    while not made.ready:
        await changed.wait()
        changed.clear()
    yield made
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def job(items: tuple[MultimodalItem, ...] = (), deadline_s: float | None = None, **sampling: int) -> Job:
    params = types.SamplingParams(**({"max_tokens": 3, "n": 1} | sampling))  # type: ignore[arg-type]
    return Job("r1", (5, 6, 7), items, params, deadline_s, b"salt")


def item(fill: int = 1, size: int = 32) -> MultimodalItem:
    array = np.full((1, size, size, 3), fill, np.uint8)
    made = MultimodalItem(
        Modality.IMAGE, PayloadKind.PIXELS_U8, b"", "U8", array, grid_thw=(1, 2, 2), ranges=(PlaceholderRange(1, 1),)
    )
    return replace(made, content_hash=made.compute_hash())


async def tokens(dispatcher: Dispatcher, asked: Job) -> dict[int, list[int]]:
    """Run a job to its end."""
    out: dict[int, list[int]] = {}
    async with dispatcher.run(asked) as run:
        async for updates in run.updates():
            for update in updates:
                out.setdefault(update.choice, []).extend(update.token_ids)
    return out


async def test_tokens_come_back_for_every_choice(worker: FakeWorker, link: WorkerLink) -> None:
    """A job's tokens arrive in order, for each of its choices, and nothing is cancelled afterwards."""
    assert await tokens(Dispatcher([link]), job(n=2)) == {0: [8, 9, 10], 1: [8, 9, 10]}
    submit = worker.submits[0]
    assert (submit.request_id, submit.cache_salt, list(submit.prompt_token_ids)) == ("r1", b"salt", [5, 6, 7])
    assert worker.cancels == []


async def test_items_are_staged_beside_the_stream(worker: FakeWorker, link: WorkerLink) -> None:
    """An item's bytes come by StageItem, in chunks; the submission names it by hash."""
    big = item(size=1024)
    assert await tokens(Dispatcher([link]), job((big,))) == {0: [8, 9, 10]}
    assert worker.stored[big.content_hash] == big.array.tobytes()  # type: ignore[union-attr]
    assert worker.submits[0].items[0].content_hash == big.content_hash
    assert worker.submits[0].items[0].ranges[0].length == 1


async def test_an_item_that_the_worker_has_is_not_sent_again(worker: FakeWorker, link: WorkerLink) -> None:
    """The worker answers HAVE: one transfer serves two requests."""
    for _ in range(2):
        await tokens(Dispatcher([link]), job((item(),)))
    assert len(worker.transfers) == 1


async def test_an_evicted_item_is_staged_again(worker: FakeWorker, link: WorkerLink) -> None:
    """NEED_ITEM brings the bytes a second time, and the request goes on."""
    picture = item()
    worker.drop_once.add(picture.content_hash)
    assert await tokens(Dispatcher([link]), job((picture,))) == {0: [8, 9, 10]}
    assert worker.transfers == [picture.content_hash] * 2


async def test_leaving_a_run_cancels_it_on_the_worker(worker: FakeWorker, link: WorkerLink) -> None:
    """A client that leaves stops its request, by id and epoch."""
    worker.go.clear()
    async with Dispatcher([link]).run(job()):
        await asyncio.sleep(0)
    assert (await worker.until_cancelled()).request_id == "r1"


async def test_a_choice_can_be_stopped_alone(worker: FakeWorker, link: WorkerLink) -> None:
    """A stop string ends one choice; the other goes on to its end."""
    seen: dict[int, int] = {0: 0, 1: 0}
    async with Dispatcher([link]).run(job(n=2)) as run:
        async for updates in run.updates():
            for update in updates:
                seen[update.choice] += len(update.token_ids)
            run.stop_choice(0)
    assert seen[1] == 3
    assert (await worker.until_cancelled()).choice == 0


async def test_loss_of_the_worker_is_unavailable_and_it_is_used_again(worker: FakeWorker, link: WorkerLink) -> None:
    """Requests of a lost worker end with WORKER_LOST; when it is back, the next request runs."""
    worker.go.clear()
    dispatcher = Dispatcher([link])
    running = asyncio.create_task(tokens(dispatcher, job()))
    while not worker.submits:
        await asyncio.sleep(0.01)
    await worker.stop()
    with pytest.raises(Unavailable) as caught:
        await running
    assert caught.value.reason == "WORKER_LOST"
    with pytest.raises(Unavailable) as caught:
        dispatcher.place()
    assert caught.value.reason == "NO_WORKER"
    worker.go.set()
    await worker.start()
    while not link.ready:
        await asyncio.sleep(0.01)
    assert await tokens(dispatcher, job()) == {0: [8, 9, 10]}


async def test_a_sequence_error_becomes_the_requests_error(worker: FakeWorker, link: WorkerLink) -> None:
    """What the worker reports of a sequence keeps its code, reason and field."""
    worker.sequence_error = pb.SequenceError(
        code=grpc.StatusCode.INVALID_ARGUMENT.value[0], reason="TOO_BIG", field="items[0]", message="No."
    )
    with pytest.raises(InvalidArgument) as caught:
        await tokens(Dispatcher([link]), job())
    assert (caught.value.reason, caught.value.field) == ("TOO_BIG", "items[0]")


async def test_a_refused_item_ends_the_request(worker: FakeWorker, link: WorkerLink) -> None:
    """REJECTED names the item at fault."""
    worker.stage_error = pb.SequenceError(code=3, reason="HASH_MISMATCH", field="", message="No.")
    with pytest.raises(InvalidArgument) as caught:
        await tokens(Dispatcher([link]), job((item(),)))
    assert (caught.value.reason, caught.value.field) == ("HASH_MISMATCH", "items[0]")


async def test_a_deadline_that_has_passed_is_not_submitted(worker: FakeWorker, link: WorkerLink) -> None:
    """No time left: DEADLINE_EXCEEDED, and the worker hears nothing."""
    with pytest.raises(DeadlineExceeded):
        await tokens(Dispatcher([link], clock=lambda: 10.0), job(deadline_s=10.0))
    assert worker.submits == []
    await tokens(Dispatcher([link], clock=lambda: 10.0), job(deadline_s=10.5))
    assert worker.submits[0].timeout_ms == 500


async def test_a_worker_with_other_files_is_refused(worker: FakeWorker) -> None:
    """A fingerprint that differs keeps the worker out, however ready it says it is."""
    made = WorkerLink(worker.address, "0" * 64, "gateway", 0.01, lambda: None)
    task = asyncio.create_task(made.run())
    while made.description is None:
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.05)
    assert not made.ready
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_chunks_are_at_most_a_mebibyte_and_whole() -> None:
    """An item's bytes are cut in order; none is left out."""
    big = item(fill=3, size=1024)
    chunks = list(item_chunks(big))
    assert max(map(len, chunks)) <= 1 << 20
    assert b"".join(chunks) == big.array.tobytes()  # type: ignore[union-attr]
