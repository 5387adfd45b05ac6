"""GLM-4.6V: GLM-4.1V's tower before the language model that its own config names, dense or mixture of experts.

Next: worker/models/glm4v.py
"""

from collections.abc import Mapping
from typing import Any

from worker.models.checkpoint import Checkpoint
from worker.models.decoder import Decoder
from worker.models.glm4v import Glm4v
from worker.models.glm4v_config import TextConfig
from worker.models.glm4v_moe import Glm4vMoe

_MIXTURES = ("glm4v_moe", "glm4v_moe_text")


class Glm46V(Glm4v):
    """The model; see `CausalLM`. Arguments as for `Glm4v`."""

    @classmethod
    def parse_text(cls, section: Mapping[str, Any], tied: bool) -> TextConfig:
        """Return the language model's sizes, as its model_type reads them."""
        family = Glm4vMoe if section.get("model_type") in _MIXTURES else Glm4v
        return family.parse_text(section, tied)

    @classmethod
    def load_decoder(cls, checkpoint: Checkpoint, text: TextConfig) -> Decoder:
        """Return the language model."""
        return super().load_decoder(checkpoint, text) if text.moe is None else Glm4vMoe.load_decoder(checkpoint, text)
