"""Qwen3-VL, dense: a vision tower with DeepStack before a Qwen3 language model with interleaved mRoPE.

Next: worker/models/qwen3_vl_vision.py
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from worker.layers.rotary import RotaryTable, mrope_axes
from worker.layers.source import WeightSource
from worker.models.config import TextConfig, VisionConfig
from worker.models.decoder import Rotary
from worker.models.encoder import VisionEncoder, VisionGeometry
from worker.models.info import MarkerIds, read_processor_limits
from worker.models.multimodal_lm import MultimodalLM
from worker.models.qwen3_vl_config import QwenVisionConfig, parse_text_config, parse_vision_config
from worker.models.qwen3_vl_vision import QwenVisionTower

# Budgets of transformers' processor classes, for a checkpoint that does not write its own.
DEFAULT_MAX_PIXELS = {"image": 1_003_520, "video": 786_432}


class Qwen3VL(MultimodalLM):
    """The model, and what its descendants keep of it; see `MultimodalLM`."""

    default_markers: ClassVar = MarkerIds(image=151_655, video=151_656, vision_start=151_652, vision_end=151_653)
    """Of transformers' config class, for a checkpoint that does not write its own."""

    @classmethod
    def parse_text(cls, config: Mapping[str, Any], tied: bool) -> TextConfig:
        """Return the language model's part of config.json."""
        return parse_text_config(config, tied)

    @classmethod
    def parse_vision(cls, config: Mapping[str, Any]) -> QwenVisionConfig:
        """Return the vision tower's part of config.json."""
        return parse_vision_config(config)

    @classmethod
    def load_vision_encoder(cls, model_dir: Path, vision: VisionConfig, source: WeightSource) -> VisionEncoder:
        """Return the vision encoder alone; see `MultimodalLM`."""
        assert isinstance(vision, QwenVisionConfig)
        limits = {name: read_processor_limits(model_dir, name, default) for name, default in DEFAULT_MAX_PIXELS.items()}
        tower = QwenVisionTower(source, vision, limits["image"].statistics, limits["video"].statistics)
        return VisionEncoder(tower, VisionGeometry.of(vision), limits)

    @classmethod
    def load_rotary(cls, source: WeightSource, text: TextConfig) -> Rotary:
        """Return the tables of interleaved mRoPE."""
        axes = mrope_axes("interleaved", text.mrope_sections, text.rotary_dim // 2)
        return RotaryTable(text.rope_theta, text.rotary_dim, axes, source.device)

    @classmethod
    def marker_ids(cls, model_dir: Path, config: Mapping[str, Any]) -> MarkerIds:
        """Return the ids of config.json."""
        ids = {name: config.get(f"{name}_token_id", default) for name, default in vars(cls.default_markers).items()}
        return MarkerIds(**ids)
