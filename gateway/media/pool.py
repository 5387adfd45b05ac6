"""The pool: a few processes that decode and resize what callers send, each job alone.

A job that is cancelled, dies or runs out of time or memory costs its own request and one process, which is replaced.
Start the pool before any gRPC channel exists.

Next: gateway/media/item.py
"""

import asyncio
import contextlib
import shutil
import tempfile
from collections.abc import Coroutine, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import structlog

from gateway.media import loaders, resize
from gateway.media.errors import check_options, serve_error
from gateway.media.item import ProcessedItem, build_item, build_series, result_place, series_place
from gateway.media.line import Line
from gateway.media.options import MediaOptions, ServerLimits
from gateway.media.problem import MediaProblem
from gateway.media.process import MediaProcess, ProcessDiedError, ProcessLimits, cpu_limit_reached
from gateway.media.rules import MediaRules
from gateway.media.source import MediaBytes
from tessera.errors import FailedPrecondition, Internal, InvalidArgument, ResourceExhausted, ServeError, Unavailable
from tessera.modality import Modality

_WALL_FACTOR = 4  # wall seconds for each CPU second that a job may use
_FIRST_PAUSE_S, _LAST_PAUSE_S = 0.5, 30.0  # between tries to start a process
_BIG_SERIES_BYTES = 4 << 20  # of a file; text takes about a second for this
_GRACE_S = 0.05  # less than it takes to start another process

T = TypeVar("T")

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class MediaJob:
    """One medium to process.

    Attributes:
        modality: IMAGE, VIDEO or TIME_SERIES.
        media: An encoded file, or the encoded frames of a clip.
        options: Of that modality.
        rules: The checkpoint's.
        limits: The server's.
    """

    modality: Modality
    media: MediaBytes
    options: MediaOptions
    rules: MediaRules
    limits: ServerLimits

    @property
    def is_big(self) -> bool:
        """Whether small jobs may go before it."""
        large_series = self.modality is Modality.TIME_SERIES and self.media.size_bytes > _BIG_SERIES_BYTES
        return self.modality is Modality.VIDEO or large_series

    @property
    def is_file_of_clip(self) -> bool:
        """Whether a loader needs the data as a file."""
        return self.modality is Modality.VIDEO and isinstance(self.media.data, bytes)

    def message(self, folder: Path | None) -> dict[str, Any]:
        """The job without its bytes, for a process."""
        work: dict[str, Any] = {
            "options": asdict(self.options),
            "rules": asdict(self.rules),
            "limits": asdict(self.limits),
        }
        if self.modality is Modality.VIDEO:
            work |= {"source_fps": self.media.source_fps, "timestamps": self.media.timestamps}
        return {"modality": str(self.modality), "work": work, "folder": folder and str(folder)}


