"""The ids of Qwen-like vision markers.

Next: qwen3_vl.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gateway.processor.tokenizer import Tokenizer
from tessera.errors import FailedPrecondition
from tessera.modality import Modality

_SPELLINGS = {
    "vision_start": "<|vision_start|>",
    "vision_end": "<|vision_end|>",
    "image": "<|image_pad|>",
    "video": "<|video_pad|>",
}


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

    @classmethod
    def of(cls, tokenizer: Tokenizer, config: Mapping[str, Any]) -> VisionTokens:
        """Look the markers up, and check them against config.json.

        Raises:
            FailedPrecondition: one is missing, not special, or another id in config.json.
        """
        return cls(*(_marker_id(tokenizer, config, name) for name in _SPELLINGS))

    def pad_of(self, modality: Modality) -> int:
        """Return the pad of a modality."""
        return {Modality.IMAGE: self.image, Modality.VIDEO: self.video}[modality]

    @property
    def modality_of(self) -> Mapping[int, Modality]:
        """Modality by pad."""
        return {self.image: Modality.IMAGE, self.video: Modality.VIDEO}


def _marker_id(tokenizer: Tokenizer, config: Mapping[str, Any], name: str) -> int:
    spelling = tokenizer.named_tokens.get(f"{name}_token", _SPELLINGS[name])
    token_id = tokenizer.special_tokens.get(spelling)
    if token_id is None or config.get(f"{name}_token_id", token_id) != token_id:
        raise FailedPrecondition(
            f"The tokenizer's special token {spelling} is not config.json's {name}_token_id.",
            reason="CHECKPOINT_INCONSISTENT",
        )
    return token_id
