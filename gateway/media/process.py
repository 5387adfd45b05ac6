"""One pool process, as seen from the gateway: start it, give it a job, end it.

Next: gateway/media/pool.py
"""

import asyncio
import contextlib
import fcntl
import json
import mmap
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gateway.media import channel as channels
from gateway.media import resize
from gateway.media.loaders import ORDER, LoaderMissingError
from gateway.media.sandbox import environment

_SEALS = fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
_START_S = 30.0
_KEEP_BYTES = 32 << 20  # of shared memory that stay with the process between jobs
_LINGER_S = 1.0
_INLINE_BYTES = 1 << 20  # copied on the event loop; more goes through a thread


@dataclass(frozen=True)
class ProcessLimits:
    """What one process may have.

    Attributes:
        memory_bytes: Address space for jobs, beside what an idle process has.
        cpu_s: CPU seconds for each job.
        region_bytes: Shared memory: a job's input and its result.
    """

    memory_bytes: int = 2 << 30
    cpu_s: float = 60.0
    region_bytes: int = 768 << 20


class ProcessDiedError(Exception):
    """The process ended, or answered with what is no answer.

    Args:
        signal_number: That ended it; 0 where none did.
    """

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"ended by signal {signal_number}")
        self.signal_number = signal_number


class MediaProcess:
    """A started process; make one with `start`."""

    def __init__(self, process: subprocess.Popen[bytes], channel: socket.socket, lifeline: int, memory: int) -> None:
        self._process = process
        self._channel = channel
        self._lifeline = lifeline
        region_bytes = os.fstat(memory).st_size
        self._memory = mmap.mmap(memory, region_bytes)
        self._region = np.frombuffer(self._memory, dtype=np.uint8)

    @classmethod
    async def start(
        cls,
        limits: ProcessLimits,
        folder: Path,
        resize_search: Sequence[Path] = resize.SEARCH,
        video_loader: str = ORDER[0],
    ) -> "MediaProcess":
        """Start a process and wait until it is ready.

        Args:
            limits: Its limits.
            folder: The pool's scratch folder.
            resize_search: Where the resize library may be.
            video_loader: Name of the video backend (loaders.py).

        Raises:
            ProcessDiedError: It does not come up.
            LoaderMissingError: The video backend cannot be used.
        """
        ours, theirs = socket.socketpair()
        lifeline_read, lifeline_write = os.pipe()
        memory = _shared_memory(limits.region_bytes)
        config = {
            "channel": theirs.fileno(),
            "lifeline": lifeline_read,
            "memory": memory,
            "memory_bytes": limits.region_bytes,
            "memory_limit_bytes": limits.memory_bytes,
            "cpu_limit_s": limits.cpu_s,
            "folder": str(folder),
            "resize_search": [str(path) for path in resize_search],
            "video_loader": video_loader,
        }
        try:
            # Popen executes a new program without running this one's fork handlers: safe beside gRPC's threads.
            process = subprocess.Popen(  # noqa: ASYNC220  (milliseconds, and a thread could be cancelled half-way)
                [sys.executable, "-P", "-s", "-m", "gateway.media.child", json.dumps(config)],
                env=environment(),
                pass_fds=[theirs.fileno(), lifeline_read, memory],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            ours.setblocking(False)
            started = cls(process, ours, lifeline_write, memory)
        finally:
            theirs.close()
            os.close(lifeline_read)
            os.close(memory)
        await started._wait_ready()
        return started

    async def _wait_ready(self) -> None:
        try:
            async with asyncio.timeout(_START_S):
                hello = await channels.receive(self._channel)
        except (EOFError, OSError, ValueError) as error:
            raise ProcessDiedError(await self._cause_of_death()) from error
        except asyncio.CancelledError:
            await asyncio.shield(self.kill())
            raise
        if "missing" in hello:
            await self.kill()
            raise LoaderMissingError(hello["missing"])
        assert "ready" in hello

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    @property
    def region_bytes(self) -> int:
        """Shared memory of a job's input and result."""
        return len(self._region)

    async def ask(self, job: dict[str, Any], parts: Sequence[bytes]) -> dict[str, Any]:
        """Give a job and wait for the answer (child.answer).

        Args:
            job: Its numbers; the sizes of `parts` are added.
            parts: The input; at most `region_bytes` in all.

        Raises:
            ProcessDiedError: The process must be ended; the job is lost.
        """
        at = 0
        for part in parts:
            await _copy(self._region[at : at + len(part)], np.frombuffer(part, dtype=np.uint8))
            at += len(part)
        try:
            await channels.send(self._channel, {**job, "sizes": [len(part) for part in parts]})
            return await channels.receive(self._channel)
        except (EOFError, OSError, ValueError) as error:
            raise ProcessDiedError(await self._cause_of_death()) from error

    async def take(self, offset: int, shape: tuple[int, ...]) -> NDArray[np.uint8]:
        """A copy of a result, read-only."""
        array: NDArray[np.uint8] = np.empty(shape, dtype=np.uint8)
        await _copy(array.reshape(-1), self._region[offset : offset + array.size])
        array.flags.writeable = False
        return array

    def release(self, used_bytes: int) -> None:
        """Give back what a large job used of the shared memory; a little stays, to be fast."""
        if used_bytes > _KEEP_BYTES:
            self._memory.madvise(mmap.MADV_REMOVE, _KEEP_BYTES)

    async def kill(self) -> None:
        """End the process at once and wait for its end."""
        self._process.kill()
        await asyncio.to_thread(self._process.wait)
        self._close()

    async def _cause_of_death(self) -> int:
        """The signal that ended a process that has closed its channel; one that lingers is killed."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            await asyncio.to_thread(self._process.wait, _LINGER_S)
        signal_number = -(self._process.poll() or 0)
        await self.kill()
        return max(signal_number, 0)

    def _close(self) -> None:
        self._channel.close()
        if self._lifeline >= 0:
            os.close(self._lifeline)
            self._lifeline = -1


def cpu_limit_reached(signal_number: int) -> bool:
    """Whether the kernel ended a process for its CPU time."""
    return signal_number == signal.SIGXCPU


def _shared_memory(size: int) -> int:
    """A descriptor of memory whose size is fixed for good: the process cannot pull it from under a reader."""
    descriptor = os.memfd_create("tessera-media", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, size)
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
    return descriptor


async def _copy(target: NDArray[np.uint8], source: NDArray[np.uint8]) -> None:
    if len(source) <= _INLINE_BYTES:
        np.copyto(target, source)
    else:
        await asyncio.to_thread(np.copyto, target, source)
