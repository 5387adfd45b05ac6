"""GLM-4.1V: a vision tower before a GLM-4 language model with four norms a layer and chunked mRoPE.

A clip's frames stand in the prompt as images do, each temporal patch a run of *image* tokens between its markers; only
begin and end of video around them tell a clip from pictures. The worker goes by ranges and grids, so it need not look.

Next: worker/models/glm4v_vision.py
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from worker.layers.attention import Attention, AttentionStep
from worker.layers.embedding import load_embedding_and_head
from worker.layers.linear import Linear
from worker.layers.mlp import SwiGluMlp
from worker.layers.norm import RMSNorm
from worker.layers.positions import mrope_positions
from worker.layers.rotary import RotaryTable, mrope_axes
from worker.layers.rotary_pairs import RegroupedPairs
from worker.layers.source import WeightSource
from worker.models.base import ItemLayout, ModelInfo
from worker.models.checkpoint import Checkpoint
from worker.models.decoder import Decoder, DecoderLayer, DecoderShape
from worker.models.encoder import ItemEncoder, VisionEncoder, VisionGeometry
from worker.models.glm4v_config import TextConfig, parse_dense_config, parse_vision_config
from worker.models.glm4v_vision import GlmVisionTower
from worker.models.info import (
    ImageStatistics,
    read_generation_defaults,
    read_processor_limits,
    read_token_id,
    read_token_ids,
    text_config_of,
    vision_config_of,
)
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

    kind: Literal["attention", "state"] = "attention"

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
    """The model; see `CausalLM`.

    Args:
        model_dir: checkpoint directory.
        config: its config.json.
        checkpoint: its weights.
        disable_vision_encoder: leave the vision weights unread.

    Raises:
        CheckpointError: naming the file, key or field at fault.
    """

    default_image_token_id = 151_343  # where config.json does not say

    def __init__(
        self,
        model_dir: Path,
        config: Mapping[str, Any],
        checkpoint: Checkpoint,
        *,
        disable_vision_encoder: bool = False,
    ) -> None:
        section = text_config_of(config)
        tied = bool(config.get("tie_word_embeddings") or section.get("tie_word_embeddings"))
        text = self.parse_text(section, tied)
        decoder = self.load_decoder(checkpoint, text)
        if disable_vision_encoder:
            checkpoint.skip("model.visual.")
        encoders = () if disable_vision_encoder else self.load_encoders(model_dir, config, checkpoint)
        info = self.describe(model_dir, config, checkpoint, text)
        super().__init__(
            info, decoder, encoders, checkpoint.dtype, checkpoint.device, vision_disabled=disable_vision_encoder
        )

    @classmethod
    def load_encoders(
        cls, model_dir: Path, config: Mapping[str, Any], checkpoint: Checkpoint
    ) -> tuple[ItemEncoder, ...]:
        """Return the vision encoder alone; nothing in a text-only checkpoint."""
        section = vision_config_of(config)
        if section is None:
            return ()
        vision = parse_vision_config(section)
        limits = {
            modality: read_processor_limits(model_dir, modality, default, _CLIP_STATISTICS)
            for modality, default in _DEFAULT_MAX_PIXELS.items()
        }
        geometry = VisionGeometry(vision.patch_size, vision.temporal_patch_size, vision.merge_size, vision.in_channels)
        image, video = limits["image"], limits["video"]
        tower = GlmVisionTower(checkpoint.under("model.visual"), vision, image.statistics, video.statistics)
        one_frame = replace(image, max_pixels=image.max_pixels // vision.temporal_patch_size)
        return (VisionEncoder(tower, geometry, {"image": one_frame, "video": video}),)

    @classmethod
    def load_decoder(cls, checkpoint: Checkpoint, text: TextConfig) -> Decoder:
        """Return the language model."""
        source = checkpoint.under("model.language_model")
        if text.tied:
            checkpoint.skip("lm_head.")
        layers = [cls.load_layer(source.under(f"layers.{index}"), text, index) for index in range(text.num_layers)]
        norm = RMSNorm.load(source.under("norm"), text.hidden_size, text.norm_eps)
        embed, head = load_embedding_and_head(checkpoint, text.vocab_size, text.hidden_size, text.tied)
        axes = mrope_axes("chunked", text.mrope_sections, text.rotary_dim // 2)
        rotary = RotaryTable(text.rope_theta, text.rotary_dim, axes, checkpoint.device)
        attention = text.attention
        shape = DecoderShape(
            text.hidden_size, text.vocab_size, attention.num_heads, attention.num_kv_heads, attention.head_dim,
            cls.inner_width(text),
        )  # fmt: skip
        return Decoder(embed, layers, norm, head, rotary, shape)

    @classmethod
    def parse_text(cls, section: Mapping[str, Any], tied: bool) -> TextConfig:
        """Return the language model's sizes."""
        return parse_dense_config(section, tied)

    @classmethod
    def load_layer(cls, source: WeightSource, text: TextConfig, index: int) -> DecoderLayer:
        """Return decoder layer `index`, whose names stand below `source`."""
        return SandwichLayer(source, text)

    @classmethod
    def inner_width(cls, text: TextConfig) -> int:
        """Return the numbers of a token that the widest feed-forward layer holds at once."""
        return 3 * text.intermediate_size

    def prompt_positions(self, prompt_len: int, items: Sequence[ItemLayout]) -> tuple[np.ndarray, int]:
        """Return the positions of a whole prompt; see `CausalLM.prompt_positions`."""
        return mrope_positions(prompt_len, items, self.info.spatial_merge_size)

    @classmethod
    def describe(
        cls, model_dir: Path, config: Mapping[str, Any], checkpoint: Checkpoint, text: TextConfig
    ) -> ModelInfo:
        """Return what a checkpoint says of itself; a clip's placeholder is the image token."""
        section = vision_config_of(config)
        vision = None if section is None else parse_vision_config(section)
        placeholder = config.get("image_token_id", cls.default_image_token_id) if vision else None
        return ModelInfo(
            architecture=config["architectures"][0],
            dtype=str(checkpoint.dtype).removeprefix("torch."),
            vocab_size=text.vocab_size,
            max_position_embeddings=text.max_position_embeddings,
            hidden_size=text.hidden_size,
            eos_token_ids=read_token_ids(model_dir, config, "eos"),
            generation=read_generation_defaults(model_dir),
            bos_token_id=read_token_id(model_dir, config, "bos"),
            pad_token_id=read_token_id(model_dir, config, "pad"),
            image_token_id=placeholder,
            video_token_id=placeholder,
            vision_start_token_id=config.get("image_start_token_id", 151_339) if vision else None,
            vision_end_token_id=config.get("image_end_token_id", 151_340) if vision else None,
            spatial_merge_size=vision.merge_size if vision else 1,
            patch_size=vision.patch_size if vision else 1,
            temporal_patch_size=vision.temporal_patch_size if vision else 1,
            in_channels=vision.in_channels if vision else 3,
        )
