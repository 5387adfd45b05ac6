"""What a processor is: the family's way from messages, text or ids, and items, to a prompt.

A processor holds no request state and is safe to use from many threads; items are processed elsewhere, without looking
at the prompt, and come here with their grids.

Next: multimodal.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

from gateway.media.rules import MediaRules
from gateway.processor.chat_template import RenderedChat
from gateway.processor.messages import ChatMessage
from gateway.processor.tokenizer import Tokenizer
from tessera.items import ItemGeometry, MultimodalItem
from tessera.modality import Modality


class VideoLayout(StrEnum):
    """How the markers of a clip are laid out: as transformers 5.x, or as 4.57."""

    V5 = "v5"
    V4 = "v4"


@dataclass(frozen=True)
class Prompt:
    """A prompt that a worker can run.

    Attributes:
        text: as rendered or as given, before expansion; None where it came as ids.
        token_ids: after expansion.
        items: with their ranges, ordered by first offset.
    """

    text: str | None
    token_ids: tuple[int, ...]
    items: tuple[MultimodalItem, ...]

    def num_tokens(self, modality: Modality) -> int:
        """Prompt tokens that stand for items of one modality."""
        return sum(item.num_tokens for item in self.items if item.modality == modality)


class Processor(Protocol):
    """One family's processor for one checkpoint.

    Attributes:
        architecture: as config.json names it.
        tokenizer: the checkpoint's.
        rules: sizes and sampling of its media.
        geometry: sizes of its items.
        modalities: what it takes besides text.
        vocab_size: ids that the model embeds; at least the tokenizer's.
    """

    architecture: str
    tokenizer: Tokenizer
    rules: MediaRules
    geometry: ItemGeometry
    modalities: frozenset[Modality]
    vocab_size: int

    def render_chat(
        self,
        messages: Sequence[ChatMessage],
        *,
        arguments: Mapping[str, Any] | None = None,
        add_generation_prompt: bool = True,
    ) -> RenderedChat:
        """Check and render a conversation; needs no item, so it can run while media are processed."""
        ...

    def expand_chat(
        self,
        messages: Sequence[ChatMessage],
        rendered: RenderedChat,
        items: Sequence[MultimodalItem],
        layout: VideoLayout = VideoLayout.V5,
    ) -> Prompt:
        """Put the items into a rendered conversation: the n-th media part takes the n-th item."""
        ...

    def prepare_chat(
        self,
        messages: Sequence[ChatMessage],
        items: Sequence[MultimodalItem],
        *,
        arguments: Mapping[str, Any] | None = None,
        add_generation_prompt: bool = True,
        layout: VideoLayout = VideoLayout.V5,
    ) -> Prompt:
        """Render, then expand."""
        ...

    def prepare_text(self, text: str, items: Sequence[MultimodalItem], layout: VideoLayout = VideoLayout.V5) -> Prompt:
        """Expand a raw prompt, whose spelled-out special tokens are tokens."""
        ...

    def prepare_token_ids(
        self, ids: Sequence[int], items: Sequence[MultimodalItem], layout: VideoLayout = VideoLayout.V5
    ) -> Prompt:
        """Expand a token prompt, or check one that is expanded already."""
        ...

    def check_modality(self, item: MultimodalItem) -> None:
        """Raise Unimplemented where the model does not take what an item is; field path inside the item."""
        ...

    def placeholders_of(self, modalities: frozenset[Modality]) -> frozenset[int]:
        """Return the ids that stand for items of some modalities, before or after expansion."""
        ...

    def expected_tokens(self, item: MultimodalItem) -> int:
        """Embeddings that an item's grid gives."""
        ...
