"""Processed media, kept within a byte budget, so that the same file with the same arguments is processed once.

An entry is named by the hash of the source and by what was resolved for its own modality: a video option leaves
the entries of pictures valid. Concurrent requests for one entry share one job.

Next: gateway/processor/prompt.py
"""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import replace

from gateway.media.errors import serve_error
from gateway.media.item import ProcessedItem
from gateway.media.options import ImageOptions, TimeSeriesOptions
from gateway.media.pool import MediaJob
from gateway.media.problem import MediaProblem
from gateway.media.rules import image_budget, video_budget
from tessera.modality import Modality

_ENTRY_BYTES = 2048  # what an entry costs beside its pixels, roughly

Process = Callable[[MediaJob], Awaitable[ProcessedItem]]


def cache_key(job: MediaJob) -> Hashable:
    """What names a job's result: source and resolved arguments of its modality.

    Raises:
        InvalidArgument: An option cannot hold.
    """
    if isinstance(job.options, TimeSeriesOptions):
        return (Modality.TIME_SERIES, job.media.sha256, job.options.sampling_rate_hz)
    try:
        if isinstance(job.options, ImageOptions):
            return (Modality.IMAGE, job.media.sha256, image_budget(job.options, job.rules, job.limits))
        budget = video_budget(job.options, job.rules, job.limits)
    except MediaProblem as problem:
        raise serve_error(problem) from None
    sampling = replace(job.options, min_pixels=None, max_pixels=None)
    return (Modality.VIDEO, job.media.sha256, budget, sampling, job.media.source_fps, job.media.timestamps)


class _Flight:
    """A job that is running for one or more callers."""

    def __init__(self, key: Hashable, task: "asyncio.Task[ProcessedItem]") -> None:
        self.key = key
        self.task = task
        self.callers = 0


class ProcessorCache:
    """Least recently used entries leave first.

    Args:
        max_bytes: Budget; 0 = off.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._entries: OrderedDict[Hashable, ProcessedItem] = OrderedDict()
        self._flights: dict[Hashable, _Flight] = {}
        self.size_bytes = 0
        self.hits = 0
        self.misses = 0

    def __len__(self) -> int:
        return len(self._entries)

    async def get_or_process(self, job: MediaJob, process: Process) -> tuple[ProcessedItem, bool]:
        """The job's result, from the cache or by `process`.

        Returns:
            The item, and whether this call was spared the work (a hit, or a job that already ran).

        Raises:
            ServeError: What `process` raises; it is not kept.
        """
        key = cache_key(job)
        if not self._max_bytes:
            self.misses += 1
            return await process(job), False
        if (item := self._entries.get(key)) is not None:
            self._entries.move_to_end(key)
            self.hits += 1
            return item, True
        flight = self._flights.get(key)
        joined = flight is not None
        if flight is None:
            flight = self._start(key, job, process)
        self.hits += joined
        self.misses += not joined
        return await self._wait(flight), joined

    def _start(self, key: Hashable, job: MediaJob, process: Process) -> _Flight:
        async def run() -> ProcessedItem:
            item = await process(job)
            self._put(key, item)
            return item

        flight = self._flights[key] = _Flight(key, asyncio.get_running_loop().create_task(run()))
        flight.task.add_done_callback(lambda _: self._land(flight))
        return flight

    def _land(self, flight: _Flight) -> None:
        if self._flights.get(flight.key) is flight:
            del self._flights[flight.key]
        if flight.task.done() and not flight.task.cancelled():
            flight.task.exception()  # the callers that are still there have it from the task

    async def _wait(self, flight: _Flight) -> ProcessedItem:
        """Wait with the other callers; the job is cancelled when the last of them has left."""
        flight.callers += 1
        try:
            return await asyncio.shield(flight.task)
        finally:
            flight.callers -= 1
            if not flight.callers and not flight.task.done():
                flight.task.cancel()
                self._land(flight)  # at once: who comes now starts anew

    def _put(self, key: Hashable, item: ProcessedItem) -> None:
        size = item.size_bytes + _ENTRY_BYTES
        if size > self._max_bytes:
            return
        if (same := self._entries.pop(key, None)) is not None:
            self.size_bytes -= same.size_bytes + _ENTRY_BYTES
        while self.size_bytes + size > self._max_bytes:
            _, old = self._entries.popitem(last=False)
            self.size_bytes -= old.size_bytes + _ENTRY_BYTES
        self._entries[key] = item
        self.size_bytes += size
