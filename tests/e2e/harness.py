"""Real processes on loopback: `python -m worker` and `python -m gateway`, started, watched and ended by their ids.

A test asks `Pairs` for a pair by its flags; equal flags share one pair for the whole session. After each test
`assert_idle` looks at what GetModel and the scratch folder say.

Next: tests/e2e/conftest.py
"""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tessera.grpc_options import channel_options
from tessera.v1 import inference_service_pb2 as pb
from tessera.v1.inference_service_pb2_grpc import InferenceServiceStub

ROOT = Path(__file__).parents[2]
MOST_PAIRS = 16  # each takes about half a gigabyte, and modules hold on to theirs while they run
START_S = 60.0  # a machine busy with other work may be slow; the start itself is timed by tests of its own
STOP_S = 15.0
IDLE_S = 2.0
# Each worker by itself would take a share of the machine's memory, and all its cores.
MODEST = ("--threads", "1", "--kv-cache-bytes", "64m", "--encoder-cache-bytes", "32m")
FAST_RECONNECT = [("grpc.initial_reconnect_backoff_ms", 50), ("grpc.max_reconnect_backoff_ms", 200)]
SERVING = health_pb2.HealthCheckResponse.SERVING


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_until(is_so: Callable[[], Any], what: str, timeout_s: float, interval_s: float = 0.02) -> None:
    """Return once `is_so` holds; fail with `what` after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not is_so():
        if time.monotonic() > deadline:
            raise AssertionError(f"after {timeout_s} s: {what}")
        time.sleep(interval_s)


class Program:
    """One process of ours, its address and its log.

    Args:
        name: "gateway" or "worker".
        args: flags, without host and port.
        log: file for its standard error.
        port: to listen on; None = any free one.
    """

    def __init__(self, name: str, args: Sequence[str], log: Path, port: int | None = None) -> None:
        self.name = name
        self.port = port or free_port()
        self.address = f"127.0.0.1:{self.port}"
        self.log = log
        self._asked = False
        roots = (ROOT, ROOT / "protos", ROOT / "kernels", ROOT / "client")
        self._environ = {key: value for key, value in os.environ.items() if not key.startswith("TESSERA_")} | {
            "PYTHONPATH": os.pathsep.join(map(str, roots)),
            "OMP_NUM_THREADS": "1",
            "PYTHONWARNINGS": "default",
        }
        own = MODEST if name == "worker" else ()
        self._command = [sys.executable, "-m", name, "--host", "127.0.0.1", "--port", str(self.port), *own, *args]
        self.process = self._start()
        self.channel = grpc.insecure_channel(self.address, options=[*channel_options(), *FAST_RECONNECT])
        self._health = health_pb2_grpc.HealthStub(self.channel)

    def _start(self) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as log:
            return subprocess.Popen(self._command, cwd=ROOT, env=self._environ, stderr=log, stdout=log)

    def restart(self) -> None:
        """Start it again, on the same port, after its end."""
        assert self.process.poll() is not None
        self._asked = False
        self.process = self._start()

    @property
    def pid(self) -> int:
        """Process id."""
        return self.process.pid

    @property
    def running(self) -> bool:
        """Whether the process lives."""
        return self.process.poll() is None

    def health(self) -> int | None:
        """What grpc.health.v1 says; None where nobody answers."""
        try:
            return self._health.Check(health_pb2.HealthCheckRequest(), timeout=2).status
        except grpc.RpcError:
            return None

    def wait_serving(self, timeout_s: float = START_S) -> None:
        """Return once it is SERVING; a process that ends meanwhile fails at once, with its log."""

        def serving() -> bool:
            assert self.running, f"{self.name} ended with {self.process.returncode}:\n{self.tail()}"
            return self.health() == SERVING

        wait_until(serving, f"{self.name} is not SERVING:\n{self.tail()}", timeout_s)

    def events(self) -> list[dict[str, Any]]:
        """The log's lines of JSON."""
        lines = []
        for line in self.log.read_text(errors="replace").splitlines():
            with contextlib.suppress(ValueError):
                lines.append(json.loads(line))
        return [line for line in lines if isinstance(line, dict)]

    def complaints(self) -> list[str]:
        """Lines of the log that are errors, or that are not JSON at all (warnings, tracebacks of other libraries)."""
        found = []
        for line in self.log.read_text(errors="replace").splitlines():
            try:
                event = json.loads(line)
            except ValueError:
                event = None
            if not isinstance(event, dict) or event.get("level") in ("error", "critical"):
                found.append(line[:2000])
        return found

    def tail(self) -> str:
        """The end of the log."""
        return self.log.read_text(errors="replace")[-4000:]

    def kill(self) -> None:
        """End it at once, as an out-of-memory killer would."""
        self.process.kill()
        self.process.wait(STOP_S)

    def ask_to_stop(self) -> None:
        """Send SIGTERM, and do not wait."""
        self.channel.close()
        if self.running and not self._asked:
            self._asked = True
            self.process.terminate()

    def stop(self) -> int:
        """Ask it to end and return its exit code."""
        self.ask_to_stop()
        try:
            return self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"{self.name} does not end:\n{self.tail()}") from None


