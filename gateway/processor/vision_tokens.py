"""The ids of vision markers: Qwen's, and what other families' have in common with them.

Next: qwen3_vl.py, glm4v.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from gateway.processor.media_tokens import special_id
from gateway.processor.tokenizer import Tokenizer
from tessera.modality import Modality


@dataclass(frozen=True)
class VisionTokens:
    """Ids of the markers.

    Attributes:
        start: before each run of pads.
        end: after it.
        image: pad of an image.
        video: pad of a clip.
    """

    start: int
    end: int
    image: int
    video: int

    spellings: ClassVar[Mapping[str, str]] = {
        "vision_start": "<|vision_start|>",
        "vision_end": "<|vision_end|>",
        "image": "<|image_pad|>",
        "video": "<|video_pad|>",
    }
    """How the markers are spelled unless the tokenizer says otherwise, by config.json's names, in the fields' order."""

    @classmethod
    def of(cls, tokenizer: Tokenizer, config: Mapping[str, Any]) -> Self:
        """Look the markers up, and check them against config.json.

        Raises:
            FailedPrecondition: one is missing, not special, or another id in config.json.
        """
        return cls(*(special_id(tokenizer, config, name, spelling) for name, spelling in cls.spellings.items()))

    def fill_of(self, modality: Modality) -> int:
        """Return the pad of a modality."""
        return {Modality.IMAGE: self.image, Modality.VIDEO: self.video}[modality]

    @property
    def markers(self) -> Mapping[int, Modality]:
        """Modality by pad."""
        return {self.image: Modality.IMAGE, self.video: Modality.VIDEO}
