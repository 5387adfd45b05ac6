"""What a processor gives: a prompt that a worker can run.

Next: multimodal.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from tessera.items import MultimodalItem
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