@dataclass(frozen=True)
class Flags:
    """What makes a pair: the checkpoint, the flags of both programs, and how many workers."""

    model: Path
    worker: tuple[str, ...] = ()
    gateway: tuple[str, ...] = ()
    workers: int = 1


@dataclass
class Pair:
    """A gateway and its workers.

    Attributes:
        flags: what it was started with.
        folder: of logs and scratch files.
        gateway: the gateway's process.
        workers: the workers' processes.
        forgiven: beginnings of events that a test has provoked and the log may hold.
    """

    flags: Flags
    folder: Path
    workers: list[Program] = field(default_factory=list)
    forgiven: set[str] = field(default_factory=set)
    started_s: float = 0.0

    def start(self) -> "Pair":
        """Start all processes at once and wait until the gateway is SERVING."""
        self.scratch.mkdir(parents=True)
        model = ("--model", str(self.flags.model))
        for index in range(self.flags.workers):
            log = self.folder / f"worker{index}.log"
            self.workers.append(Program("worker", (*model, *self.flags.worker), log))
        addresses = [arg for worker in self.workers for arg in ("--worker", worker.address)]
        args = (*model, *addresses, "--scratch-dir", str(self.scratch), "--model-name", "tiny", *self.flags.gateway)
        self.started_s = time.monotonic()
        self.gateway = Program("gateway", args, self.folder / "gateway.log")
        self.stub = InferenceServiceStub(self.gateway.channel)
        for worker in self.workers:
            worker.wait_serving()
        self.gateway.wait_serving()
        wait_until(lambda: all(w.state == pb.MODEL_STATE_READY for w in self.model().workers), "workers ready", START_S)
        return self

    @property
    def scratch(self) -> Path:
        """Where the gateway's loaders put files."""
        return self.folder / "scratch"

    @property
    def pids(self) -> list[int]:
        """Ids of the processes, which change only when one was lost."""
        return [program.pid for program in (self.gateway, *self.workers) if program.running]

    def model(self) -> pb.Model:
        """What GetModel says now."""
        return self.stub.GetModel(pb.GetModelRequest(), timeout=5).model

    def unrest(self) -> list[str]:
        """Everything that a pair without work should not hold."""
        found = []
        for worker in self.model().workers:
            if worker.state != pb.MODEL_STATE_READY:
                continue
            for name in ("running", "waiting", "used_blocks", "pinned_items", "running_state_slots"):
                if value := getattr(worker, name):
                    found.append(f"{worker.address}: {name} = {value}")
            if worker.free_blocks + worker.cached_blocks != worker.total_blocks:
                found.append(f"{worker.address}: {worker.free_blocks} free + {worker.cached_blocks} cached blocks")
            if not worker.total_blocks:
                found.append(f"{worker.address}: no blocks at all")
        # A walk passes over folders that are removed meanwhile, where a glob would fail.
        for folder, folders, files in os.walk(self.scratch):
            jobs = folders if Path(folder) != self.scratch else []  # inside the pool's own folder, which stays
            found += [f"left behind: {Path(folder, name)}" for name in (*jobs, *files)]
        return found

    def assert_idle(self) -> None:
        """Fail where something is still held two seconds after the last request."""
        try:
            wait_until(lambda: not self.unrest(), "idle", IDLE_S)
        except AssertionError:
            raise AssertionError(f"not idle after {IDLE_S} s: {self.unrest()}") from None

    def stop(self) -> None:
        """End all processes; they end well, complain of nothing, and leave no file."""
        lost = [program for program in self.workers if not program.running]
        codes = {program.name: program.stop() for program in (self.gateway, *self.workers) if program not in lost}
        for program in lost:
            program.channel.close()
        complaints = [
            line
            for program in (self.gateway, *self.workers)
            for line in program.complaints()
            if not any(word in line for word in self.forgiven)
        ]
        left = [str(path) for path in self.scratch.rglob("*")]
        assert set(codes.values()) == {0}, codes
        assert not complaints, "\n".join(complaints)
        assert not left, left

    def kill(self) -> None:
        """End what still runs, whatever it does."""
        for program in (*self.workers, *([self.gateway] if hasattr(self, "gateway") else [])):
            if program.running:
                program.kill()