class MediaPool:
    """Processes media, one item each job.

    Args:
        workers: Processes.
        limits: Of each process.
        scratch_dir: Where the pool makes its folder; None = the system's temporary folder.
        max_waiting: Jobs that may wait for a process; more are refused.
        resize_search: Where the resize library may be.
        video_loader: "auto", or the name of a video backend (loaders.py).
    """

    def __init__(
        self,
        workers: int = 2,
        limits: ProcessLimits = ProcessLimits(),  # noqa: B008  (frozen)
        scratch_dir: str | Path | None = None,
        max_waiting: int = 1024,
        resize_search: Sequence[Path] = resize.SEARCH,
        video_loader: str = loaders.AUTO,
    ) -> None:
        self._limits = limits
        self._workers = workers
        self._scratch_dir = scratch_dir
        self._max_waiting = max_waiting
        self._resize_search = tuple(resize_search)
        self._line: Line[asyncio.Future[MediaProcess]] = Line(workers)
        self._idle: list[MediaProcess] = []
        self._busy: set[MediaProcess] = set()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._folder: Path | None = None
        self._jobs = 0
        self._closing = asyncio.Event()
        self._broken = False  # no process is left, and none starts
        self.resize_backend = resize.load_resizer(self._resize_search).name
        """Which resize runs: "native" or "pillow"."""
        self.video_loader = video_loader
        """Name of the video backend; after start(), of the one in use."""

    @property
    def pids(self) -> list[int]:
        """Ids of the processes."""
        return sorted(process.pid for process in (*self._idle, *self._busy))

    @property
    def waiting(self) -> int:
        """Jobs that wait for a process."""
        return len(self._line)

    async def start(self) -> None:
        """Start all processes and wait until they are ready.

        Raises:
            FailedPrecondition: VIDEO_LOADER_MISSING, in one line with the command that installs it.
            Unavailable: One does not come up.
        """
        try:
            self.video_loader = loaders.choose(self.video_loader)
        except loaders.LoaderMissingError as error:
            raise _no_loader(error) from None
        self._folder = Path(tempfile.mkdtemp(prefix="tessera-media-", dir=self._scratch_dir or None))
        starts = [self._start_process() for _ in range(self._workers)]
        results = await asyncio.gather(*starts, return_exceptions=True)
        self._idle.extend(result for result in results if isinstance(result, MediaProcess))
        failures = [result for result in results if isinstance(result, BaseException)]
        if failures:
            await self.close()
            missing = [failure for failure in failures if isinstance(failure, loaders.LoaderMissingError)]
            raise _no_loader(missing[0]) if missing else _no_process() from failures[0]

    async def close(self) -> None:
        """End all processes and remove the pool's folder; jobs fail."""
        self._closing.set()
        self._fail_waiting(_stopping())
        await asyncio.gather(*(process.kill() for process in (*self._idle, *self._busy)))
        self._idle.clear()
        while self._tasks:
            await asyncio.wait(self._tasks)
        if self._folder is not None:
            await asyncio.to_thread(shutil.rmtree, self._folder, True)

    async def process(self, job: MediaJob) -> ProcessedItem:
        """Decode, sample and resize one medium; cancelling ends the process that does it.

        Raises:
            InvalidArgument: It cannot be served; MEDIA_DECODE_CRASHED where the decoder died of it.
            ResourceExhausted: MEDIA_QUEUE_FULL, MEDIA_TOO_LARGE, MEDIA_MEMORY or MEDIA_CPU.
            Unavailable: The pool is closing, or no process starts.
        """
        self._check(job)
        process = await self._acquire(job.is_big)
        attempt = self._spawn(self._attempt(process, job))
        try:
            return await asyncio.shield(attempt)
        except asyncio.CancelledError:
            self._spawn(_end(attempt))
            raise

    async def _attempt(self, process: MediaProcess, job: MediaJob) -> ProcessedItem:
        """Run a job and decide what becomes of its process."""
        folder = self._make_folder() if job.is_file_of_clip else None
        try:
            async with asyncio.timeout(self._limits.cpu_s * _WALL_FACTOR):
                item = await self._run(process, job, folder)
        except ServeError:
            self._release(process, job.is_big, folder)
            raise
        except TimeoutError:
            self._replace(process, job.is_big, folder)
            raise _too_slow() from None
        except ProcessDiedError as death:
            self._replace(process, job.is_big, folder)
            if self._closing.is_set():
                raise _stopping() from None
            log.warning("media process died", pid=process.pid, signal=death.signal_number, modality=job.modality)
            raise _death(death) from None
        except BaseException:
            self._replace(process, job.is_big, folder)
            raise
        self._release(process, job.is_big, folder)
        return item

    def _check(self, job: MediaJob) -> None:
        if self._closing.is_set():
            raise _stopping()
        if self._broken:
            raise _no_process()
        check_options(job.options, job.rules, job.limits)
        parts = job.media.parts
        if not all(parts) or not parts:
            raise InvalidArgument("The medium is empty.", reason="MEDIA_EMPTY", field="media")
        if job.modality is not Modality.VIDEO and len(parts) > 1:
            raise InvalidArgument("Only a video is a list of frames.", reason="FRAMES_NOT_VIDEO", field="media")
        if len(parts) > job.limits.max_source_frames:
            message = f"The list has {len(parts)} frames; at most {job.limits.max_source_frames} are taken."
            raise InvalidArgument(message, reason="VIDEO_TOO_LONG", field="media.frames")
        if job.media.size_bytes > min(job.limits.max_media_bytes, self._limits.region_bytes):
            message = f"The medium has more than {job.limits.max_media_bytes} bytes."
            raise ResourceExhausted(message, reason="MEDIA_TOO_LARGE", field="media", retry_after_s=None)
        if len(self._line) >= self._max_waiting:
            raise ResourceExhausted("Too many media wait to be decoded.", reason="MEDIA_QUEUE_FULL")

    async def _run(self, process: MediaProcess, job: MediaJob, folder: Path | None) -> ProcessedItem:
        answer = await process.ask(job.message(folder), job.media.parts)
        used = job.media.size_bytes
        try:
            if problem := answer.get("problem"):
                raise serve_error(
                    MediaProblem(
                        str(problem["message"]),
                        reason=str(problem["reason"]),
                        field=str(problem["field"]),
                        code=problem["code"],
                    )
                )
            if "failure" in answer:
                log.error("media process failed", traceback=str(answer["failure"]))
                raise Internal()
            if job.modality is Modality.TIME_SERIES:
                offset, size = series_place(answer["samples"], process.region_bytes)
                used = offset + size[0] * size[1] * 4
                samples = (await process.take(offset, (*size, 4))).view(np.float32)[..., 0]
                return await asyncio.to_thread(build_series, answer["samples"], samples)
            offset, shape = result_place(answer["pixels"], process.region_bytes)
            used = offset + shape[0] * shape[1] * shape[2] * shape[3]
            return build_item(job.modality, answer["pixels"], await process.take(offset, shape))
        except (KeyError, TypeError, ValueError) as error:
            raise ProcessDiedError(0) from error
        finally:
            process.release(used)

    async def _acquire(self, big: bool) -> MediaProcess:
        waiter: asyncio.Future[MediaProcess] = asyncio.get_running_loop().create_future()
        self._line.push(waiter, big)
        self._dispatch()
        try:
            return await waiter
        except asyncio.CancelledError:
            if not self._line.remove(waiter) and not waiter.cancelled() and waiter.exception() is None:
                self._release(waiter.result(), big, None)
            raise

    def _dispatch(self) -> None:
        """Hand idle processes to waiting jobs."""
        while self._idle and (entry := self._line.pop()) is not None:
            waiter, big = entry
            if waiter.done():
                self._line.done(big)
                continue
            process = self._idle.pop()
            self._busy.add(process)
            waiter.set_result(process)

    def _release(self, process: MediaProcess, big: bool, folder: Path | None) -> None:
        """A job has ended and its process goes on."""
        if folder is not None:
            folder.rmdir()  # the process has removed the file
        self._busy.discard(process)
        self._idle.append(process)
        self._line.done(big)
        self._dispatch()

    def _replace(self, process: MediaProcess, big: bool, folder: Path | None) -> None:
        """A job has ended and took its process along: end it and start another, in the background."""
        self._line.done(big)
        self._spawn(self._end_and_start(process, folder))

    async def _end_and_start(self, process: MediaProcess, folder: Path | None) -> None:
        await process.kill()
        self._busy.discard(process)
        if folder is not None:
            await asyncio.to_thread(shutil.rmtree, folder, True)
        pause_s = _FIRST_PAUSE_S
        while not self._closing.is_set():
            try:
                started = await self._start_process()
            except (ProcessDiedError, loaders.LoaderMissingError):
                log.error("media process does not start", next_try_s=pause_s)
                self._note_failure()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._closing.wait(), pause_s)
                pause_s = min(2 * pause_s, _LAST_PAUSE_S)
            else:
                await self._welcome(started)
                return

    async def _welcome(self, process: MediaProcess) -> None:
        if self._closing.is_set():
            await process.kill()
            return
        self._broken = False
        self._idle.append(process)
        self._dispatch()

    def _note_failure(self) -> None:
        if not self._idle and not self._busy:
            self._broken = True
            self._fail_waiting(_no_process())

    def _fail_waiting(self, error: ServeError) -> None:
        for waiter in self._line.drain():
            if not waiter.done():
                waiter.set_exception(error)

    async def _start_process(self) -> MediaProcess:
        assert self._folder is not None, "start() comes first"
        return await MediaProcess.start(self._limits, self._folder, self._resize_search, self.video_loader)

    def _make_folder(self) -> Path:
        assert self._folder is not None, "start() comes first"
        self._jobs += 1
        folder = self._folder / f"job-{self._jobs}"
        folder.mkdir(mode=0o700)
        return folder

    def _spawn(self, work: Coroutine[Any, Any, T]) -> "asyncio.Task[T]":
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


async def _end(attempt: "asyncio.Task[ProcessedItem]") -> None:
    """End a job that nobody waits for; one that is nearly done may keep its process."""
    await asyncio.wait([attempt], timeout=_GRACE_S)
    attempt.cancel()
    await asyncio.wait([attempt])
    if not attempt.cancelled():
        attempt.exception()  # seen: nobody else will


def _death(death: ProcessDiedError) -> ServeError:
    if cpu_limit_reached(death.signal_number):
        return _too_slow()
    message = "The media decoder ended abnormally on this medium."
    return InvalidArgument(message, reason="MEDIA_DECODE_CRASHED", field="media")


def _too_slow() -> ServeError:
    message = "The medium takes more CPU time to decode than the server gives."
    return ResourceExhausted(message, reason="MEDIA_CPU", field="media", retry_after_s=None)


def _no_process() -> ServeError:
    return Unavailable("The server cannot decode media now.", reason="MEDIA_POOL")


def _no_loader(error: loaders.LoaderMissingError) -> ServeError:
    return FailedPrecondition(f"{error}.", reason="VIDEO_LOADER_MISSING")


def _stopping() -> ServeError:
    return Unavailable("The server is stopping.", reason="STOPPING")
