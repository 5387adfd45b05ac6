"""Puts the gateway together, serves, and drains.

Next: service.py.
"""

from __future__ import annotations

import asyncio
import secrets
import signal
import time
import uuid
from pathlib import Path

import grpc
import structlog
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from gateway.dispatch import Dispatcher
from gateway.health import GatewayHealth
from gateway.held import HeldStore
from gateway.media.fetch import FetchLimits, MediaFetcher
from gateway.media.loaders import find_others
from gateway.media.options import ServerLimits
from gateway.media.pool import MediaPool
from gateway.media.process import ProcessLimits
from gateway.pipeline import Pipeline
from gateway.processor.cache import ProcessorCache
from gateway.processor.multimodal import MultimodalProcessor
from gateway.processor.registry import load_processor
from gateway.schedule.admission import Admission
from gateway.served_model import ServedModel
from gateway.service import InferenceService
from gateway.settings import GatewaySettings
from gateway.uploads import Uploads
from gateway.worker_link import WorkerLink
from tessera.checkpoint import fingerprint, resolve_model_dir
from tessera.grpc_options import MESSAGE_SLACK_BYTES, server_options
from tessera.interceptors import ErrorInterceptor
from tessera.items import MultimodalItem
from tessera.modality import Modality
from tessera.time_series import MAX_CHANNELS
from tessera.v1 import inference_service_pb2 as pb
from tessera.v1.inference_service_pb2_grpc import add_InferenceServiceServicer_to_server

log = structlog.get_logger(__name__)


class Gateway:
    """One gateway process: its pool, its links to workers, its server.

    Args:
        settings: of the process.
    """

    def __init__(self, settings: GatewaySettings) -> None:
        self._settings = settings
        self._health = GatewayHealth()
        self._ready_changed = asyncio.Event()
        self._pool = MediaPool(
            workers=settings.pool_processes,
            limits=ProcessLimits(memory_bytes=settings.pool_memory_bytes, cpu_s=settings.pool_cpu_s),
            scratch_dir=settings.scratch_dir or None,
            max_waiting=settings.pool_queue,
            video_loader=settings.video_loader,
        )
        self._links: list[WorkerLink] = []
        self._video_loaders: tuple[str, ...] = ()

    async def serve(self) -> None:
        """Serve until SIGTERM or SIGINT, then drain.

        Raises:
            ServeError: the model's files are not what they should be, or the pool does not start.
            OSError: the port is taken.
        """
        stop = stop_signal()
        # The pool's processes are spawned before any channel exists; meanwhile the tokenizer is read.
        pool_started = asyncio.create_task(self._start_pool())
        try:
            model_dir, processor = await asyncio.to_thread(load_model_files, self._settings.model)
            await pool_started
            service = self._assemble(processor, fingerprint(model_dir))
            await self._run(service, stop)
        finally:
            await asyncio.gather(pool_started, return_exceptions=True)
            await self._pool.close()
            log.info("gateway_stopped")

    async def _start_pool(self) -> None:
        await self._pool.start()
        used = self._pool.video_loader
        self._video_loaders = (used, *await asyncio.to_thread(find_others, used))

    async def _run(self, service: InferenceService, stop: asyncio.Event) -> None:
        server = self._make_server(service)
        port = bind(server, self._settings.host, self._settings.port)
        await self._health.update([])
        await server.start()
        log.info(
            "gateway_started",
            address=f"{self._settings.host}:{port}",
            model=service.model.name,
            workers=list(self._settings.worker),
            resize_backend=service.model.resize_backend,
            video_loaders=list(service.model.video_loaders),
        )
        background = [asyncio.create_task(link.run()) for link in self._links]
        background.append(asyncio.create_task(self._follow_readiness()))
        try:
            await stop.wait()
        finally:
            log.info("gateway_draining")
            await self._health.drain()
            await server.stop(self._settings.drain_s)
            for task in background:
                task.cancel()
            await asyncio.gather(*background, return_exceptions=True)

    def _assemble(self, processor: MultimodalProcessor, model_fingerprint: str) -> InferenceService:
        settings = self._settings
        gateway_id = uuid.uuid4().hex[:12]
        self._links = [
            WorkerLink(address, model_fingerprint, gateway_id, settings.connect_interval_s, self._ready_changed.set)
            for address in settings.worker
        ]
        uploads = make_uploads(settings)
        limits = make_limits(settings)
        model = ServedModel(
            name=settings.model_name or model_name(settings.model),
            fingerprint=model_fingerprint,
            processor=processor,
            links=self._links,
            limits=request_limits(settings, limits, processor),
            resize_backend=self._pool.resize_backend,
            video_loaders=self._video_loaders,
        )
        pipeline = Pipeline(
            model=model,
            fetcher=make_fetcher(settings, uploads),
            pool=self._pool,
            cache=ProcessorCache(settings.processor_cache_bytes),
            held=uploads.items,
            limits=limits,
            draw_seed=lambda: secrets.randbits(64),
        )
        admission = Admission(settings.max_requests, settings.max_inflight_bytes)
        return InferenceService(model, pipeline, Dispatcher(self._links), uploads, admission)

    def _make_server(self, service: InferenceService) -> grpc.aio.Server:
        server = grpc.aio.server(
            interceptors=[ErrorInterceptor()],
            options=server_options(self._settings.max_inline_bytes + MESSAGE_SLACK_BYTES),
        )
        add_InferenceServiceServicer_to_server(service, server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health.servicer, server)
        if self._settings.reflection:
            services = pb.DESCRIPTOR.services_by_name
            names = [services["InferenceService"].full_name, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name]
            reflection.enable_server_reflection([*names, reflection.SERVICE_NAME], server)
        return server

    async def _follow_readiness(self) -> None:
        while True:
            await self._ready_changed.wait()
            self._ready_changed.clear()
            await self._health.update([link.ready for link in self._links])


