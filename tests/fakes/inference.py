"""A scripted InferenceService: what a client sees of a server, without a model.

It answers with set words, keeps uploads, records what it was sent, and fails
where it is told to. `FakeServer` runs it on a real port in a thread, so that
sync and async clients and the command can be pointed at it.

Next: tests/unit/client/conftest.py.
"""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, Self

import grpc
from google.protobuf import duration_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from tessera.errors import FailedPrecondition, InvalidArgument, NotFound, ServeError
from tessera.interceptors import ErrorInterceptor
from tessera.items import item_from_proto
from tessera.v1 import inference_service_pb2 as pb
from tessera.v1 import inference_service_pb2_grpc as rpc
from tessera.v1 import types_pb2 as types

HELD_FOR = duration_pb2.Duration(seconds=600)
TOKENS_PER_MEDIUM = 4
EOS = 2


@dataclass
class FakeInference(rpc.InferenceServiceServicer):
    """The scripted service.

    Attributes:
        words: what every choice says, a delta each.
        model: the one that is served; None = no worker has answered yet.
        states: states that ListModels gives in turn, before the model's own; None = an empty list.
        fail: raised by the method of that name; "StreamChat:2" = after two messages.
        hold: methods that wait for their caller to leave, after their first message.
        requests: (method, request, metadata) of every call.
        uploads: bytes by id.
        cancelled: methods whose caller left.
    """

    words: tuple[str, ...] = ("a ", "red ", "circle.")
    model: str | None = "shapes"
    states: list[Any] = field(default_factory=list)
    fail: dict[str, ServeError] = field(default_factory=dict)
    hold: set[str] = field(default_factory=set)
    requests: list[tuple[str, Any, dict[str, str]]] = field(default_factory=list)
    uploads: dict[bytes, bytes] = field(default_factory=dict)
    cancelled: list[str] = field(default_factory=list)

    @property
    def last(self) -> Any:
        """The last request."""
        return self.requests[-1][1]

    async def Chat(self, request: pb.ChatRequest, context: Any) -> pb.ChatResponse:  # noqa: N802
        """Answer with the words."""
        request_id = await self._enter("Chat", request, context)
        media = self._media(request)
        return pb.ChatResponse(
            request_id=request_id,
            model=self.model,
            choices=self._choices(request.sampling),
            usage=self._usage(media, request.sampling.n or 1),
            seed=request.sampling.seed or 7,
            media=media,
        )

    async def StreamChat(self, request: pb.ChatRequest, context: Any) -> AsyncIterator[pb.StreamChatResponse]:  # noqa: N802
        """Answer word by word."""
        request_id = await self._enter("StreamChat", request, context)
        media = self._media(request)
        first = pb.StreamChatResponse(model=self.model, seed=request.sampling.seed or 7, media=media)
        async for message in self._stream("StreamChat", first, request.sampling, media):
            message.request_id = request_id
            yield message

    async def Generate(self, request: pb.GenerateRequest, context: Any) -> pb.GenerateResponse:  # noqa: N802
        """Continue with the words."""
        request_id = await self._enter("Generate", request, context)
        return pb.GenerateResponse(
            request_id=request_id,
            model=self.model,
            choices=self._choices(request.sampling),
            usage=self._usage([], request.sampling.n or 1),
            seed=request.sampling.seed or 7,
            prompt=self._echo(request),
        )

    async def StreamGenerate(  # noqa: N802
        self, request: pb.GenerateRequest, context: Any
    ) -> AsyncIterator[pb.StreamGenerateResponse]:
        """Continue word by word."""
        request_id = await self._enter("StreamGenerate", request, context)
        first = pb.StreamGenerateResponse(model=self.model, seed=7, prompt=self._echo(request))
        async for message in self._stream("StreamGenerate", first, request.sampling, []):
            message.request_id = request_id
            yield message

    async def Prepare(self, request: pb.PrepareRequest, context: Any) -> pb.PrepareResponse:  # noqa: N802
        """Say what would run."""
        request_id = await self._enter("Prepare", request, context)
        media = self._media(request.chat)
        self.uploads.update((report.content_hash, b"held") for report in media)
        items = [
            types.MultimodalItem(
                modality=report.modality,
                payload_kind=types.PAYLOAD_KIND_PIXELS_U8,
                content_hash=report.content_hash,
                grid_thw=report.grid_thw,
                ranges=[types.PlaceholderRange(offset=5 * index, length=TOKENS_PER_MEDIUM)],
            )
            for index, report in enumerate(media)
        ]
        return pb.PrepareResponse(
            request_id=request_id,
            rendered_prompt="<|user|>what?<|assistant|>",
            token_ids=range(10),
            items=items,
            content_hashes=[report.content_hash for report in media],
            media=media,
            usage=self._usage(media, 0),
            held_for=HELD_FOR,
            max_completion_tokens=500,
        )

    async def UploadMedia(self, request_iterator: Any, context: Any) -> pb.UploadMediaResponse:  # noqa: N802
        """Keep the bytes; a hash that is known is answered before they come."""
        header: pb.UploadHeader | None = None
        data = bytearray()
        async for request in request_iterator:
            if header is None:
                header = request.header
                await self._enter("UploadMedia", header, context)
                if header.sha256 in self.uploads:
                    return self._uploaded(header, self.uploads[header.sha256], existed=True)
            else:
                assert len(request.chunk) <= 1 << 20
                data += request.chunk
        assert header is not None and len(data) == header.size_bytes
        return self._uploaded(header, bytes(data), existed=False)

    async def ListModels(self, request: pb.ListModelsRequest, context: Any) -> pb.ListModelsResponse:  # noqa: N802
        """List the model, in the next of its states."""
        await self._enter("ListModels", request, context)
        state, progress = self.states.pop(0) if self.states else (pb.MODEL_STATE_READY, 1.0)
        if state is None or self.model is None:
            return pb.ListModelsResponse()
        return pb.ListModelsResponse(models=[self._model(state, progress)])

    async def GetModel(self, request: pb.GetModelRequest, context: Any) -> pb.GetModelResponse:  # noqa: N802
        """Describe the model."""
        await self._enter("GetModel", request, context)
        if request.model not in ("", self.model):
            raise NotFound(f"Model {request.model!r} is not served here.", reason="MODEL_NOT_FOUND", field="model")
        return pb.GetModelResponse(model=self._model(pb.MODEL_STATE_READY, 1.0))

    async def _enter(self, method: str, request: Any, context: Any) -> str:
        metadata = {key: str(value) for key, value in context.invocation_metadata()}
        self.requests.append((method, request, metadata))
        if method in self.fail:
            raise self.fail[method]
        if method in self.hold and method != "StreamChat":
            await self._wait_for_leave(method)
        return metadata.get("x-request-id", "")

    async def _wait_for_leave(self, method: str) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled.append(method)
            raise

    async def _stream(self, method: str, first: Any, sampling: Any, media: list) -> AsyncIterator[Any]:
        n = sampling.n or 1
        kind = type(first)
        message = first
        for step, word in enumerate(self.words):
            if (error := self.fail.get(f"{method}:{step}")) is not None:
                raise error
            last = step == len(self.words) - 1
            for index in range(n):
                delta = message.choices.add(index=index, text=word, token_ids=[10 + step])
                if last:
                    delta.token_ids.append(EOS)
                    delta.finish_reason = types.FINISH_REASON_STOP
                    delta.matched_stop_token_id = EOS
            message.usage.CopyFrom(self._usage(media, n))
            yield message
            message = kind()
            if method in self.hold:
                await self._wait_for_leave(method)

    def _choices(self, sampling: types.SamplingParams) -> list[pb.ChatChoice]:
        text = "".join(self.words)
        ids = [*range(10, 10 + len(self.words)), EOS]
        return [
            pb.ChatChoice(
                index=index,
                text=text,
                token_ids=ids,
                finish_reason=types.FINISH_REASON_STOP,
                matched_stop_token_id=EOS,
                logprobs=_logprobs(ids, sampling.top_logprobs) if sampling.logprobs else (),
            )
            for index in range(sampling.n or 1)
        ]

    def _usage(self, media: list[pb.MediaReport], n: int) -> types.Usage:
        images = sum(report.num_tokens for report in media if report.modality == types.MODALITY_IMAGE)
        videos = sum(report.num_tokens for report in media if report.modality == types.MODALITY_VIDEO)
        prompt, completion = 10 + images + videos, n * (len(self.words) + 1)
        return types.Usage(
            prompt_tokens=prompt,
            completion_tokens=completion,
            total_tokens=prompt + completion,
            image_tokens=images,
            video_tokens=videos,
        )

    def _echo(self, request: pb.GenerateRequest) -> pb.PromptEcho:
        echo = pb.PromptEcho(token_ids=request.token_ids.ids or [3, 4, 5])
        for index, item in enumerate(request.items):
            if item.WhichOneof("payload") == "content_hash" and item.content_hash not in self.uploads:
                raise _not_held(f"items[{index}].content_hash")
            kept = echo.items.add(modality=item.modality, grid_thw=item.grid_thw)
            kept.content_hash = item.content_hash or item_from_proto(item).content_hash
        return echo

    def _media(self, request: pb.ChatRequest) -> list[pb.MediaReport]:
        reports = []
        for turn, message in enumerate(request.messages):
            for number, part in enumerate(message.parts):
                kind = part.WhichOneof("part")
                if kind == "time_series":
                    reports.append(
                        self._series_report(part.time_series, f"messages[{turn}].parts[{number}].{kind}.media")
                    )
                if kind in ("image", "video"):
                    path = f"messages[{turn}].parts[{number}].{kind}.media"
                    reports.append(self._report(kind, getattr(part, kind).media, path))
        return reports

    def _series_report(self, part: pb.TimeSeriesPart, path: str) -> pb.MediaReport:
        return pb.MediaReport(
            modality=types.MODALITY_TIME_SERIES,
            content_hash=self._digest(part.media, path),
            num_tokens=TOKENS_PER_MEDIUM,
            num_samples=300_000,
            used_samples=240_000,
            num_channels=2,
            sampling_rate_hz=part.options.sampling_rate_hz,
        )

    def _report(self, kind: str, media: pb.MediaSource, path: str) -> pb.MediaReport:
        for index, frame in enumerate(media.frames.frames):
            self._digest(frame, f"{path}.frames.frames[{index}]")
        digest = self._digest(media, path)
        report = pb.MediaReport(
            modality=types.MODALITY_IMAGE if kind == "image" else types.MODALITY_VIDEO,
            content_hash=digest,
            source_height=60,
            source_width=80,
            height=64,
            width=96,
            grid_thw=types.GridThw(t=1 if kind == "image" else 2, h=4, w=6),
            num_tokens=TOKENS_PER_MEDIUM if kind == "image" else 2 * TOKENS_PER_MEDIUM,
            min_pixels=1024,
            max_pixels=65536,
        )
        if kind == "video":
            report.sampling.CopyFrom(
                pb.SamplingPlan(
                    total_frames=16,
                    source_fps=8.0,
                    duration_s=2.0,
                    frame_indices=[0, 5, 10, 15],
                    timestamps=[0.0, 0.625, 1.25, 1.875],
                    rule="fps",
                )
            )
        return report

    def _digest(self, media: pb.MediaSource, path: str) -> bytes:
        match media.WhichOneof("source"):
            case "media_id" if media.media_id not in self.uploads:
                raise _not_held(f"{path}.media_id")
            case None:
                raise InvalidArgument("A source is required.", reason="FIELD_REQUIRED", field=path)
        return hashlib.sha256(media.SerializeToString()).digest()

    def _uploaded(self, header: pb.UploadHeader, data: bytes, *, existed: bool) -> pb.UploadMediaResponse:
        response = pb.UploadMediaResponse(size_bytes=len(data), existed=existed, held_for=HELD_FOR)
        digest = hashlib.sha256(data).digest()
        if header.WhichOneof("kind") == "media":
            response.media_id = digest
            self.uploads[digest] = data
        else:
            item = types.MultimodalItem()
            item.CopyFrom(header.item.item)
            item.tensor.data = data
            response.content_hash = item_from_proto(item).content_hash
            self.uploads[response.content_hash] = data
        return response

    def _model(self, state: pb.ModelState, progress: float) -> pb.Model:
        return pb.Model(
            name=self.model,
            architecture="Qwen3VLForConditionalGeneration",
            state=state,
            progress=progress,
            modalities=[types.MODALITY_IMAGE, types.MODALITY_VIDEO],
            max_model_len=2048,
            vocab_size=512,
            limits=pb.RequestLimits(max_inline_bytes=32 << 20, max_media_bytes=1 << 30, max_frames=768, max_items=64),
            default_sampling=types.SamplingParams(temperature=0.0),
            eos_token_ids=[EOS],
            workers=[
                pb.WorkerStatus(
                    address="127.0.0.1:7001",
                    state=state,
                    running=1,
                    total_blocks=128,
                    free_blocks=120,
                    used_blocks=8,
                    device="cpu",
                    dtype="float32",
                    ops={"attention": "torch"},
                )
            ],
            resize_backend="native",
            video_loaders=["opencv"],
            fingerprint="0123456789abcdef",
            server_version="0.1.0",
        )


