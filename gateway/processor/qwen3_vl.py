"""The processor of Qwen3-VL: an image is one run of pads, a clip one timestamp and one run for each pair of frames.

Source: transformers 5.23 `models/qwen3_vl/processing_qwen3_vl.py` (and 4.57's for `VideoLayout.V4`).

Next: gateway/dispatch.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from gateway.media.rules import MediaRules
from gateway.processor.base import Prompt, VideoLayout
from gateway.processor.chat_template import ChatTemplate, RenderedChat
from gateway.processor.checkpoint_files import read_geometry, read_media_configs
from gateway.processor.expansion import Marker, Piece, PromptBuilder, mark_ids, mark_pieces, match_markers, unwrap
from gateway.processor.messages import ChatMessage, check_messages, media_parts
from gateway.processor.ranges import check_ranges
from gateway.processor.timestamps import patch_times
from gateway.processor.tokenizer import Tokenizer
from gateway.processor.vision_tokens import VisionTokens
from tessera.errors import FailedPrecondition, InvalidArgument, ServeError, Unimplemented
from tessera.items import ItemGeometry, MultimodalItem, PlaceholderRange, check_grid
from tessera.modality import Modality


class Qwen3VLProcessor:
    """Qwen3-VL's processor; see `gateway.processor.base.Processor`."""

    modalities = frozenset({Modality.IMAGE, Modality.VIDEO})

    def __init__(
        self,
        *,
        architecture: str,
        tokenizer: Tokenizer,
        template: ChatTemplate | None,
        rules: MediaRules,
        geometry: ItemGeometry,
        tokens: VisionTokens,
        vocab_size: int,
    ) -> None:
        self.architecture = architecture
        self.tokenizer = tokenizer
        self.rules = rules
        self.geometry = geometry
        self.vocab_size = vocab_size
        self._template = template
        self._tokens = tokens
        self._modality_of = tokens.modality_of

    @classmethod
    def from_dir(cls, path: Path, config: dict[str, Any]) -> Qwen3VLProcessor:
        """Load a checkpoint's processor.

        Raises:
            FailedPrecondition: a file is missing or contradicts another.
        """
        tokenizer = Tokenizer.from_dir(path)
        text_config = config.get("text_config", config)
        geometry = read_geometry(config)
        return cls(
            architecture=config["architectures"][0],
            tokenizer=tokenizer,
            template=ChatTemplate.from_dir(path, tokenizer),
            rules=_read_rules(path, geometry),
            geometry=geometry,
            tokens=VisionTokens.of(tokenizer, config),
            vocab_size=text_config.get("vocab_size", tokenizer.vocab_size),
        )

    def render_chat(
        self,
        messages: Sequence[ChatMessage],
        *,
        arguments: Mapping[str, Any] | None = None,
        add_generation_prompt: bool = True,
    ) -> RenderedChat:
        """Check and render a conversation; needs no item, so it can run while media are processed.

        Raises:
            InvalidArgument: see `check_messages`; TEMPLATE_ERROR.
            Unimplemented: a modality that the model does not have.
            FailedPrecondition: the checkpoint has no chat template.
        """
        check_messages(messages, self.modalities)
        if self._template is None:
            raise FailedPrecondition("The model has no chat template; use Generate.", reason="NO_CHAT_TEMPLATE")
        return self._template.render(messages, arguments=arguments, add_generation_prompt=add_generation_prompt)

    def expand_chat(
        self,
        messages: Sequence[ChatMessage],
        rendered: RenderedChat,
        items: Sequence[MultimodalItem],
        layout: VideoLayout = VideoLayout.V5,
    ) -> Prompt:
        """Put the items into a rendered conversation: the n-th media part takes the n-th item.

        Raises:
            InvalidArgument: an item's grid or times, under its part's path; the template left a medium out.
        """
        fields = [field for field, _ in media_parts(messages)]
        pieces = mark_pieces(rendered.pieces, self._modality_of)
        places = [part.modality for _, part in media_parts(messages)]
        assert [item.modality for item in items] == places, "one item for each media part, in order"
        if [piece.modality for piece in pieces if isinstance(piece, Marker)] != places:
            raise InvalidArgument(
                "The chat template does not write one placeholder for each medium, in order.",
                reason="TEMPLATE_ERROR",
                field="messages",
            )
        return self._expand(rendered.text, pieces, items, layout, fields)

    def prepare_chat(
        self,
        messages: Sequence[ChatMessage],
        items: Sequence[MultimodalItem],
        *,
        arguments: Mapping[str, Any] | None = None,
        add_generation_prompt: bool = True,
        layout: VideoLayout = VideoLayout.V5,
    ) -> Prompt:
        """Render, then expand; raises what both raise."""
        rendered = self.render_chat(messages, arguments=arguments, add_generation_prompt=add_generation_prompt)
        return self.expand_chat(messages, rendered, items, layout)

    def prepare_text(self, text: str, items: Sequence[MultimodalItem], layout: VideoLayout = VideoLayout.V5) -> Prompt:
        """Expand a raw prompt, whose spelled-out special tokens are tokens.

        Raises:
            InvalidArgument: an empty text, items with ranges, or markers that do not match the items.
        """
        if not text:
            raise InvalidArgument("The prompt is empty.", reason="PROMPT_EMPTY", field="text")
        for i, item in enumerate(items):
            if item.ranges:
                raise InvalidArgument(
                    "Ranges index token ids; a text prompt has none.",
                    reason="RANGES_WITH_TEXT",
                    field=f"items[{i}].ranges",
                )
        pieces = mark_pieces(self.tokenizer.split_special(text), self._modality_of)
        match_markers(pieces, items)
        return self._expand(text, pieces, items, layout, _item_fields(items))

    def prepare_token_ids(
        self, ids: Sequence[int], items: Sequence[MultimodalItem], layout: VideoLayout = VideoLayout.V5
    ) -> Prompt:
        """Expand a token prompt (no item has ranges), or check one that is expanded already (all have).

        Raises:
            InvalidArgument: no ids, an id outside the vocabulary, items with and without ranges, or markers or ranges
                that do not match the items.
        """
        ids = tuple(ids)
        self._check_ids(ids)
        with_ranges = [bool(item.ranges) for item in items]
        if any(with_ranges) and not all(with_ranges):
            raise InvalidArgument(
                "Either all items have ranges or none has.",
                reason="RANGES_MIXED",
                field=f"items[{with_ranges.index(False)}].ranges",
            )
        if any(with_ranges):
            return self._take_expanded(ids, items)
        pieces = mark_ids(ids, self._modality_of)
        match_markers(pieces, items)
        return self._expand(None, pieces, items, layout, _item_fields(items))

    def expected_tokens(self, item: MultimodalItem) -> int:
        """Return the embeddings that an item's grid gives.

        Raises:
            InvalidArgument: the grid is missing or does not fit the model; field path inside the item.
            Unimplemented: a modality that the model does not have.
        """
        return sum(self._run_lengths(item))

    def _run_lengths(self, item: MultimodalItem) -> tuple[int, ...]:
        """One run for an image, one for each temporal patch of a clip."""
        if item.modality not in self.modalities:
            raise Unimplemented(
                f"The model does not take {item.modality}.", reason="MODALITY_UNSUPPORTED", field="modality"
            )
        t, h, w = check_grid(item.modality, item.grid_thw, self.geometry)
        return (h * w // self.geometry.merge_size**2,) * t

    def _check_ids(self, ids: Sequence[int]) -> None:
        if not ids:
            raise InvalidArgument("The prompt is empty.", reason="PROMPT_EMPTY", field="token_ids.ids")
        if min(ids) < 0 or max(ids) >= self.vocab_size:
            bad = next(i for i, token in enumerate(ids) if not 0 <= token < self.vocab_size)
            raise InvalidArgument(
                f"Token id {ids[bad]} is not in [0, {self.vocab_size}).",
                reason="TOKEN_ID_RANGE",
                field=f"token_ids.ids[{bad}]",
            )

    def _take_expanded(self, ids: Sequence[int], items: Sequence[MultimodalItem]) -> Prompt:
        for i, item in enumerate(items):
            _under(f"items[{i}]", self._run_lengths, item)
        check_ranges(
            ids,
            items,
            placeholder_of=lambda item: self._tokens.pad_of(item.modality),
            run_lengths=self._run_lengths,
            placeholder_ids=frozenset(self._modality_of),
        )
        return Prompt(None, tuple(ids), tuple(items))

    def _expand(
        self,
        text: str | None,
        pieces: list[Piece],
        items: Sequence[MultimodalItem],
        layout: VideoLayout,
        fields: Sequence[str],
    ) -> Prompt:
        if layout is VideoLayout.V4:
            pieces = unwrap(pieces, Modality.VIDEO, self._tokens.start, self._tokens.end)
        builder = PromptBuilder(lambda plain: self.tokenizer.encode(plain, allow_special=False))
        placed: list[MultimodalItem] = []
        for piece in pieces:
            if isinstance(piece, str):
                builder.add_text(piece)
            elif isinstance(piece, tuple):
                builder.add_ids(piece)
            else:
                item = items[len(placed)]
                ranges = _under(fields[len(placed)], self._lay_down, builder, item)
                placed.append(replace(item, ranges=ranges))
        return Prompt(text, builder.finish(), tuple(placed))

    def _lay_down(self, builder: PromptBuilder, item: MultimodalItem) -> tuple[PlaceholderRange, ...]:
        lengths = self._run_lengths(item)
        if item.modality is Modality.IMAGE:
            return (builder.add_run(self._tokens.image, lengths[0]),)
        times = patch_times(item.timestamps, len(lengths), self.geometry.temporal_patch_size)
        ranges = []
        for time, length in zip(times, lengths, strict=True):
            builder.add_text(f"<{time:.1f} seconds>")
            builder.add_ids((self._tokens.start,))
            ranges.append(builder.add_run(self._tokens.video, length))
            builder.add_ids((self._tokens.end,))
        return tuple(ranges)


def _read_rules(path: Path, geometry: ItemGeometry) -> MediaRules:
    """Read the media rules, which must cut items as the model reads them."""
    try:
        rules = MediaRules.from_checkpoint(*read_media_configs(path))
    except ValueError as error:
        raise FailedPrecondition(
            f"The processor files are not served: {error}", reason="CHECKPOINT_UNSUPPORTED"
        ) from error
    for name in ("patch_size", "merge_size", "temporal_patch_size"):
        if getattr(rules, name) != getattr(geometry, name):
            raise FailedPrecondition(
                f"config.json and the processor files differ in {name}.", reason="CHECKPOINT_INCONSISTENT"
            )
    return rules


def _item_fields(items: Sequence[MultimodalItem]) -> list[str]:
    return [f"items[{i}]" for i in range(len(items))]


def _under(field: str, function: Any, *args: Any) -> Any:
    """Call a function whose errors name fields of the thing at `field`."""
    try:
        return function(*args)
    except ServeError as error:
        raise error.under(field) from error
