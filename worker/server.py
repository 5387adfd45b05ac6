"""Puts the worker together, serves, and drains.

Next: worker/service.py
"""

import asyncio
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import structlog
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer

from tessera.errors import Unavailable
from tessera.grpc_options import server_options
from tessera.interceptors import ErrorInterceptor
from tessera.v1 import worker_service_pb2 as pb
from tessera.v1.worker_service_pb2_grpc import add_WorkerServiceServicer_to_server
from worker.bridge import EngineBridge
from worker.service import WorkerService
from worker.settings import WorkerSettings
from worker.status import WorkerStatus

if TYPE_CHECKING:
    from worker.engine.engine import Engine

log = structlog.get_logger(__name__)

# The longest submission: a prompt of a million ids, and its items' ranges.
MAX_MESSAGE_BYTES = 16 << 20
HEALTH_SERVICES = ("", "tessera.v1.WorkerService")


class Worker:
    """One worker process: a server that is up at once, and an engine that follows.

    Args:
        settings: of the process.
    """

    def __init__(self, settings: WorkerSettings) -> None:
        self._settings = settings
        self._status = WorkerStatus()
        self._health = HealthServicer()
        self._stop = asyncio.Event()
        self._failure: BaseException | None = None
        self._static: pb.DescribeResponse | None = None
        self._bridge = EngineBridge(self._build, self._on_ready, self._on_failed, settings.heartbeat_s)
        self._service = WorkerService(self._bridge, self._status)
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(self) -> None:
        """Serve until SIGTERM or SIGINT, then drain.

        Raises:
            OSError: the port is taken.
            Exception: the model could not be loaded, or its engine fails.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        server = grpc.aio.server(interceptors=[ErrorInterceptor()], options=server_options(MAX_MESSAGE_BYTES))
        add_WorkerServiceServicer_to_server(self._service, server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        port = _bind(server, self._settings.host, self._settings.port)
        await self._set_health(health_pb2.HealthCheckResponse.NOT_SERVING)
        await server.start()
        log.info("worker_started", address=f"{self._settings.host}:{port}", model=self._settings.model)
        self._bridge.start()
        await self._stop.wait()
        await self._drain(server)
        log.info("worker_stopped")
        if self._failure is not None:
            raise self._failure

    async def _drain(self, server: grpc.aio.Server) -> None:
        """Take nothing more, let running requests end, and close."""
        if self._failure is None:
            log.info("worker_draining", open_choices=self._bridge.num_open)
            self._status.report("draining", 0.0)
        await self._health.enter_graceful_shutdown()
        try:
            async with asyncio.timeout(0 if self._failure else self._settings.drain_s):
                await self._bridge.quiet()
        except TimeoutError:
            log.warning("worker_drain_cut_short", open_choices=self._bridge.num_open)
        self._bridge.end_streams(Unavailable("The worker shuts down.", reason="WORKER_DRAINING"))
        await server.stop(1.0)
        if self._service.is_open:
            await self._bridge.stop()

    # --- on the engine's thread

    def _build(self) -> "Engine":
        # Only here: torch takes seconds to import, and health is to answer before.
        from worker.boot import boot
        from worker.status import describe_engine

        engine, model_dir = boot(self._settings, self._status.report)
        self._static = describe_engine(engine, Path(model_dir))
        return engine

    # --- called by the bridge on the loop

    def _on_ready(self, engine: "Engine") -> None:
        assert self._static is not None
        if self._stop.is_set():
            return
        self._service.open(engine, self._static)
        task = asyncio.create_task(self._set_health(health_pb2.HealthCheckResponse.SERVING))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _on_failed(self, error: BaseException) -> None:
        self._failure = error
        self._status.report("failed", 0.0)
        self._stop.set()

    async def _set_health(self, status: "health_pb2.HealthCheckResponse.ServingStatus") -> None:
        for service in HEALTH_SERVICES:
            await self._health.set(service, status)


def _bind(server: grpc.aio.Server, host: str, port: int) -> int:
    try:
        return server.add_insecure_port(f"{host}:{port}")
    except RuntimeError as error:
        raise OSError(f"cannot listen on {host}:{port}; another program does") from error