class FakeServer:
    """A gRPC server with a FakeInference, in a thread with its own event loop.

    Attributes:
        service: the scripted service.
        address: "127.0.0.1:port".
    """

    def __init__(self, service: FakeInference | None = None, port: int = 0) -> None:
        self.service = service or FakeInference()
        self._port = port
        self.address = ""
        self._started = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._stop: asyncio.Event | None = None
        self._thread = threading.Thread(target=self._run, name="fake-server", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._started.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._stop is not None
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        self._stop = asyncio.Event()
        server = grpc.aio.server(interceptors=[ErrorInterceptor()], options=[("grpc.so_reuseport", 0)])
        rpc.add_InferenceServiceServicer_to_server(self.service, server)
        checks = health.aio.HealthServicer()
        await checks.set("", health_pb2.HealthCheckResponse.SERVING)
        health_pb2_grpc.add_HealthServicer_to_server(checks, server)
        port = server.add_insecure_port(f"127.0.0.1:{self._port}")
        await server.start()
        self.address = f"127.0.0.1:{port}"
        self._started.set()
        await self._stop.wait()
        await server.stop(0)


def _logprobs(ids: list[int], top: int) -> list[types.Logprob]:
    def one(token: int) -> types.TokenLogprob:
        return types.TokenLogprob(token_id=token, token=f"t{token}", token_bytes=b"t", logprob=-0.5)

    return [types.Logprob(chosen=one(token), top=[one(token)] * top) for token in ids]


def _not_held(path: str) -> FailedPrecondition:
    return FailedPrecondition("This upload is unknown or has expired.", reason="ITEM_NOT_FOUND", field=path)