def model_name(model: str) -> str:
    """Return the public name of a model: a hub name as it is, a directory by its last part that says something."""
    path = Path(model)
    if not path.exists():
        return model
    parts = [part for part in path.resolve().parts if part != "checkpoint"]
    return parts[-1]


def load_model_files(model: str) -> tuple[Path, MultimodalProcessor]:
    """Return the model's directory (fetched where it is a hub name) and its processor.

    Raises:
        ServeError: it is not there, or not what is served.
    """
    model_dir = resolve_model_dir(model, weights=False)
    return model_dir, load_processor(model_dir)


def bind(server: grpc.aio.Server, host: str, port: int) -> int:
    """Return the port that the server listens on.

    Raises:
        OSError: it is taken.
    """
    try:
        return server.add_insecure_port(f"{host}:{port}")
    except RuntimeError as error:
        raise OSError(f"cannot listen on {host}:{port}; another program does") from error


def make_fetcher(settings: GatewaySettings, uploads: Uploads) -> MediaFetcher:
    """Return what brings a source's bytes."""
    limits = FetchLimits(
        max_media_bytes=settings.max_media_bytes,
        url_hosts=settings.allow_url_host,
        url_networks=settings.allow_url_network,
        url_timeout_s=settings.fetch_timeout_s,
        media_root=settings.media_root,
    )
    return MediaFetcher(limits, uploads)


def make_limits(settings: GatewaySettings) -> ServerLimits:
    """Return the caps on media."""
    return ServerLimits(
        max_frames=settings.max_frames,
        max_duration_s=settings.max_duration_s,
        max_source_frames=settings.max_source_frames,
        max_decoded_pixels=settings.max_decoded_pixels,
        max_image_pixels=settings.max_image_pixels,
        max_video_pixels=settings.max_video_pixels,
        max_media_bytes=settings.max_media_bytes,
        max_series_samples=settings.max_series_samples,
        max_series_channels=MAX_CHANNELS,
    )


def make_uploads(settings: GatewaySettings) -> Uploads:
    """Return the stores of uploads and of prepared items."""
    files: HeldStore[bytes] = HeldStore(
        settings.upload_bytes, settings.upload_caller_bytes, settings.upload_ttl_s, time.monotonic, "UPLOAD_BUDGET"
    )
    items: HeldStore[MultimodalItem] = HeldStore(
        settings.item_bytes, settings.item_bytes, settings.item_ttl_s, time.monotonic, "ITEM_BUDGET"
    )
    return Uploads(files, items, settings.max_media_bytes)


def request_limits(settings: GatewaySettings, limits: ServerLimits, processor: MultimodalProcessor) -> pb.RequestLimits:
    """Return what GetModel says of limits."""
    rules = processor.rules
    takes_series = Modality.TIME_SERIES in processor.modalities
    return pb.RequestLimits(
        max_inline_bytes=settings.max_inline_bytes,
        max_media_bytes=settings.max_media_bytes,
        max_decoded_pixels=settings.max_decoded_pixels,
        max_image_pixels=limits.max_image_pixels or rules.image_max_pixels,
        max_video_pixels=limits.max_video_pixels or rules.video_max_pixels,
        max_frames=limits.max_frames,
        max_duration_s=limits.max_duration_s,
        max_items=settings.max_items,
        max_requests=settings.max_requests,
        urls_allowed=bool(settings.allow_url_host),
        paths_allowed=bool(settings.media_root),
        max_series_samples=limits.max_series_samples if takes_series else 0,
        max_series_channels=limits.max_series_channels if takes_series else 0,
    )


def stop_signal() -> asyncio.Event:
    """Return an event that SIGTERM or SIGINT sets."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    return stop
