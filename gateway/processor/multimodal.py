"""What the processors of all families share: from messages, text or ids, and items, to a prompt.

A family says which tokens stand for its items, how an item is laid down, and which media rules it keeps; everything
else is here, and knows no family and no modality by name.

Next: qwen3_vl.py, glm4v.py.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Self

from gateway.media.rules import Family, MediaRules
from gateway.processor.chat_template import ChatTemplate, RenderedChat
from gateway.processor.checkpoint_files import read_geometry, read_media_configs
from gateway.processor.expansion import Marker, Piece, PromptBuilder, mark_ids, mark_pieces, match_markers
from gateway.processor.media_tokens import MediaTokens, NoMediaTokens
from gateway.processor.messages import ChatMessage, check_messages, media_parts
from gateway.processor.prompt import Prompt, VideoLayout
from gateway.processor.ranges import check_ranges
from gateway.processor.tokenizer import Tokenizer
from tessera.errors import FailedPrecondition, InvalidArgument, ServeError, Unimplemented
from tessera.items import ItemGeometry, MultimodalItem, PlaceholderRange, check_grid
from tessera.modality import VISUAL, Modality

TEXT_GEOMETRY = ItemGeometry(patch_size=1, merge_size=1, temporal_patch_size=1, hidden_size=0)
"""Of a checkpoint without media: nothing is ever measured with it."""


class MultimodalProcessor(ABC):
    """A family's processor for one checkpoint; holds no request state and is safe to use from many threads.

    Items are processed elsewhere, without looking at the prompt, and come here with their grids.

    A family overrides `read_tokens` and `lay_down`, and where it differs from Qwen-like vision: `media_family`,
    `read_modalities`, `read_geometry`, `read_rules`, `run_lengths`, `prepare_pieces`.

    Args:
        architecture: as config.json names it.
        tokenizer: the checkpoint's.
        template: None where the checkpoint has none.
        rules: of its media; the defaults where it takes none.
        geometry: of its items.
        tokens: its placeholders.
        vocab_size: ids that the model embeds.
        modalities: what it takes besides text.
    """

    media_family: ClassVar[Family] = "qwen"
    """Which size and sampling rules hold; see `MediaRules.family`."""

    tokens: MediaTokens

    def __init__(
        self,
        *,
        architecture: str,
        tokenizer: Tokenizer,
        template: ChatTemplate | None,
        rules: MediaRules,
        geometry: ItemGeometry,
        tokens: MediaTokens,
        vocab_size: int,
        modalities: frozenset[Modality] = VISUAL,
    ) -> None:
        self.architecture = architecture
        self.tokenizer = tokenizer
        self.rules = rules
        self.geometry = geometry
        self.tokens = tokens
        self.vocab_size = vocab_size
        self.modalities = modalities
        self._template = template

    # ---- loading, and what a family says of itself

    @classmethod
    def from_dir(cls, path: Path, config: dict[str, Any], architecture: str | None = None) -> Self:
        """Load a checkpoint's processor.

        Args:
            path: the checkpoint.
            config: its config.json.
            architecture: the one of its architectures that is served; the first unless given.

        Raises:
            FailedPrecondition: a file is missing or contradicts another.
        """
        tokenizer = Tokenizer.from_dir(path)
        modalities = cls.read_modalities(config)
        geometry = cls.read_geometry(config) if modalities else TEXT_GEOMETRY
        return cls(
            architecture=architecture or config["architectures"][0],
            tokenizer=tokenizer,
            template=ChatTemplate.from_dir(path, tokenizer),
            rules=cls.read_rules(path, geometry) if modalities & VISUAL else MediaRules(),
            geometry=geometry,
            tokens=cls.read_tokens(tokenizer, config) if modalities else NoMediaTokens(),
            vocab_size=config.get("text_config", config).get("vocab_size", tokenizer.vocab_size),
            modalities=modalities,
        )

    @classmethod
    def read_modalities(cls, config: Mapping[str, Any]) -> frozenset[Modality]:
        """Return what a checkpoint takes besides text: nothing where config.json has no vision tower."""
        return VISUAL if config.get("vision_config") is not None else frozenset()

    @classmethod
    def read_geometry(cls, config: dict[str, Any]) -> ItemGeometry:
        """Return the sizes of a checkpoint's items.

        Raises:
            FailedPrecondition: config.json lacks one.
        """
        return read_geometry(config)

    @classmethod
    def read_rules(cls, path: Path, geometry: ItemGeometry) -> MediaRules:
        """Return the media rules, which must cut items as the model reads them.

        Raises:
            FailedPrecondition: no processor file, one that is not served, or other sizes than config.json's.
        """
        try:
            rules = MediaRules.from_checkpoint(*read_media_configs(path), family=cls.media_family)
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

    @classmethod
    @abstractmethod
    def read_tokens(cls, tokenizer: Tokenizer, config: Mapping[str, Any]) -> MediaTokens:
        """Return the placeholders of a checkpoint that takes media.

        Raises:
            FailedPrecondition: one is missing, or another id in config.json.
        """

    @abstractmethod
    def lay_down(
        self, builder: PromptBuilder, item: MultimodalItem, layout: VideoLayout
    ) -> tuple[PlaceholderRange, ...]:
        """Write what stands for an item in place of its marker, and return where its embeddings go.

        Raises:
            InvalidArgument: its grid or times; field path inside the item.
        """

    def prepare_pieces(self, pieces: list[Piece], layout: VideoLayout) -> list[Piece]:
        """Return a marked prompt as the layout wants it round the markers; here as it is."""
        return pieces

    def check_places(self, prompt: Prompt, fields: Sequence[str]) -> None:  # noqa: B027 - most families have no rule
        """Check the tokens round the items of an expanded prompt.

        Args:
            prompt: its items have ranges.
            fields: path of each item.

        Raises:
            InvalidArgument: an item stands where the model would take it for something else.
        """

    def run_lengths(self, item: MultimodalItem) -> tuple[int, ...]:
        """Return the lengths of an item's ranges: one for an image, one for each temporal patch of a clip.

        Raises:
            InvalidArgument: the grid is missing or does not fit the model; field path inside the item.
        """
        t, h, w = check_grid(item.modality, item.grid_thw, self.geometry)
        return (h * w // self.geometry.merge_size**2,) * t

    @property
    def placeholder_ids(self) -> frozenset[int]:
        """All ids that stand for items, before or after expansion."""
        return self.placeholders_of(self.modalities)

    def placeholders_of(self, modalities: frozenset[Modality]) -> frozenset[int]:
        """Return the ids that stand for items of some modalities, before or after expansion."""
        markers = {token for token, modality in self.tokens.markers.items() if modality in modalities}
        return frozenset(markers | {self.tokens.fill_of(modality) for modality in modalities & self.modalities})

    # ---- the work

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
        pieces = mark_pieces(rendered.pieces, self.tokens.markers)
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
            Unimplemented: an item of a modality that the model does not have.
        """
        if not text:
            raise InvalidArgument("The prompt is empty.", reason="PROMPT_EMPTY", field="text")
        self._check_modalities(items)
        for i, item in enumerate(items):
            if item.ranges:
                raise InvalidArgument(
                    "Ranges index token ids; a text prompt has none.",
                    reason="RANGES_WITH_TEXT",
                    field=f"items[{i}].ranges",
                )
        pieces = mark_pieces(self.tokenizer.split_special(text), self.tokens.markers)
        match_markers(pieces, items)
        return self._expand(text, pieces, items, layout, _item_fields(items))

    def prepare_token_ids(
        self, ids: Sequence[int], items: Sequence[MultimodalItem], layout: VideoLayout = VideoLayout.V5
    ) -> Prompt:
        """Expand a token prompt (no item has ranges), or check one that is expanded already (all have).

        Raises:
            InvalidArgument: no ids, an id outside the vocabulary, items with and without ranges, or markers or ranges
                that do not match the items.
            Unimplemented: an item of a modality that the model does not have.
        """
        ids = tuple(ids)
        self._check_ids(ids)
        self._check_modalities(items)
        with_ranges = [bool(item.ranges) for item in items]
        if any(with_ranges) and not all(with_ranges):
            raise InvalidArgument(
                "Either all items have ranges or none has.",
                reason="RANGES_MIXED",
                field=f"items[{with_ranges.index(False)}].ranges",
            )
        if any(with_ranges):
            return self._take_expanded(ids, items)
        pieces = mark_ids(ids, self.tokens.markers)
        match_markers(pieces, items)
        return self._expand(None, pieces, items, layout, _item_fields(items))

    def expected_tokens(self, item: MultimodalItem) -> int:
        """Return the embeddings that an item gives.

        Raises:
            InvalidArgument: its grid is missing or does not fit the model; field path inside the item.
            Unimplemented: a modality that the model does not have.
        """
        self.check_modality(item)
        return sum(self.run_lengths(item))

    def check_modality(self, item: MultimodalItem) -> None:
        """Raise Unimplemented where the model does not take what an item is; field path inside the item."""
        if item.modality not in self.modalities:
            raise Unimplemented(
                f"The model does not take {item.modality}.", reason="MODALITY_UNSUPPORTED", field="modality"
            )

    def _check_modalities(self, items: Sequence[MultimodalItem]) -> None:
        for field, item in zip(_item_fields(items), items, strict=True):
            _under(field, self.check_modality, item)

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
        for field, item in zip(_item_fields(items), items, strict=True):
            _under(field, self.run_lengths, item)
        check_ranges(
            ids,
            items,
            placeholder_of=lambda item: self.tokens.fill_of(item.modality),
            run_lengths=self.run_lengths,
            placeholder_ids=self.placeholder_ids,
        )
        prompt = Prompt(None, tuple(ids), tuple(items))
        self.check_places(prompt, _item_fields(items))
        return prompt

    def _expand(
        self,
        text: str | None,
        pieces: list[Piece],
        items: Sequence[MultimodalItem],
        layout: VideoLayout,
        fields: Sequence[str],
    ) -> Prompt:
        builder = PromptBuilder(lambda plain: self.tokenizer.encode(plain, allow_special=False))
        placed: list[MultimodalItem] = []
        for piece in self.prepare_pieces(pieces, layout):
            if isinstance(piece, str):
                builder.add_text(piece)
            elif isinstance(piece, tuple):
                builder.add_ids(piece)
            else:
                item = items[len(placed)]
                ranges = _under(fields[len(placed)], self.lay_down, builder, item, layout)
                placed.append(replace(item, ranges=ranges))
        prompt = Prompt(text, builder.finish(), tuple(placed))
        self.check_places(prompt, fields)
        return prompt


def _item_fields(items: Sequence[MultimodalItem]) -> list[str]:
    return [f"items[{i}]" for i in range(len(items))]


def _under(field: str, function: Any, *args: Any) -> Any:
    """Call a function whose errors name fields of the thing at `field`."""
    try:
        return function(*args)
    except ServeError as error:
        raise error.under(field) from error
