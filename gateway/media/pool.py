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
from typing import Any

import structlog

from gateway.media import resize
from gateway.media.errors import check_options, serve_error
from gateway.media.item import ProcessedItem, build_item, result_place
from gateway.media.line import Line
from gateway.media.options import ImageOptions, ServerLimits, VideoOptions
from gateway.media.problem import MediaProblem
from gateway.media.process import MediaProcess, ProcessDiedError, ProcessLimits, cpu_limit_reached
from gateway.media.rules import MediaRules
from gateway.media.source import MediaBytes
from tessera.errors import Internal, InvalidArgument, ResourceExhausted, ServeError, Unavailable
from tessera.modality import Modality

_WALL_FACTOR = 4  # wall seconds for each CPU second that a job may use
_START_TRIES = 3

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class MediaJob:
    """One medium to process.

    Attributes:
        modality: IMAGE or VIDEO.
        media: An encoded file, or the encoded frames of a clip.
        options: Of that modality.
        rules: The checkpoint's.
        limits: The server's.
    """

    modality: Modality
    media: MediaBytes
    options: ImageOptions | VideoOptions
    rules: MediaRules
    limits: ServerLimits

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
    """

    def __init__(
        self,
        workers: int = 2,
        limits: ProcessLimits = ProcessLimits(),  # noqa: B008  (frozen)
        scratch_dir: str | Path | None = None,
        max_waiting: int = 1024,
        resize_search: Sequence[Path] = resize.SEARCH,
    ) -> None:
        self._limits = limits
        self._workers = workers
        self._scratch_dir = scratch_dir
        self._max_waiting = max_waiting
        self._resize_search = tuple(resize_search)
        self._line: Line[asyncio.Future[MediaProcess]] = Line(workers)
        self._idle: list[MediaProcess] = []
        self._busy: set[MediaProcess] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._folder: Path | None = None
        self._jobs = 0
        self._closed = False
        self.resize_backend = resize.load_resizer(self._resize_search).name
        """Which resize runs: "native" or "pillow"."""
        self.video_loaders = ("opencv",)
        """Names of the video backends, the first one used."""

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
            Unavailable: One does not come up.
        """
        self._folder = Path(tempfile.mkdtemp(prefix="tessera-media-", dir=self._scratch_dir or None))
        try:
            self._idle.extend(await asyncio.gather(*(self._start_process() for _ in range(self._workers))))
        except ProcessDiedError as error:
            await self.close()
            raise Unavailable("A media process does not start.", reason="MEDIA_POOL") from error

    async def close(self) -> None:
        """End all processes and remove the pool's folder; waiting jobs fail."""
        self._closed = True
        for waiter in self._line.drain():
            if not waiter.done():
                waiter.set_exception(_stopping())
        while self._tasks:
            await asyncio.wait(self._tasks)
        processes = [*self._idle, *self._busy]
        self._idle.clear()
        await asyncio.gather(*(process.kill() for process in processes))
        if self._folder is not None:
            await asyncio.to_thread(shutil.rmtree, self._folder, True)

    async def process(self, job: MediaJob) -> ProcessedItem:
        """Decode, sample and resize one medium; cancelling ends the process that does it.

        Raises:
            InvalidArgument: It cannot be served; MEDIA_DECODE_CRASHED where the decoder died of it.
            ResourceExhausted: MEDIA_QUEUE_FULL, MEDIA_TOO_LARGE, MEDIA_MEMORY or MEDIA_CPU.
            Unavailable: The pool is closing.
        """
        self._check(job)
        big = job.modality is Modality.VIDEO
        process = await self._acquire(big)
        folder = None
        try:
            folder = self._make_folder() if job.is_file_of_clip else None
            async with asyncio.timeout(self._limits.cpu_s * _WALL_FACTOR):
                item = await self._run(process, job, folder)
        except ServeError:
            self._release(process, big, folder)
            raise
        except TimeoutError:
            self._replace(process, big, folder)
            raise _too_slow() from None
        except ProcessDiedError as death:
            self._replace(process, big, folder)
            log.warning("media process died", pid=process.pid, signal=death.signal_number, modality=job.modality)
            raise _death(death) from None
        except BaseException:
            self._replace(process, big, folder)
            raise
        self._release(process, big, folder)
        return item

    def _check(self, job: MediaJob) -> None:
        if self._closed:
            raise _stopping()
        check_options(job.options, job.rules, job.limits)
        parts = job.media.parts
        if not all(parts) or not parts:
            raise InvalidArgument("The medium is empty.", reason="MEDIA_EMPTY", field="media")
        if job.modality is Modality.IMAGE and len(parts) > 1:
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
        for attempt in range(_START_TRIES):
            if self._closed:
                return
            with contextlib.suppress(ProcessDiedError):
                self._idle.append(await self._start_process())
                self._dispatch()
                return
            log.error("media process does not start", attempt=attempt)

    async def _start_process(self) -> MediaProcess:
        assert self._folder is not None, "start() comes first"
        return await MediaProcess.start(self._limits, self._folder, self._resize_search)

    def _make_folder(self) -> Path:
        assert self._folder is not None, "start() comes first"
        self._jobs += 1
        folder = self._folder / f"job-{self._jobs}"
        folder.mkdir(mode=0o700)
        return folder

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _death(death: ProcessDiedError) -> ServeError:
    if cpu_limit_reached(death.signal_number):
        return _too_slow()
    message = "The media decoder ended abnormally on this medium."
    return InvalidArgument(message, reason="MEDIA_DECODE_CRASHED", field="media")


def _too_slow() -> ServeError:
    message = "The medium takes more CPU time to decode than the server gives."
    return ResourceExhausted(message, reason="MEDIA_CPU", field="media", retry_after_s=None)


def _stopping() -> ServeError:
    return Unavailable("The server is stopping.", reason="STOPPING")
