"""InferenceService: each method reads as a sentence — validate, prepare, run, stream.

Next: validate.py, pipeline.py, dispatch.py, answer.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from typing import TypeVar

import grpc
from google.protobuf import duration_pb2

from gateway.answer import Collector, News, answer
from gateway.dispatch import Dispatcher, Job
from gateway.pipeline import Pipeline, Prepared
from gateway.reports import media_reports, prompt_usage
from gateway.schedule.admission import Admission, Ticket
from gateway.served_model import ServedModel
from gateway.session import Session, caller, open_session
from gateway.uploads import Uploads
from gateway.validate import at, chat_request, generate_request
from tessera.errors import InvalidArgument, ResourceExhausted
from tessera.items import item_to_proto
from tessera.v1 import inference_service_pb2 as pb
from tessera.v1.inference_service_pb2_grpc import InferenceServiceServicer

M = TypeVar("M", pb.StreamChatResponse, pb.StreamGenerateResponse)


@dataclass(frozen=True)
class InferenceService(InferenceServiceServicer):
    """What a client calls.

    Attributes:
        model: what is served.
        pipeline: prepares requests.
        dispatcher: runs them.
        uploads: files and items that are held.
        admission: how much runs at once.
    """

    model: ServedModel
    pipeline: Pipeline
    dispatcher: Dispatcher
    uploads: Uploads
    admission: Admission

    async def Chat(self, request: pb.ChatRequest, context: grpc.aio.ServicerContext) -> pb.ChatResponse:  # noqa: N802
        """Answer a conversation in one message."""
        async with self._admitted(request, context, "Chat") as (session, ticket):
            prepared = await self._prepare_chat(request, ticket)
            collector = await self._collect(prepared, session)
            return pb.ChatResponse(
                request_id=session.request_id,
                model=self.model.name,
                choices=collector.finish(),
                usage=collector.usage,
                seed=prepared.sampling.seed,
                media=media_reports(prepared),
            )

    async def StreamChat(  # noqa: N802
        self, request: pb.ChatRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[pb.StreamChatResponse]:
        """Answer a conversation as it is generated."""
        async with self._admitted(request, context, "StreamChat") as (session, ticket):
            prepared = await self._prepare_chat(request, ticket)
            head = pb.StreamChatResponse(
                model=self.model.name, seed=prepared.sampling.seed, media=media_reports(prepared)
            )
            async with aclosing(self._run(prepared, session)) as stream:
                async for news in stream:
                    yield _message(head, news, session)
                    head = pb.StreamChatResponse()

    async def Generate(  # noqa: N802
        self, request: pb.GenerateRequest, context: grpc.aio.ServicerContext
    ) -> pb.GenerateResponse:
        """Continue a prompt in one message."""
        async with self._admitted(request, context, "Generate") as (session, ticket):
            prepared = await self._prepare_generate(request, ticket)
            collector = await self._collect(prepared, session)
            return pb.GenerateResponse(
                request_id=session.request_id,
                model=self.model.name,
                choices=collector.finish(),
                usage=collector.usage,
                seed=prepared.sampling.seed,
                prompt=_echo(prepared),
            )

    async def StreamGenerate(  # noqa: N802
        self, request: pb.GenerateRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[pb.StreamGenerateResponse]:
        """Continue a prompt as it is generated."""
        async with self._admitted(request, context, "StreamGenerate") as (session, ticket):
            prepared = await self._prepare_generate(request, ticket)
            head = pb.StreamGenerateResponse(model=self.model.name, seed=prepared.sampling.seed, prompt=_echo(prepared))
            async with aclosing(self._run(prepared, session)) as stream:
                async for news in stream:
                    yield _message(head, news, session)
                    head = pb.StreamGenerateResponse()

    async def Prepare(self, request: pb.PrepareRequest, context: grpc.aio.ServicerContext) -> pb.PrepareResponse:  # noqa: N802
        """Return what Chat or Generate would run."""
        async with self._admitted(request, context, "Prepare") as (session, ticket):
            kind = request.WhichOneof("request")
            if kind is None:
                raise InvalidArgument("Say what to prepare.", reason="FIELD_REQUIRED", field="chat")
            with at(kind):
                if kind == "chat":
                    prepared = await self._prepare_chat(request.chat, ticket)
                else:
                    prepared = await self._prepare_generate(request.generate, ticket)
            self._hold(prepared)
            return self._prepared_response(prepared, session, include_tensors=request.include_tensors)

    async def UploadMedia(  # noqa: N802
        self, request_iterator: AsyncIterator[pb.UploadMediaRequest], context: grpc.aio.ServicerContext
    ) -> pb.UploadMediaResponse:
        """Take one file or item in chunks."""
        async with open_session(context, "UploadMedia"):
            return await self.uploads.receive(request_iterator, caller(context))

    async def ListModels(  # noqa: N802
        self, request: pb.ListModelsRequest, context: grpc.aio.ServicerContext
    ) -> pb.ListModelsResponse:
        """List the models; none while no worker is up."""
        model = self.model.to_proto()
        listed = [] if model.state == pb.MODEL_STATE_UNAVAILABLE else [model]
        return pb.ListModelsResponse(models=listed)

    async def GetModel(  # noqa: N802
        self, request: pb.GetModelRequest, context: grpc.aio.ServicerContext
    ) -> pb.GetModelResponse:
        """Describe one model, with its workers' load of this moment."""
        self.model.check_name(request.model)
        await asyncio.gather(*(link.refresh() for link in self.model.links))
        return pb.GetModelResponse(model=self.model.to_proto())

    @asynccontextmanager
    async def _admitted(
        self,
        request: pb.ChatRequest | pb.GenerateRequest | pb.PrepareRequest,
        context: grpc.aio.ServicerContext,
        method: str,
    ) -> AsyncIterator[tuple[Session, Ticket]]:
        size_bytes = request.ByteSize()
        async with open_session(context, method) as session:
            if size_bytes > self.model.limits.max_inline_bytes:
                raise ResourceExhausted(
                    f"The request has {size_bytes} bytes; at most {self.model.limits.max_inline_bytes} are taken at "
                    "once. Send large media by UploadMedia and name them.",
                    reason="REQUEST_TOO_LARGE",
                    retry_after_s=None,
                )
            with self.admission.request(size_bytes) as ticket:
                yield session, ticket

    async def _prepare_chat(self, request: pb.ChatRequest, ticket: Ticket) -> Prepared:
        self.model.check_name(request.model)
        return await self.pipeline.chat(chat_request(request, self.model.limits.max_items), ticket)

    async def _prepare_generate(self, request: pb.GenerateRequest, ticket: Ticket) -> Prepared:
        self.model.check_name(request.model)
        return await self.pipeline.generate(generate_request(request, self.model.limits.max_items), ticket)

    def _run(self, prepared: Prepared, session: Session) -> AsyncGenerator[News, None]:
        job = Job(
            request_id=session.run_id,
            token_ids=prepared.prompt.token_ids,
            items=prepared.prompt.items,
            sampling=prepared.sampling,
            deadline_s=session.deadline_s,
            cache_salt=prepared.cache_salt,
        )
        session.usage = prompt_usage(prepared)
        return answer(self.dispatcher, job, self.model.processor.tokenizer, session.usage)

    async def _collect(self, prepared: Prepared, session: Session) -> Collector:
        collector = Collector(prepared.sampling.n)
        async for news in self._run(prepared, session):
            collector.add(news)
        return collector

    def _hold(self, prepared: Prepared) -> None:
        for item in prepared.prompt.items:
            self.uploads.items.put_evicting(item.content_hash, replace(item, ranges=()), item.size_bytes)

    def _prepared_response(self, prepared: Prepared, session: Session, *, include_tensors: bool) -> pb.PrepareResponse:
        prompt = prepared.prompt
        size_bytes = sum(item.size_bytes for item in prompt.items)
        if include_tensors and size_bytes > self.model.limits.max_inline_bytes:
            raise ResourceExhausted(
                f"The tensors have {size_bytes} bytes; at most {self.model.limits.max_inline_bytes} go into one "
                "message. Ask without them and name the items by hash.",
                reason="TENSORS_TOO_LARGE",
                field="include_tensors",
                retry_after_s=None,
            )
        usage = prompt_usage(prepared)
        session.usage = usage
        return pb.PrepareResponse(
            request_id=session.request_id,
            rendered_prompt=prompt.text or "",
            token_ids=prompt.token_ids,
            items=[item_to_proto(item, with_bytes=include_tensors) for item in prompt.items],
            content_hashes=[item.content_hash for item in prompt.items],
            media=media_reports(prepared),
            usage=usage,
            held_for=duration_pb2.Duration(seconds=int(self.uploads.items.ttl_s)),
            max_completion_tokens=self.model.max_model_len - len(prompt.token_ids),
        )


def _message(head: M, news: News, session: Session) -> M:
    """Put a message's news on what the stream's first message says besides."""
    head.request_id = session.request_id
    head.choices.extend(news.choices)
    head.usage.CopyFrom(news.usage)
    return head


def _echo(prepared: Prepared) -> pb.PromptEcho:
    return pb.PromptEcho(
        token_ids=prepared.prompt.token_ids,
        items=[item_to_proto(item, with_bytes=False) for item in prepared.prompt.items],
    )
