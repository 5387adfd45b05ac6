"""The client for programs with asyncio; the same calls as sync_client.py.

    async with AsyncClient("localhost:50051") as client:
        async for delta in client.stream_chat([Image("cat.png"), "What is this?"]):
            print(delta.text, end="", flush=True)

Next: requests.py (what is sent), streams.py (what comes back).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Self, TypeVar, Unpack

import grpc

from tessera.v1 import inference_service_pb2 as pb
from tessera_client import requests
from tessera_client.channel import CHANNEL_OPTIONS, ChannelPool, normalize_address
from tessera_client.decoding import decode
from tessera_client.errors import TesseraError, typed_errors
from tessera_client.options import CallOptions, ChatOptions, GenerateOptions
from tessera_client.ready import POLL_S, ReadyCallback, ReadyWatch
from tessera_client.requests import Call, Draft
from tessera_client.results import Answer, ChatResult, Delta, GenerateResult, Model, PrepareResult, UploadResult
from tessera_client.streams import StreamState, decode_answer, decode_prepare, decode_upload
from tessera_client.uploads import Payload, UploadProgress, upload_requests

R = TypeVar("R", bound=Answer)
Opener = Callable[[], AbstractAsyncContextManager[Any]]


class AsyncStream(StreamState[R]):
    """A streamed answer: iterate over its deltas; leaving the loop early cancels the request.

    It starts with the first step of the loop. `text`, `usage` and the rest grow as it goes.
    """

    def __init__(self, result_type: type[R], opener: Opener) -> None:
        super().__init__(result_type)
        self._opener: Opener | None = opener
        self._call: Any = None
        self._closed = False

    async def __aiter__(self) -> AsyncIterator[Delta]:
        opener, self._opener = self._opener, None
        if opener is None:
            raise RuntimeError("A stream can be iterated over once.")
        try:
            async with opener() as self._call:
                if self._closed:
                    return
                async for message in self._call:
                    for delta in self.feed(message):
                        yield delta
            self.done = True
        except asyncio.CancelledError:
            # grpc.aio says so too when the *call* was cancelled by close(): then the loop ends, and the task lives.
            task = asyncio.current_task()
            if not self._closed or (task is not None and task.cancelling()):
                raise

    async def result(self) -> R:
        """Read what is left, and return the whole answer."""
        if self._opener is not None:
            async for _ in self:
                pass
        return self.answer()

    def close(self) -> None:
        """Cancel the request; the loop then ends."""
        self._closed = True
        if self._call is not None:
            self._call.cancel()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()


class AsyncClient:
    """Calls a Tessera server from asyncio; arguments as Client.

    Requests are written in a thread, because hashing and encoding pictures takes time.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        timeout: float | None = None,
        credentials: grpc.ChannelCredentials | None = None,
        metadata: Sequence[tuple[str, str]] = (),
        upload_above_bytes: int | None = None,
        on_upload: Callable[[UploadProgress], None] | None = None,
    ) -> None:
        self.address = normalize_address(address)
        self._defaults = requests.make_defaults(timeout, metadata, on_upload, upload_above_bytes)
        self._pool = ChannelPool(lambda: self._open_channel(credentials))

    async def chat(self, messages: Any, **options: Unpack[ChatOptions]) -> ChatResult:
        """Answer a conversation; see Client.chat."""
        draft = await asyncio.to_thread(requests.draft_chat, messages, options, self._defaults)
        return decode_answer(ChatResult, await self._send("Chat", draft))

    def stream_chat(self, messages: Any, **options: Unpack[ChatOptions]) -> AsyncStream[ChatResult]:
        """Answer a conversation as it is generated; arguments and errors as chat."""
        return AsyncStream(ChatResult, lambda: self._open_stream("StreamChat", requests.draft_chat, messages, options))

    async def generate(self, prompt: str | Sequence[int], **options: Unpack[GenerateOptions]) -> GenerateResult:
        """Continue a raw prompt or token ids, exactly; see Client.generate."""
        draft = await asyncio.to_thread(requests.draft_generate, prompt, options, self._defaults)
        return decode_answer(GenerateResult, await self._send("Generate", draft))

    def stream_generate(
        self, prompt: str | Sequence[int], **options: Unpack[GenerateOptions]
    ) -> AsyncStream[GenerateResult]:
        """Continue a prompt as it is generated; arguments and errors as generate."""
        return AsyncStream(
            GenerateResult, lambda: self._open_stream("StreamGenerate", requests.draft_generate, prompt, options)
        )

    async def prepare(
        self, messages: Any, *, include_tensors: bool = False, **options: Unpack[ChatOptions]
    ) -> PrepareResult:
        """Return what chat would run, without running it; `include_tensors` brings the items' arrays."""
        draft = await asyncio.to_thread(
            requests.draft_prepare, messages, options, self._defaults, include_tensors=include_tensors
        )
        return decode_prepare(await self._send("Prepare", draft))

    async def prepare_prompt(
        self, prompt: str | Sequence[int], *, include_tensors: bool = False, **options: Unpack[GenerateOptions]
    ) -> PrepareResult:
        """Return what generate would run, without running it."""
        draft = await asyncio.to_thread(
            requests.draft_prepare_prompt, prompt, options, self._defaults, include_tensors=include_tensors
        )
        return decode_prepare(await self._send("Prepare", draft))

    async def upload(self, source: Any, **options: Unpack[CallOptions]) -> UploadResult:
        """Send one media file ahead; the result stands as the source of an Image or a Video."""
        draft = await asyncio.to_thread(requests.draft_media_upload, source, options, self._defaults)
        return await self._upload(draft.uploads[0], draft.call)

    async def upload_item(self, item: Any, **options: Unpack[CallOptions]) -> UploadResult:
        """Send one Item's tensor ahead; its `content_hash` then names it."""
        draft = await asyncio.to_thread(requests.draft_item_upload, item, options, self._defaults)
        return await self._upload(draft.uploads[0], draft.call)

    async def list_models(self, **options: Unpack[CallOptions]) -> tuple[Model, ...]:
        """Return the models that are served; none while no worker is up."""
        call = requests.make_call(options, self._defaults)
        response = await self._unary("ListModels", pb.ListModelsRequest(), call)
        return tuple(decode(Model, model) for model in response.models)

    async def get_model(self, model: str | None = None, **options: Unpack[CallOptions]) -> Model:
        """Return one model: limits, modalities, state, and what runs it."""
        call = requests.make_call(options, self._defaults)
        return decode(Model, (await self._unary("GetModel", pb.GetModelRequest(model=model or ""), call)).model)

    async def wait_until_ready(
        self,
        model: str | None = None,
        *,
        timeout: float | None = None,
        on_progress: ReadyCallback | None = None,
        poll_s: float = POLL_S,
    ) -> Model:
        """Wait for the server to be up and the model to be loaded; see Client.wait_until_ready."""
        watch = ReadyWatch(model, timeout, on_progress)
        while (ready := watch.take(await self._look(watch.call_timeout()))) is None:  # noqa: ASYNC110 - polls another process
            await asyncio.sleep(poll_s)
        return ready

    async def close(self) -> None:
        """Close the channels; running calls are cancelled."""
        for channel in self._pool.drain():
            await channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def _open_channel(self, credentials: grpc.ChannelCredentials | None) -> grpc.aio.Channel:
        if credentials is None:
            return grpc.aio.insecure_channel(self.address, options=CHANNEL_OPTIONS)
        return grpc.aio.secure_channel(self.address, credentials, options=CHANNEL_OPTIONS)

    async def _send(self, method: str, draft: Draft) -> Any:
        for payload in draft.uploads:
            await self._upload(payload, draft.call)
        return await self._unary(method, draft.request, draft.call)

    async def _unary(self, method: str, request: Any, call: Call) -> Any:
        with typed_errors(self.address, call.request_id), self._pool.lane() as stub:
            return await getattr(stub, method)(request, timeout=call.remaining(), metadata=call.metadata)

    async def _upload(self, payload: Payload, call: Call) -> UploadResult:
        response = await self._unary("UploadMedia", upload_requests(payload, call.on_upload), call)
        if call.on_upload:
            call.on_upload(UploadProgress(payload.name, payload.size_bytes, payload.size_bytes))
        return decode_upload(response)

    @asynccontextmanager
    async def _open_stream(self, method: str, drafter: Callable[..., Draft], what: Any, options: Any) -> Any:
        draft = await asyncio.to_thread(drafter, what, options, self._defaults)
        for payload in draft.uploads:
            await self._upload(payload, draft.call)
        with typed_errors(self.address, draft.call.request_id), self._pool.lane() as stub:
            call = getattr(stub, method)(draft.request, timeout=draft.call.remaining(), metadata=draft.call.metadata)
            try:
                yield call
            finally:
                call.cancel()

    async def _look(self, timeout: float) -> Sequence[Model] | TesseraError:
        try:
            return await self.list_models(timeout=timeout)
        except TesseraError as error:
            return error
