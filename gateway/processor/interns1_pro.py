"""The processor of InternS1-Pro: Qwen3-VL's media in the layout of 4.57, time series, and a tokenizer of plain BPE.

The released tokenizer is remote Python that cuts SMILES, protein, DNA and RNA sequences out of a text and encodes them
with vocabularies of their own. It is not run here: such text is ordinary text. Exact ids go through Generate.

Source: the released remote code (`processing_interns1_pro.py`), lmdeploy `vl/model/interns1_pro.py` at 1263d5c.

Next: gateway/dispatch.py.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import structlog

from gateway.processor.chat_template import RenderedChat
from gateway.processor.checkpoint_files import read_chat_template
from gateway.processor.expansion import Piece, PromptBuilder
from gateway.processor.media_tokens import special_id
from gateway.processor.messages import ChatMessage, MediaPart, TextPart, check_messages
from gateway.processor.multimodal import TEXT_GEOMETRY
from gateway.processor.prompt import VideoLayout
from gateway.processor.qwen3_vl import Qwen3VLProcessor
from gateway.processor.tokenizer import Tokenizer
from gateway.processor.vision_tokens import VisionTokens
from tessera.errors import FailedPrecondition
from tessera.items import ItemGeometry, MultimodalItem, PlaceholderRange, series_tokens
from tessera.modality import VISUAL, Modality

log = structlog.get_logger(__name__)

_START, _PLACEHOLDER, _END = "<|ts|>", "<TS_CONTEXT>", "<|/ts|>"
_SERIES_TOKENS = {
    "series_start": ("ts_start", _START),
    "series": ("ts", _PLACEHOLDER),
    "series_end": ("ts_end", _END),
}


@dataclass(frozen=True)
class InternTokens(VisionTokens):
    """Ids of the markers.

    Attributes:
        modalities: what the checkpoint takes; the placeholders of others are ordinary ids.
        series_start: before a series; this and the next two are looked at only where there are series.
        series: its placeholder.
        series_end: after it.
    """

    modalities: frozenset[Modality]
    series_start: int = -1
    series: int = -1
    series_end: int = -1

    def fill_of(self, modality: Modality) -> int:
        """Return the placeholder of a modality."""
        return self.series if modality is Modality.TIME_SERIES else super().fill_of(modality)

    @property
    def markers(self) -> Mapping[int, Modality]:
        """Modality by placeholder."""
        return {self.fill_of(modality): modality for modality in sorted(self.modalities)}


class InternS1ProProcessor(Qwen3VLProcessor):
    """InternS1-Pro's processor; see MultimodalProcessor."""

    tokens: InternTokens
    template_writes_series = False
    """Whether the checkpoint's own chat template has a place for time series; that of the first release has none."""

    @classmethod
    def from_dir(cls, path: Path, config: dict[str, Any], architecture: str | None = None) -> Self:
        """See MultimodalProcessor."""
        processor = super().from_dir(path, config, architecture)
        template = read_chat_template(path) or ""
        processor.template_writes_series = _PLACEHOLDER in template or "time_series" in template
        log.warning(
            "domain_detection_absent",
            detail="SMILES, protein, DNA and RNA sequences are encoded as ordinary text; give exact ids to Generate",
        )
        return processor

    @classmethod
    def read_modalities(cls, config: Mapping[str, Any]) -> frozenset[Modality]:
        """Return vision where there is a vision_config, time series where there is a ts_config."""
        series = {Modality.TIME_SERIES} if isinstance(config.get("ts_config"), Mapping) else frozenset()
        return super().read_modalities(config) | series

    @classmethod
    def read_geometry(cls, config: dict[str, Any]) -> ItemGeometry:
        """See MultimodalProcessor; embeddings have the language model's width."""
        modalities = cls.read_modalities(config)
        geometry = super().read_geometry(config) if modalities & VISUAL else TEXT_GEOMETRY
        try:
            width = config.get("text_config", config)["hidden_size"]
        except KeyError as error:
            raise FailedPrecondition(
                "The config.json lacks text_config.hidden_size.", reason="CHECKPOINT_INVALID"
            ) from error
        return replace(geometry, hidden_size=width, time_series=Modality.TIME_SERIES in modalities)

    @classmethod
    def read_tokens(cls, tokenizer: Tokenizer, config: Mapping[str, Any]) -> InternTokens:
        """See MultimodalProcessor."""
        modalities = cls.read_modalities(config)
        series = {}
        if Modality.TIME_SERIES in modalities:
            series = {field: special_id(tokenizer, config, *names) for field, names in _SERIES_TOKENS.items()}
        return InternTokens(**vars(VisionTokens.of(tokenizer, config)), modalities=modalities, **series)

    def prepare_pieces(self, pieces: list[Piece], layout: VideoLayout) -> list[Piece]:
        """Take the template's start and end from round a clip: the family has one layout, whatever is asked for."""
        return super().prepare_pieces(pieces, VideoLayout.V4)

    def run_lengths(self, item: MultimodalItem) -> tuple[int, ...]:
        """Return the lengths of an item's ranges, one for a series; see MultimodalProcessor.

        Raises:
            FailedPrecondition: a series is only a name and has no ranges, so that nothing says how long it is.
        """
        if item.modality is not Modality.TIME_SERIES:
            return super().run_lengths(item)
        if item.array is not None:
            return (series_tokens(item, self.geometry),)
        if not item.ranges:
            raise FailedPrecondition("The series' bytes are not here.", reason="ITEM_NOT_FOUND", field="content_hash")
        return (item.num_tokens,)

    def lay_down(
        self, builder: PromptBuilder, item: MultimodalItem, layout: VideoLayout
    ) -> tuple[PlaceholderRange, ...]:
        """Write a series' placeholders between the start and end that stand there; see Qwen3VLProcessor."""
        if item.modality is not Modality.TIME_SERIES:
            return super().lay_down(builder, item, layout)
        return (builder.add_run(self.tokens.series, self.run_lengths(item)[0]),)

    def render_chat(
        self,
        messages: Sequence[ChatMessage],
        *,
        arguments: Mapping[str, Any] | None = None,
        add_generation_prompt: bool = True,
    ) -> RenderedChat:
        """Render a conversation; a template that knows no time series is given text in their place.

        Raises:
            What MultimodalProcessor raises.
        """
        options: dict[str, Any] = {"arguments": arguments, "add_generation_prompt": add_generation_prompt}
        if self.template_writes_series or not any(map(_is_series, _parts(messages))):
            return super().render_chat(messages, **options)
        check_messages(messages, self.modalities)
        stand_in = secrets.token_hex(16)  # that nobody can have written
        rendered = super().render_chat([_without_series(message, stand_in) for message in messages], **options)
        series = (self.tokens.series_start, self.tokens.series, self.tokens.series_end)
        return RenderedChat(
            text=rendered.text.replace(stand_in, _START + _PLACEHOLDER + _END),
            pieces=tuple(part for piece in rendered.pieces for part in _put_back(piece, stand_in, series)),
        )


def _parts(messages: Sequence[ChatMessage]) -> Iterable[TextPart | MediaPart]:
    return (part for message in messages for part in message.parts)


def _is_series(part: TextPart | MediaPart) -> bool:
    return isinstance(part, MediaPart) and part.modality is Modality.TIME_SERIES


def _without_series(message: ChatMessage, stand_in: str) -> ChatMessage:
    parts = tuple(TextPart(stand_in) if _is_series(part) else part for part in message.parts)
    return replace(message, parts=parts)


def _put_back(piece: str | int, stand_in: str, series: Sequence[int]) -> Iterable[str | int]:
    """Yield a piece with the series' ids in place of each stand-in."""
    if isinstance(piece, int):
        yield piece
        return
    for index, text in enumerate(piece.split(stand_in)):
        if index:
            yield from series
        if text:
            yield text