class Pairs:
    """The pairs of a session, by their flags; no more than `MOST_PAIRS` live at once, those used last.

    Args:
        folder: for their logs and scratch files.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._pairs: dict[Flags, Pair] = {}
        self._count = 0
        self.used: set[int] = set()

    def get(self, flags: Flags) -> Pair:
        """The shared pair of these flags, started at its first use."""
        if flags not in self._pairs:
            self._make_room()
            self._pairs[flags] = self._start(flags)
        pair = self._pairs[flags] = self._pairs.pop(flags)  # to the end: used last
        self.used.add(id(pair))
        return pair

    def _make_room(self) -> None:
        """End the pairs that were used longest ago, but none that the running test has used."""
        idle = [flags for flags, pair in self._pairs.items() if id(pair) not in self.used]
        for flags in idle[: max(0, len(self._pairs) + 1 - MOST_PAIRS)]:
            pair = self._pairs.pop(flags)
            try:
                pair.stop()
            finally:
                pair.kill()

    @contextlib.contextmanager
    def fresh(self, flags: Flags) -> Iterator[Pair]:
        """A pair of one test's own, ended after it."""
        pair = self._start(flags)
        try:
            yield pair
            if pair.gateway.running:
                pair.assert_idle()
            pair.stop()
        finally:
            pair.kill()

    def _start(self, flags: Flags) -> Pair:
        self._count += 1
        pair = Pair(flags, self._folder / f"pair{self._count}")
        try:
            return pair.start()
        except BaseException:
            pair.kill()
            raise

    def check_used(self) -> None:
        """Assert that each pair that was used since the last time is idle."""
        used, self.used = self.used, set()
        for pair in self._pairs.values():
            if id(pair) in used:
                pair.assert_idle()

    def close(self) -> None:
        """End all pairs; the first failure is raised after the last pair has ended."""
        failures: list[AssertionError] = []
        for pair in self._pairs.values():
            for program in (pair.gateway, *pair.workers):
                program.ask_to_stop()
        for pair in self._pairs.values():
            try:
                pair.stop()
            except AssertionError as error:
                failures.append(error)
            finally:
                pair.kill()
        if failures:
            raise failures[0]
        shutil.rmtree(self._folder, ignore_errors=True)
