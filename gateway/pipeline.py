"""The way from a trusted request to a prompt that a worker can run.

Media are fetched and processed item by item, at once, without looking at the
prompt; the processor then puts the items into it. Chat, Generate and Prepare
take the same way.

Next: media/fetch.py, media/pool.py, processor/multimodal.py; then answer.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from gateway.held import HeldStore
from gateway.media.errors import check_options
from gateway.media.fetch import MediaFetcher
from gateway.media.item import ProcessedItem
from gateway.media.options import ServerLimits
from gateway.media.pool import MediaJob, MediaPool
from gateway.processor.cache import ProcessorCache
from gateway.processor.prompt import Prompt
from gateway.request import ChatRequest, GenerateRequest, Medium
from gateway.sampling import fit_max_tokens, resolve_sampling_params
from gateway.schedule.admission import Ticket
from gateway.served_model import ServedModel
from tessera.errors import FailedPrecondition, InvalidArgument, ResourceExhausted, ServeError
from tessera.items import MultimodalItem, check_item
from tessera.modality import PayloadKind
from tessera.v1 import types_pb2 as types

T = TypeVar("T")


@dataclass(frozen=True)
class UsedMedium:
    """What became of one medium.

    Attributes:
        item: with bytes.
        processed: how it was processed; None where the caller did it.
        cached: it came from the processor cache.
    """

    item: MultimodalItem
    processed: ProcessedItem | None
    cached: bool = False


@dataclass(frozen=True)
class Prepared:
    """What a request would run.

    Attributes:
        prompt: final ids, and items with ranges.
        media: one for each of the prompt's items, in the same order.
        sampling: complete.
        cache_salt: of the workers' cache keys.
    """

    prompt: Prompt
    media: tuple[UsedMedium, ...]
    sampling: types.SamplingParams
    cache_salt: bytes


class Pipeline:
    """Prepares requests for one model.

    Args:
        model: what is served.
        fetcher: brings a source's bytes.
        pool: decodes and resizes them.
        cache: of what the pool returned.
        held: items that were uploaded or prepared before.
        limits: the server's caps on media.
        draw_seed: returns a seed where a request has none.
    """

    def __init__(
        self,
        model: ServedModel,
        fetcher: MediaFetcher,
        pool: MediaPool,
        cache: ProcessorCache,
        held: HeldStore[MultimodalItem],
        limits: ServerLimits,
        draw_seed: Callable[[], int],
    ) -> None:
        self._model = model
        self._fetcher = fetcher
        self._pool = pool
        self._cache = cache
        self._held = held
        self._limits = limits
        self._draw_seed = draw_seed

    async def chat(self, request: ChatRequest, ticket: Ticket) -> Prepared:
        """Render, process and expand a conversation.

        Raises:
            ServeError: with the field's path.
        """
        sampling = self._sampling(request.sampling)
        self._model.check_media((medium.modality, medium.field) for medium in request.media)
        processor = self._model.processor
        rendered = await asyncio.to_thread(
            processor.render_chat,
            request.messages,
            arguments=request.template_args,
            add_generation_prompt=request.add_generation_prompt,
        )
        media = await gather([self._medium(medium, ticket) for medium in request.media])
        items = [medium.item for medium in media]
        prompt = await asyncio.to_thread(processor.expand_chat, request.messages, rendered, items, request.video_layout)
        return self._prepared(prompt, media, sampling, request.cache_salt, "messages")

    async def generate(self, request: GenerateRequest, ticket: Ticket) -> Prepared:
        """Check or expand a prompt of ids or text with its items.

        Raises:
            ServeError: with the field's path.
        """
        sampling = self._sampling(request.sampling)
        self._model.check_media((item.modality, f"items[{i}]") for i, item in enumerate(request.items))
        self._model.check_placeholders(request.token_ids, request.text)
        media = [UsedMedium(self._taken(item, f"items[{i}]", ticket), None) for i, item in enumerate(request.items)]
        items = [medium.item for medium in media]
        processor = self._model.processor
        if request.text is not None:
            prompt = await asyncio.to_thread(processor.prepare_text, request.text, items, request.video_layout)
        else:
            prompt = await asyncio.to_thread(
                processor.prepare_token_ids, request.token_ids or (), items, request.video_layout
            )
        field = "text" if request.text is not None else "token_ids"
        return self._prepared(prompt, media, sampling, request.cache_salt, field)

    def _sampling(self, asked: types.SamplingParams) -> types.SamplingParams:
        described = self._model.description()
        return resolve_sampling_params(
            asked, described.default_sampling, vocab_size=described.vocab_size, draw_seed=self._draw_seed
        )

    def _prepared(
        self,
        prompt: Prompt,
        media: Sequence[UsedMedium],
        sampling: types.SamplingParams,
        cache_salt: bytes,
        prompt_field: str,
    ) -> Prepared:
        fit_max_tokens(sampling, len(prompt.token_ids), self._model.max_model_len, prompt_field)
        return Prepared(prompt, tuple(media), sampling, cache_salt)

    async def _medium(self, medium: Medium, ticket: Ticket) -> UsedMedium:
        if medium.item is not None:
            return UsedMedium(self._taken(medium.item, medium.field, ticket), None)
        assert medium.source is not None and medium.options is not None
        try:
            check_options(medium.options, self._model.processor.rules, self._limits)
            fetched = await self._fetcher.fetch(medium.source, "media")
            ticket.add_bytes(fetched.size_bytes)
            job = MediaJob(medium.modality, fetched, medium.options, self._model.processor.rules, self._limits)
            processed, cached = await self._cache.get_or_process(job, self._pool.process)
        except ServeError as error:
            raise error.under(medium.field) from error.__cause__
        ticket.add_bytes(processed.item.size_bytes)
        return UsedMedium(processed.item, processed, cached)

    def _taken(self, item: MultimodalItem, field: str, ticket: Ticket) -> MultimodalItem:
        """Return an item of the caller's with its bytes, checked against the model."""
        try:
            self._model.processor.check_modality(item)
            whole = item if item.array is not None else self._named(item)
            check_item(whole, self._model.processor.geometry)
            check_samples(whole, self._limits)
        except ServeError as error:
            raise error.under(field) from None
        ticket.add_bytes(whole.size_bytes)
        return whole

    def _named(self, item: MultimodalItem) -> MultimodalItem:
        """Return the held item that a hash names, with the request's ranges."""
        held = self._held.get(item.content_hash)
        if held is None:
            raise FailedPrecondition(
                "No item of this hash is held; it expired, or was never uploaded or prepared here.",
                reason="ITEM_NOT_FOUND",
                field="content_hash",
            )
        if item.modality != held.modality:
            raise InvalidArgument(
                f"The item of this hash is of modality {held.modality}.", reason="ITEM_MISMATCH", field="modality"
            )
        if item.grid_thw not in (None, held.grid_thw):
            raise InvalidArgument(
                f"The item of this hash has grid {list(held.grid_thw or ())}.", reason="ITEM_MISMATCH", field="grid_thw"
            )
        if item.payload_kind not in (None, held.payload_kind):
            raise InvalidArgument(
                f"The item of this hash holds {held.payload_kind}.", reason="ITEM_MISMATCH", field="payload_kind"
            )
        for name in ("sampling_rate_hz", "channels"):
            if getattr(item, name) not in (0, getattr(held, name)):
                raise InvalidArgument(
                    f"The item of this hash has {name} {getattr(held, name):g}.", reason="ITEM_MISMATCH", field=name
                )
        return replace(held, ranges=item.ranges, timestamps=item.timestamps or held.timestamps)


def check_samples(item: MultimodalItem, limits: ServerLimits) -> None:
    """Refuse a series of the caller's with more samples than the server takes.

    Raises:
        ResourceExhausted: SERIES_TOO_LARGE; field path inside the item.
    """
    if item.payload_kind is not PayloadKind.SAMPLES or item.array is None:
        return
    if item.array.size > limits.max_series_samples:
        raise ResourceExhausted(
            f"A series has at most {limits.max_series_samples} samples, all channels together, not {item.array.size}.",
            reason="SERIES_TOO_LARGE",
            field="tensor.shape",
            retry_after_s=None,
        )


async def gather(jobs: Sequence[Awaitable[T]]) -> list[T]:
    """Run jobs at once and return their results in order; the first failure cancels the rest.

    Raises:
        Exception: that of the job that failed first.
    """
    tasks: list[asyncio.Task[T]] = []
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(job) for job in jobs]  # type: ignore[arg-type]
    except ExceptionGroup as group:
        # The first to fail cancelled the rest: it alone says why.
        raise group.exceptions[0] from None
    return [task.result() for task in tasks]
