"""The real pair: one worker and one gateway as processes of their own, asked by the client over gRPC.

Next: pixels.py
"""

import asyncio
import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from benchmarks.timeline import Timeline
from benchmarks.worker_options import as_flags, worker_options
from benchmarks.workload import Request, Workload
from tessera_client import AsyncClient, Image

Options = Mapping[str, str | int]
_WARM_UP_NUMBER = 1_000_000
_READY_TIMEOUT_S = 180.0
_STOP_TIMEOUT_S = 20.0


class ServedPair:
    """Gateway and worker on a checkpoint.

    Args:
        model_dir: the checkpoint.
        threads: of the worker.
        worker: its other flags; None: those of the table's questions.
        gateway: its flags beside model and addresses.
    """

    def __init__(
        self,
        model_dir: Path,
        threads: int,
        worker: Options | None = None,
        gateway: Options = MappingProxyType({"log_level": "warning"}),
    ) -> None:
        self._workload = Workload(model_dir)
        self._folder = Path(tempfile.mkdtemp(prefix="tessera-bench-pair-"))
        worker_port, gateway_port = free_ports(2)
        options = worker_options(model_dir, threads) if worker is None else worker_options(model_dir, threads, worker)
        self._processes: list[subprocess.Popen[bytes]] = []
        self._runner = asyncio.Runner()
        try:
            self._start("worker", *as_flags(options), "--port", str(worker_port))
            address = ("--port", str(gateway_port), "--worker", f"127.0.0.1:{worker_port}")
            self._start("gateway", "--model", str(model_dir), *as_flags(gateway), *address)
            self._client = AsyncClient(f"127.0.0.1:{gateway_port}")
            self._runner.run(self._wait())
        except BaseException:
            self.close()
            raise

    def warm_up(self) -> None:
        """Run once, briefly."""
        self.run(_WARM_UP_NUMBER, 2, 2)

    def run(self, first: int, count: int, new_tokens: int) -> Timeline:
        """Stream answers to requests that come together, from files and text to the last token.

        Args:
            first: number of the first request.
            count: requests.
            new_tokens: of each.
        """
        return self._runner.run(self._run(self._workload.requests(first, count), new_tokens))

    async def _run(self, requests: list[Request], new_tokens: int) -> Timeline:
        await self._client.wait_until_ready(timeout=_READY_TIMEOUT_S)
        start = time.perf_counter()
        answers = await asyncio.gather(*(self._answer(request, new_tokens, start) for request in requests))
        for answer in answers:
            assert len(answer) == new_tokens, f"{len(answer)} tokens instead of {new_tokens}"
        return Timeline(
            tuple(tuple(moment for moment, _ in answer) for answer in answers),
            tuple(answer[0][1] for answer in answers),
        )

    async def _answer(self, request: Request, new_tokens: int, start: float) -> list[tuple[float, int]]:
        stream = self._client.stream_chat(
            [Image(request.picture), request.text], max_tokens=new_tokens, temperature=0.0, ignore_eos=True
        )
        tokens: list[tuple[float, int]] = []
        async for delta in stream:
            now = time.perf_counter() - start
            tokens += [(now, token) for token in delta.token_ids]
        return tokens

    async def _wait(self) -> None:
        waiting = asyncio.create_task(self._client.wait_until_ready(timeout=_READY_TIMEOUT_S))
        while not waiting.done():
            await asyncio.wait([waiting], timeout=0.5)
            for process in self._processes:
                if process.poll() is not None:
                    waiting.cancel()
                    raise RuntimeError(f"the pair did not start:\n{self._logs()}")
        await waiting

    def _start(self, program: str, *flags: str) -> None:
        with (self._folder / f"{program}.log").open("wb") as log:
            command = [sys.executable, "-m", program, *flags]
            self._processes.append(subprocess.Popen(command, stdout=log, stderr=log, env=os.environ.copy()))

    def _logs(self) -> str:
        return "\n".join(path.read_text()[-4000:] for path in sorted(self._folder.glob("*.log")))

    def close(self) -> None:
        """Stop both and remove their logs."""
        for process in reversed(self._processes):
            process.terminate()
        for process in reversed(self._processes):
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_STOP_TIMEOUT_S)
            process.kill()
            process.wait()
        self._runner.close()
        shutil.rmtree(self._folder)


def free_ports(count: int) -> list[int]:
    """Return ports that nobody listens on."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [listener.getsockname()[1] for listener in sockets]
    for listener in sockets:
        listener.close()
    return ports
