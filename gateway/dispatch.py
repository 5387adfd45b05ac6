"""Dispatch: a processed request goes to a worker, and its tokens come back.

Next: answer.py.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import structlog

from gateway.schedule.placement import Placement
from gateway.worker_link import Subscription, WorkerLink, fail_with, sequence_error
from tessera.errors import DeadlineExceeded, Unavailable
from tessera.items import MultimodalItem, item_to_proto
from tessera.v1 import types_pb2 as types
from tessera.v1 import worker_service_pb2 as pb

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Job:
    """What is to be run.

    Attributes:
        request_id: unique among running requests.
        token_ids: the expanded prompt.
        items: with bytes, hashes and ranges, ordered by first offset.
        sampling: resolved; every scalar is set.
        deadline_s: monotonic time, or None.
        cache_salt: of the cache keys.
    """

    request_id: str
    token_ids: tuple[int, ...]
    items: tuple[MultimodalItem, ...]
    sampling: types.SamplingParams
    deadline_s: float | None
    cache_salt: bytes


class Run:
    """One job on one worker: an iterator over its updates that can stop single choices."""

    def __init__(self, link: WorkerLink, subscription: Subscription) -> None:
        self._link = link
        self._subscription = subscription

    def stop_choice(self, choice: int) -> None:
        """Stop a choice that a stop string ended; no further updates of it are needed."""
        self._link.cancel_choice(self._subscription, choice)

    async def updates(self) -> AsyncIterator[list[pb.SequenceUpdate]]:
        """Yield what has come since the last time, until every choice has ended.

        Raises:
            ServeError: the request failed.
        """
        while not self._subscription.ended:
            batch = await self._subscription.next()
            for update in batch:
                if update.HasField("error"):
                    raise sequence_error(update.error)
            yield batch


class Dispatcher:
    """Places jobs on workers.

    Args:
        links: one for each worker.
        clock: monotonic seconds.
    """

    def __init__(self, links: Sequence[WorkerLink], clock: Callable[[], float] = time.monotonic) -> None:
        self._links = links
        self._placement = Placement()
        self._clock = clock

    def place(self) -> WorkerLink:
        """Return the worker for the next request.

        Raises:
            Unavailable: no worker is ready.
        """
        index = self._placement.choose([link.view() for link in self._links])
        if index is None:
            raise Unavailable("No worker is ready to run the request.", reason="NO_WORKER")
        return self._links[index]

    @asynccontextmanager
    async def run(self, job: Job) -> AsyncIterator[Run]:
        """Run a job for the length of an `async with`; leaving it stops what still runs.

        Raises:
            Unavailable: no worker is ready.
            DeadlineExceeded: no time is left.
        """
        link = self.place()
        subscription = link.submit(self._submit_message(job), job.items)
        staging = asyncio.create_task(link.stage(job.items))
        staging.add_done_callback(lambda done: fail_with(subscription, done))
        log.info("request_placed", worker=link.address, prompt_tokens=len(job.token_ids), items=len(job.items))
        try:
            yield Run(link, subscription)
        finally:
            staging.cancel()
            link.release(subscription)

    def _submit_message(self, job: Job) -> pb.Submit:
        return pb.Submit(
            request_id=job.request_id,
            prompt_token_ids=job.token_ids,
            items=[item_to_proto(item, with_bytes=False) for item in job.items],
            sampling=job.sampling,
            timeout_ms=self._timeout_ms(job.deadline_s),
            priority=job.sampling.priority,
            cache_salt=job.cache_salt,
        )

    def _timeout_ms(self, deadline_s: float | None) -> int:
        if deadline_s is None:
            return 0
        left_ms = int((deadline_s - self._clock()) * 1000)
        if left_ms <= 0:
            raise DeadlineExceeded("The deadline passed before the request could run.")
        return left_ms
