"""A decoder and its encoders as one model, loaded from a checkpoint: all that the families share.

A family adds its config, its layers, its towers and its positions, by overriding the hooks below.

Next: worker/models/decoder.py
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tessera.errors import FailedPrecondition, Unimplemented
from tessera.modality import VISUAL
from worker.layers.attention import Attention
from worker.layers.embedding import load_embedding_and_head
from worker.layers.kv_cache import KVCache
from worker.layers.mlp import SwiGluMlp
from worker.layers.norm import RMSNorm
from worker.layers.positions import mrope_segments
from worker.layers.source import WeightSource
from worker.layers.state_cache import StateShape
from worker.models.base import CausalLM, EncoderInput, EncoderOutput, ForwardBatch, ItemLayout, ItemSize
from worker.models.checkpoint import Checkpoint, CheckpointError
from worker.models.config import TextConfig, VisionConfig
from worker.models.decoder import Decoder, DecoderLayer, DecoderShape, FeedForward, Mixer, PreNormLayer, Rotary
from worker.models.encoder import ItemEncoder, VisionEncoder
from worker.models.info import MarkerIds, describe, is_tied, text_config_of, vision_config_of

_VISION_WEIGHTS = "model.visual"


class MultimodalLM(CausalLM):
    """See `CausalLM`.

    Args:
        model_dir: checkpoint directory.
        config: its config.json.
        checkpoint: its weights.
        disable_vision_encoder: leave the vision weights unread; other encoders go on.

    Raises:
        CheckpointError: naming the file, key or field at fault; an encoder's embeddings do not fit the language model.
    """

    def __init__(
        self,
        model_dir: Path,
        config: Mapping[str, Any],
        checkpoint: Checkpoint,
        *,
        disable_vision_encoder: bool = False,
    ) -> None:
        text = self.parse_text(text_config_of(config), self.is_tied(config))
        section = vision_config_of(config)
        vision = None if section is None else self.parse_vision(section)
        self.decoder = self.load_decoder(checkpoint, text)
        self.encoders = self.load_encoders(model_dir, config, checkpoint, vision=not disable_vision_encoder)
        modalities = tuple(modality for encoder in self.encoders for modality in encoder.modalities)
        info = describe(model_dir, config, checkpoint.dtype, text, vision, self.marker_ids(model_dir, config))
        self.info = replace(info, modalities=modalities, vision_disabled=disable_vision_encoder)
        self.dtype, self.device = checkpoint.dtype, checkpoint.device
        self.num_layers = self.decoder.num_attention_layers
        self.num_kv_heads = self.decoder.shape.num_kv_heads
        self.head_dim = self.decoder.shape.head_dim
        self.state_shape = self.decoder.shape.state
        self._encoder_of = {modality: encoder for encoder in self.encoders for modality in encoder.modalities}
        for encoder in self.encoders:
            if encoder.hidden_size != info.hidden_size:
                raise CheckpointError(
                    f"config.json: the encoder of {', '.join(encoder.modalities)} gives embeddings of width "
                    f"{encoder.hidden_size}; the language model takes {info.hidden_size}"
                )

    # --- loading: what a family says of itself

    @classmethod
    @abstractmethod
    def parse_text(cls, config: Mapping[str, Any], tied: bool) -> TextConfig:
        """Return the language model's part of config.json.

        Args:
            config: its `text_config`, or all of a text-only checkpoint's.
            tied: whether head and embedding are one matrix.
        """

    @classmethod
    @abstractmethod
    def parse_vision(cls, config: Mapping[str, Any]) -> VisionConfig:
        """Return the vision tower's part of config.json, its `vision_config`."""

    @classmethod
    @abstractmethod
    def load_vision_encoder(cls, model_dir: Path, vision: VisionConfig, source: WeightSource) -> VisionEncoder:
        """Return the vision encoder alone.

        Args:
            model_dir: for the processor files.
            vision: what `parse_vision` read.
            source: the names below `model.visual`.
        """

    @classmethod
    @abstractmethod
    def load_rotary(cls, source: WeightSource, text: TextConfig) -> Rotary:
        """Return what gives a step its rotary tables; `source` are the language model's names."""

    @classmethod
    @abstractmethod
    def marker_ids(cls, model_dir: Path, config: Mapping[str, Any]) -> MarkerIds:
        """Return the ids that stand for items; those of vision do not count in a text-only checkpoint."""

    @classmethod
    def is_tied(cls, config: Mapping[str, Any]) -> bool:
        """Return whether head and embedding are one matrix."""
        return is_tied(config)

    @classmethod
    def load_encoders(
        cls, model_dir: Path, config: Mapping[str, Any], checkpoint: Checkpoint, *, vision: bool = True
    ) -> tuple[ItemEncoder, ...]:
        """Return the encoders alone; nothing of a text-only checkpoint.

        Args:
            model_dir: checkpoint directory.
            config: its config.json.
            checkpoint: its weights.
            vision: False leaves the vision weights unread.
        """
        section = vision_config_of(config)
        if section is None or not vision:  # weights may be left over where the config alone was made text-only
            checkpoint.skip(f"{_VISION_WEIGHTS}.")
            return ()
        return (cls.load_vision_encoder(model_dir, cls.parse_vision(section), checkpoint.under(_VISION_WEIGHTS)),)

    @classmethod
    def load_decoder(cls, checkpoint: Checkpoint, text: TextConfig) -> Decoder:
        """Return the language model."""
        source = checkpoint.under("model.language_model")
        if text.tied:
            checkpoint.skip("lm_head.")
        layers = [cls.load_layer(source.under(f"layers.{index}"), text, index) for index in range(text.num_layers)]
        norm = cls.load_norm(source.under("norm"), text)
        embed, head = load_embedding_and_head(checkpoint, text.vocab_size, text.hidden_size, text.tied)
        shape = DecoderShape(
            hidden_size=text.hidden_size,
            vocab_size=text.vocab_size,
            num_kv_heads=text.attention.num_kv_heads,
            head_dim=text.attention.head_dim,
            layer_width=cls.layer_width(text),
            state=cls.state_of(text, checkpoint.dtype),
        )
        return Decoder(embed, layers, norm, head, cls.load_rotary(source, text), shape)

    @classmethod
    def load_layer(cls, source: WeightSource, text: TextConfig, index: int) -> DecoderLayer:
        """Return decoder layer `index`, whose names stand below `source`."""
        return PreNormLayer(
            cls.load_norm(source.under("input_layernorm"), text),
            cls.load_mixer(source, text, index),
            cls.load_norm(source.under("post_attention_layernorm"), text),
            cls.load_mlp(source.under("mlp"), text, index),
        )

    @classmethod
    def load_norm(cls, source: WeightSource, text: TextConfig) -> RMSNorm:
        """Return a norm of the language model."""
        return RMSNorm.load(source, text.hidden_size, text.norm_eps)

    @classmethod
    def load_mixer(cls, source: WeightSource, text: TextConfig, index: int) -> Mixer:
        """Return what mixes tokens in decoder layer `index`; `source` are the layer's names."""
        return Attention.load(source.under("self_attn"), text.attention)

    @classmethod
    def load_mlp(cls, source: WeightSource, text: TextConfig, index: int) -> FeedForward:
        """Return the feed-forward layer of decoder layer `index`."""
        return SwiGluMlp.load(source, text.hidden_size, text.intermediate_size)

    @classmethod
    def layer_width(cls, text: TextConfig) -> int:
        """Return the numbers of a token that the widest layer holds at once, beside the stream."""
        return max(text.attention.width, 3 * text.intermediate_size)

    @classmethod
    def state_of(cls, text: TextConfig, dtype: torch.dtype) -> StateShape | None:
        """Return the recurrent state of a sequence; None where all layers keep keys and values."""
        return None

    # --- running

    @torch.inference_mode()
    def encode(self, inputs: Sequence[EncoderInput]) -> list[EncoderOutput]:
        """Turn items into embeddings, those of one encoder in one batch; see `CausalLM.encode`."""
        outputs: list[EncoderOutput | None] = [None] * len(inputs)
        chosen = [self._encoder(item.modality) for item in inputs]
        for encoder in self.encoders:
            places = [index for index, other in enumerate(chosen) if other is encoder]
            for index, output in zip(places, encoder([inputs[i] for i in places]) if places else [], strict=True):
                outputs[index] = self._complete(output)
        return [output for output in outputs if output is not None]

    def _complete(self, output: EncoderOutput) -> EncoderOutput:
        """Return an output with features for every DeepStack layer of the model: none of its own means zeros.

        The rows of a step's items form one tensor, so all of them have as many layers.
        """
        layers = self.info.num_deepstack_layers
        if not layers or output.deepstack is not None:
            return output
        return EncoderOutput(output.embeddings, output.embeddings.new_zeros(layers, *output.embeddings.shape))

    def _encoder(self, modality: str) -> ItemEncoder:
        encoder = self._encoder_of.get(modality)
        if encoder is not None:
            return encoder
        if self.info.vision_disabled and modality in VISUAL:
            raise FailedPrecondition("This worker serves without its vision encoder.", reason="VISION_DISABLED")
        raise Unimplemented(f"The model does not take {modality}.", reason="MODALITY_UNSUPPORTED", field="modality")

    @torch.inference_mode()
    def forward(self, batch: ForwardBatch, kv_cache: KVCache) -> torch.Tensor:
        """Run one step; see `CausalLM.forward`."""
        return self.decoder.forward(batch, kv_cache)

    def record(self) -> None:
        """Record forwards of the encoders; see `CausalLM.record`."""
        for encoder in self.encoders:
            encoder.record()

    def prompt_positions(self, prompt_len: int, items: Sequence[ItemLayout]) -> tuple[np.ndarray, int]:
        """Return where a prompt's tokens stand; see `CausalLM.prompt_positions`."""
        return mrope_segments(prompt_len, items, self.info.spatial_merge_size)

    def item_tokens(self, size: ItemSize) -> int:
        """Return how many placeholder tokens an item of this size owns."""
        return self._encoder(size.modality).item_tokens(size)

    # --- sizes, for the report and the profile at start

    @property
    def head_dims(self) -> tuple[int, ...]:
        """Head sizes of language model and encoders."""
        return (self.head_dim, *(head_dim for encoder in self.encoders for head_dim in encoder.head_dims))

    def worst_items(self, max_tokens: int) -> list[ItemSize]:
        """Return the worst legal item of each served modality."""
        return [size for encoder in self.encoders for size in encoder.worst_items(max_tokens)]

    def dummy_input(self, size: ItemSize) -> EncoderInput:
        """Return an item of this size, black or silent."""
        return self._encoder(size.modality).dummy_input(size)

    def encoder_workspace_bytes(self, size: ItemSize) -> int:
        """Return an upper estimate of the transient memory of `encode` for one item."""
        return self._encoder(size.modality).workspace_bytes(size)

    def forward_workspace_bytes(self, num_tokens: int, num_logits: int) -> int:
        """Return an upper estimate of the transient memory of `forward`."""
        return self.decoder.workspace_bytes(num_tokens, num_logits)

    @property
    def encoder_token_bytes(self) -> int:
        """Bytes of one token of an `EncoderOutput`, side features counted."""
        return (1 + self.info.num_deepstack_layers) * self.hidden_size * self.dtype.itemsize

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights as they are kept."""
        return self.decoder.size_bytes + sum(encoder.weight_bytes for encoder in self.encoders)
