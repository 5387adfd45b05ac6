"""Qwen3-VL, dense: a vision tower with DeepStack before a Qwen3 language model with interleaved mRoPE.

Next: worker/models/qwen3_vl_vision.py
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from worker.layers.attention import Attention
from worker.layers.embedding import load_embedding_and_head
from worker.layers.mlp import SwiGluMlp
from worker.layers.norm import RMSNorm
from worker.layers.positions import mrope_positions
from worker.layers.rotary import RotaryTable, mrope_axes
from worker.layers.source import WeightSource
from worker.models.base import ItemLayout, ModelInfo
from worker.models.checkpoint import Checkpoint
from worker.models.decoder import Decoder, DecoderShape, FeedForward, PreNormLayer
from worker.models.encoder import ItemEncoder, VisionEncoder, VisionGeometry
from worker.models.info import (
    is_tied,
    read_generation_defaults,
    read_processor_limits,
    read_token_id,
    read_token_ids,
    text_config_of,
    vision_config_of,
)
from worker.models.multimodal_lm import MultimodalLM
from worker.models.qwen3_vl_config import TextConfig, VisionConfig, parse_text_config, parse_vision_config
from worker.models.qwen3_vl_vision import VisionTower

# Budgets of transformers' processor classes, for a checkpoint that does not write its own.
DEFAULT_MAX_PIXELS = {"image": 1_003_520, "video": 786_432}


class Qwen3VL(MultimodalLM):
    """The model; see `CausalLM`.

    Args:
        model_dir: checkpoint directory.
        config: its config.json.
        checkpoint: its weights.
        disable_vision_encoder: leave the vision weights unread.

    Raises:
        CheckpointError: naming the file, key or field at fault.
    """

    def __init__(
        self,
        model_dir: Path,
        config: Mapping[str, Any],
        checkpoint: Checkpoint,
        *,
        disable_vision_encoder: bool = False,
    ) -> None:
        text = self.parse_text(text_config_of(config), is_tied(config))
        decoder = self.load_decoder(checkpoint, text)
        if disable_vision_encoder:
            checkpoint.skip("model.visual.")
        encoders = () if disable_vision_encoder else self.load_encoders(model_dir, config, checkpoint)
        info = describe(model_dir, config, checkpoint, text)
        super().__init__(
            info, decoder, encoders, checkpoint.dtype, checkpoint.device, vision_disabled=disable_vision_encoder
        )

    @classmethod
    def load_encoders(
        cls, model_dir: Path, config: Mapping[str, Any], checkpoint: Checkpoint
    ) -> tuple[ItemEncoder, ...]:
        """Return the vision encoder alone; nothing in a text-only checkpoint."""
        section = vision_config_of(config)
        return () if section is None else (load_vision_encoder(model_dir, parse_vision_config(section), checkpoint),)

    @classmethod
    def parse_text(cls, config: Mapping[str, Any], tied: bool) -> TextConfig:
        """Return the language model's part of config.json."""
        return parse_text_config(config, tied)

    @classmethod
    def load_decoder(cls, checkpoint: Checkpoint, text: TextConfig) -> Decoder:
        """Return the language model."""
        source = checkpoint.under("model.language_model")
        if text.tied:
            checkpoint.skip("lm_head.")
        layers = [cls.load_layer(source.under(f"layers.{index}"), text, index) for index in range(text.num_layers)]
        norm = RMSNorm.load(source.under("norm"), text.hidden_size, text.norm_eps)
        embed, head = load_embedding_and_head(checkpoint, text.vocab_size, text.hidden_size, text.tied)
        attention = text.attention
        axes = mrope_axes("interleaved", text.mrope_sections, attention.head_dim // 2)
        rotary = RotaryTable(text.rope_theta, attention.head_dim, axes, checkpoint.device)
        shape = DecoderShape(
            text.hidden_size, text.vocab_size, attention.num_heads, attention.num_kv_heads, attention.head_dim,
            cls.inner_width(text),
        )  # fmt: skip
        return Decoder(embed, layers, norm, head, rotary, shape)

    @classmethod
    def load_layer(cls, source: WeightSource, text: TextConfig, index: int) -> PreNormLayer:
        """Return one decoder layer, whose names stand below `source`."""
        return PreNormLayer(
            RMSNorm.load(source.under("input_layernorm"), text.hidden_size, text.norm_eps),
            Attention.load(source.under("self_attn"), text.attention),
            RMSNorm.load(source.under("post_attention_layernorm"), text.hidden_size, text.norm_eps),
            cls.load_mlp(source.under("mlp"), text, index),
        )

    @classmethod
    def load_mlp(cls, source: WeightSource, text: TextConfig, index: int) -> FeedForward:
        """Return the feed-forward layer of decoder layer `index`."""
        return SwiGluMlp.load(source, text.hidden_size, text.intermediate_size)

    @classmethod
    def inner_width(cls, text: TextConfig) -> int:
        """Return the numbers of a token that the widest feed-forward layer holds at once."""
        return 3 * text.intermediate_size

    def prompt_positions(self, prompt_len: int, items: Sequence[ItemLayout]) -> tuple[np.ndarray, int]:
        """Return the positions of a whole prompt; see `CausalLM.prompt_positions`."""
        return mrope_positions(prompt_len, items, self.info.spatial_merge_size)


def load_vision_encoder(model_dir: Path, vision: VisionConfig, checkpoint: Checkpoint) -> VisionEncoder:
    """Return the vision encoder of a Qwen-like checkpoint, from the names below `model.visual`."""
    limits = {name: read_processor_limits(model_dir, name, default) for name, default in DEFAULT_MAX_PIXELS.items()}
    image, video = limits["image"].statistics, limits["video"].statistics
    geometry = VisionGeometry(vision.patch_size, vision.temporal_patch_size, vision.merge_size, vision.in_channels)
    return VisionEncoder(VisionTower(checkpoint.under("model.visual"), vision, image, video), geometry, limits)


def describe(
    model_dir: Path,
    config: Mapping[str, Any],
    checkpoint: Checkpoint,
    text: TextConfig,
) -> ModelInfo:
    """Return what a Qwen-like checkpoint says of itself; marker ids default to Qwen3-VL's."""
    section = vision_config_of(config)
    vision = None if section is None else parse_vision_config(section)
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
        image_token_id=config.get("image_token_id", 151655) if vision else None,
        video_token_id=config.get("video_token_id", 151656) if vision else None,
        vision_start_token_id=config.get("vision_start_token_id", 151652) if vision else None,
        vision_end_token_id=config.get("vision_end_token_id", 151653) if vision else None,
        spatial_merge_size=vision.merge_size if vision else 1,
        patch_size=vision.patch_size if vision else 1,
        temporal_patch_size=vision.temporal_patch_size if vision else 1,
        in_channels=vision.in_channels if vision else 3,
        num_deepstack_layers=len(vision.deepstack_layers) if vision else 0,
    )
