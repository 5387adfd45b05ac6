"""The client for programs with threads.

    with Client("localhost:50051") as client:
        print(client.chat([Image("cat.png"), "What is this?"]).text)
        for delta in client.stream_chat("Tell me more."):
            print(delta.text, end="", flush=True)

Next: requests.py (what is sent), streams.py (what comes back).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Self, TypeVar, Unpack

import grpc

from tessera.v1 import inference_service_pb2 as pb
from tessera_client import requests
from tessera_client.channel import CHANNEL_OPTIONS, ChannelPool, normalize_address
from tessera_client.decoding import decode
from tessera_client.errors import Cancelled, TesseraError, typed_errors
from tessera_client.options import CallOptions, ChatOptions, GenerateOptions
from tessera_client.ready import POLL_S, ReadyCallback, ReadyWatch
from tessera_client.requests import Call, Draft
from tessera_client.results import Answer, ChatResult, Delta, GenerateResult, Model, PrepareResult, UploadResult
from tessera_client.streams import StreamState, decode_answer, decode_prepare, decode_upload
from tessera_client.uploads import Payload, UploadProgress, upload_requests

R = TypeVar("R", bound=Answer)
Opener = Callable[[], AbstractContextManager[Iterator[Any]]]


class Stream(StreamState[R]):
    """A streamed answer: iterate over its deltas; leaving the loop early cancels the request.

    It starts with the first step of the loop. `text`, `usage` and the rest grow as it goes.
    """

    def __init__(self, result_type: type[R], opener: Opener) -> None:
        super().__init__(result_type)
        self._opener: Opener | None = opener
        self._call: Any = None
        self._closed = False

    def __iter__(self) -> Iterator[Delta]:
        opener, self._opener = self._opener, None
        if opener is None:
            raise RuntimeError("A stream can be iterated over once.")
        try:
            with opener() as self._call:
                for message in self._call if not self._closed else ():
                    yield from self.feed(message)
            self.done = not self._closed
        except Cancelled:
            if not self._closed:
                raise

    def result(self) -> R:
        """Read what is left, and return the whole answer."""
        if self._opener is not None:
            for _ in self:
                pass
        return self.answer()

    def close(self) -> None:
        """Cancel the request, from any thread; the loop then ends."""
        self._closed = True
        if self._call is not None:
            self._call.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Client:
    """Calls a Tessera server.

    Args:
        address: "host:port"; default localhost:50051.
        timeout: seconds for each call, uploads included; None = no deadline.
        credentials: for TLS; None = plain text.
        metadata: (key, value) pairs of every call.
        upload_above_bytes: larger media are uploaded ahead of the request.
        on_upload: told how far uploads are.
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

    def chat(self, messages: Any, **options: Unpack[ChatOptions]) -> ChatResult:
        """Answer a conversation.

        Args:
            messages: a string, parts, or turns; see messages.py.
            options: see ChatOptions, SamplingOptions, CallOptions.

        Raises:
            TesseraError: see errors.py.
        """
        draft = requests.draft_chat(messages, options, self._defaults)
        return decode_answer(ChatResult, self._send("Chat", draft))

    def stream_chat(self, messages: Any, **options: Unpack[ChatOptions]) -> Stream[ChatResult]:
        """Answer a conversation as it is generated; arguments and errors as chat."""
        draft = requests.draft_chat(messages, options, self._defaults)
        return Stream(ChatResult, lambda: self._open_stream("StreamChat", draft))

    def generate(self, prompt: str | Sequence[int], **options: Unpack[GenerateOptions]) -> GenerateResult:
        """Continue a raw prompt or token ids, exactly.

        Args:
            prompt: text, in which special tokens that are spelled out are tokens; or ids.
            options: see GenerateOptions, SamplingOptions, CallOptions.

        Raises:
            TesseraError: see errors.py.
        """
        draft = requests.draft_generate(prompt, options, self._defaults)
        return decode_answer(GenerateResult, self._send("Generate", draft))

    def stream_generate(
        self, prompt: str | Sequence[int], **options: Unpack[GenerateOptions]
    ) -> Stream[GenerateResult]:
        """Continue a prompt as it is generated; arguments and errors as generate."""
        draft = requests.draft_generate(prompt, options, self._defaults)
        return Stream(GenerateResult, lambda: self._open_stream("StreamGenerate", draft))

    def prepare(self, messages: Any, *, include_tensors: bool = False, **options: Unpack[ChatOptions]) -> PrepareResult:
        """Return what chat would run, without running it; `include_tensors` brings the items' arrays."""
        draft = requests.draft_prepare(messages, options, self._defaults, include_tensors=include_tensors)
        return decode_prepare(self._send("Prepare", draft))

    def prepare_prompt(
        self, prompt: str | Sequence[int], *, include_tensors: bool = False, **options: Unpack[GenerateOptions]
    ) -> PrepareResult:
        """Return what generate would run, without running it."""
        draft = requests.draft_prepare_prompt(prompt, options, self._defaults, include_tensors=include_tensors)
        return decode_prepare(self._send("Prepare", draft))

    def upload(self, source: Any, **options: Unpack[CallOptions]) -> UploadResult:
        """Send one media file ahead; the result stands as the source of an Image or a Video."""
        draft = requests.draft_media_upload(source, options, self._defaults)
        return self._upload(draft.uploads[0], draft.call)

    def upload_item(self, item: Any, **options: Unpack[CallOptions]) -> UploadResult:
        """Send one Item's tensor ahead; its `content_hash` then names it."""
        draft = requests.draft_item_upload(item, options, self._defaults)
        return self._upload(draft.uploads[0], draft.call)

    def list_models(self, **options: Unpack[CallOptions]) -> tuple[Model, ...]:
        """Return the models that are served; none while no worker is up."""
        call = requests.make_call(options, self._defaults)
        response = self._send("ListModels", Draft(pb.ListModelsRequest(), (), call))
        return tuple(decode(Model, model) for model in response.models)

    def get_model(self, model: str | None = None, **options: Unpack[CallOptions]) -> Model:
        """Return one model: limits, modalities, state, and what runs it."""
        call = requests.make_call(options, self._defaults)
        return decode(Model, self._send("GetModel", Draft(pb.GetModelRequest(model=model or ""), (), call)).model)

    def wait_until_ready(
        self,
        model: str | None = None,
        *,
        timeout: float | None = None,
        on_progress: ReadyCallback | None = None,
        poll_s: float = POLL_S,
    ) -> Model:
        """Wait for the server to be up and the model to be loaded, and return the model.

        Raises:
            DeadlineExceeded: it was not ready within `timeout` seconds.
            NotFound: other models are served, and not this one.
        """
        watch = ReadyWatch(model, timeout, on_progress)
        while (ready := watch.take(self._look(watch.call_timeout()))) is None:
            time.sleep(poll_s)
        return ready

    def close(self) -> None:
        """Close the channels; running calls end as Cancelled."""
        for channel in self._pool.drain():
            channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open_channel(self, credentials: grpc.ChannelCredentials | None) -> grpc.Channel:
        if credentials is None:
            return grpc.insecure_channel(self.address, options=CHANNEL_OPTIONS)
        return grpc.secure_channel(self.address, credentials, options=CHANNEL_OPTIONS)

    def _send(self, method: str, draft: Draft) -> Any:
        for payload in draft.uploads:
            self._upload(payload, draft.call)
        return self._unary(method, draft.request, draft.call)

    def _unary(self, method: str, request: Any, call: Call) -> Any:
        with typed_errors(self.address, call.request_id), self._pool.lane() as stub:
            return getattr(stub, method)(request, timeout=call.remaining(), metadata=call.metadata)

    def _upload(self, payload: Payload, call: Call) -> UploadResult:
        response = self._unary("UploadMedia", upload_requests(payload, call.on_upload), call)
        if call.on_upload:
            call.on_upload(UploadProgress(payload.name, payload.size_bytes, payload.size_bytes))
        return decode_upload(response)

    @contextmanager
    def _open_stream(self, method: str, draft: Draft) -> Iterator[Any]:
        for payload in draft.uploads:
            self._upload(payload, draft.call)
        with typed_errors(self.address, draft.call.request_id), self._pool.lane() as stub:
            call = getattr(stub, method)(draft.request, timeout=draft.call.remaining(), metadata=draft.call.metadata)
            try:
                yield call
            finally:
                call.cancel()

    def _look(self, timeout: float) -> Sequence[Model] | TesseraError:
        try:
            return self.list_models(timeout=timeout)
        except TesseraError as error:
            return error
