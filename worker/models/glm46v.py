"""GLM-4.6V: GLM-4.1V's tower before the language model that its own config names, dense or mixture of experts.

Next: worker/models/glm4v.py
"""

from collections.abc import Mapping
from typing import Any

from worker.models.checkpoint import Checkpoint
from worker.models.config import TextConfig
from worker.models.decoder import Decoder
from worker.models.glm4v import Glm4v
from worker.models.glm4v_config import GlmTextConfig
from worker.models.glm4v_moe import Glm4vMoe

_MIXTURES = ("glm4v_moe", "glm4v_moe_text")


class Glm46V(Glm4v):
    """The model; see `Glm4v`."""

    @classmethod
    def parse_text(cls, config: Mapping[str, Any], tied: bool) -> GlmTextConfig:
        """Return the language model's part of config.json, as its model_type reads it."""
        family = Glm4vMoe if config.get("model_type") in _MIXTURES else Glm4v
        return family.parse_text(config, tied)

    @classmethod
    def load_decoder(cls, checkpoint: Checkpoint, text: TextConfig) -> Decoder:
        """Return the language model."""
        assert isinstance(text, GlmTextConfig)
        return super().load_decoder(checkpoint, text) if text.moe is None else Glm4vMoe.load_decoder(checkpoint, text)
