"""GLM-4.1V: a vision tower before a GLM-4 language model with four norms a layer and chunked mRoPE.

A clip's frames stand in the prompt as images do, each temporal patch a run of *image* tokens between its markers; only
begin and end of video around them tell a clip from pictures. The worker goes by ranges and grids, so it need not look.

Next: worker/models/glm4v_vision.py
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch

from worker.layers.attention import Attention, AttentionStep, LayerKind
from worker.layers.linear import Linear
from worker.layers.mlp import SwiGluMlp
from worker.layers.norm import RMSNorm
from worker.layers.rotary import RotaryTable, mrope_axes
from worker.layers.rotary_pairs import RegroupedPairs
from worker.layers.source import WeightSource
from worker.models.config import TextConfig, VisionConfig
from worker.models.decoder import DecoderLayer, Rotary
from worker.models.encoder import VisionEncoder, VisionGeometry
from worker.models.glm4v_config import GlmTextConfig, GlmVisionConfig, parse_dense_config, parse_vision_config
from worker.models.glm4v_vision import GlmVisionTower
from worker.models.info import ImageStatistics, MarkerIds, read_processor_limits, text_config_of
from worker.models.multimodal_lm import MultimodalLM

# Budgets of transformers' processor classes, for a checkpoint that does not write its own; an image counts as a clip of
# one temporal patch.
_DEFAULT_MAX_PIXELS = {"image": 11_760_000, "video": 47_040_000}
_CLIP_STATISTICS = ImageStatistics(mean=(0.48145466, 0.4578275, 0.40821073), std=(0.26862954, 0.26130258, 0.27577711))


class SandwichLayer:
    """Attention and feed-forward, each with a norm before it and one behind it; what the latter returns is added.

    Args:
        source: of the layer.
        text: sizes.
    """

    kind: LayerKind = "attention"

    def __init__(self, source: WeightSource, text: TextConfig) -> None:
        def norm(name: str) -> RMSNorm:
            return RMSNorm.load(source.under(name), text.hidden_size, text.norm_eps)

        attention, mlp, inner = text.attention, source.under("mlp"), text.intermediate_size
        pairs = RegroupedPairs(source.under("self_attn"), attention.head_dim, text.rotary_dim)
        self.input_norm = norm("input_layernorm")
        self.attention = Attention.load(pairs, attention)
        self.attention_norm = norm("post_self_attn_layernorm")
        self.mlp_input_norm = norm("post_attention_layernorm")
        self.mlp = SwiGluMlp(
            Linear.load(mlp, [("gate_up_proj", 2 * inner)], text.hidden_size, activation="swiglu"),
            Linear.load(mlp, [("down_proj", text.hidden_size)], inner),
        )
        self.mlp_norm = norm("post_mlp_layernorm")

    def __call__(
        self,
        x: torch.Tensor,
        residual: torch.Tensor,
        step: AttentionStep,
        cache: tuple[torch.Tensor, torch.Tensor],
        keep: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Run the layer; see `DecoderLayer`."""
        attended = self.attention(self.input_norm.add(x, residual), step, cache, keep)
        if keep is not None:
            residual = residual[keep]
        normed = self.mlp_input_norm.add(self.attention_norm(attended), residual)
        return self.mlp_norm(self.mlp(normed)), residual

    @property
    def size_bytes(self) -> int:
        """Bytes of the weights."""
        return self.attention.size_bytes + self.mlp.size_bytes


class Glm4v(MultimodalLM):
    """The model; see `MultimodalLM`."""

    default_image_token_id: ClassVar[int] = 151_343  # where config.json does not say

    @classmethod
    def parse_text(cls, config: Mapping[str, Any], tied: bool) -> GlmTextConfig:
        """Return the language model's part of config.json."""
        return parse_dense_config(config, tied)

    @classmethod
    def parse_vision(cls, config: Mapping[str, Any]) -> GlmVisionConfig:
        """Return the vision tower's part of config.json."""
        return parse_vision_config(config)

    @classmethod
    def is_tied(cls, config: Mapping[str, Any]) -> bool:
        """Return whether head and embedding are one matrix: either of the two switches says so."""
        return any(section.get("tie_word_embeddings") for section in (config, text_config_of(config)))

    @classmethod
    def load_vision_encoder(cls, model_dir: Path, vision: VisionConfig, source: WeightSource) -> VisionEncoder:
        """Return the vision encoder alone; see `MultimodalLM`."""
        assert isinstance(vision, GlmVisionConfig)
        image, video = (
            read_processor_limits(model_dir, modality, default, _CLIP_STATISTICS)
            for modality, default in _DEFAULT_MAX_PIXELS.items()
        )
        tower = GlmVisionTower(source, vision, image.statistics, video.statistics)
        one_frame = replace(image, max_pixels=image.max_pixels // vision.temporal_patch_size)
        return VisionEncoder(tower, VisionGeometry.of(vision), {"image": one_frame, "video": video})

    @classmethod
    def load_rotary(cls, source: WeightSource, text: TextConfig) -> Rotary:
        """Return the tables of chunked mRoPE."""
        axes = mrope_axes("chunked", text.mrope_sections, text.rotary_dim // 2)
        return RotaryTable(text.rope_theta, text.rotary_dim, axes, source.device)

    @classmethod
    def load_layer(cls, source: WeightSource, text: TextConfig, index: int) -> DecoderLayer:
        """Return decoder layer `index`, whose names stand below `source`."""
        return SandwichLayer(source, text)

    @classmethod
    def marker_ids(cls, model_dir: Path, config: Mapping[str, Any]) -> MarkerIds:
        """Return the ids of config.json; a clip's frames are filled with the image token."""
        image = config.get("image_token_id", cls.default_image_token_id)
        start, end = config.get("image_start_token_id", 151_339), config.get("image_end_token_id", 151_340)
        return MarkerIds(image=image, video=image, vision_start=start, vision_end=end)
