"""Qwen3-VL, dense: a vision tower with DeepStack before a Qwen3 language model with interleaved mRoPE.

Reading order: `Qwen3VL.forward` is one engine step; `DecoderLayer` is what it repeats.

Next: worker/models/qwen3_vl_vision.py
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tessera.errors import FailedPrecondition, InvalidArgument
from worker.layers.attention import Attention, AttentionStep
from worker.layers.embedding import load_embedding_and_head
from worker.layers.kv_cache import KVCache
from worker.layers.mlp import SwiGluMlp
from worker.layers.norm import RMSNorm
from worker.layers.positions import mrope_positions
from worker.layers.rotary import RotaryTable, mrope_axes
from worker.layers.source import WeightSource
from worker.models.base import CausalLM, EncoderInput, EncoderOutput, ForwardBatch, Grid, ItemLayout, ModelInfo
from worker.models.checkpoint import Checkpoint, CheckpointError
from worker.models.info import read_eos_token_ids, read_generation_defaults, read_processor_limits
from worker.models.qwen3_vl_config import TextConfig, parse_text_config, parse_vision_config
from worker.models.qwen3_vl_vision import VisionTower

# Budgets of transformers' processor classes, for a checkpoint that does not write its own.
_DEFAULT_MAX_PIXELS = {"image": 1_003_520, "video": 786_432}
_MAX_ASPECT_RATIO = 200


class DecoderLayer:
    """Pre-norm attention and feed-forward; the residual add of each is fused into the norm that follows."""

    def __init__(self, source: WeightSource, config: TextConfig) -> None:
        self.input_norm = RMSNorm.load(source.under("input_layernorm"), config.hidden_size, config.norm_eps)
        self.attention = Attention.load(source.under("self_attn"), config.attention)
        self.post_norm = RMSNorm.load(source.under("post_attention_layernorm"), config.hidden_size, config.norm_eps)
        self.mlp = SwiGluMlp.load(source.under("mlp"), config.hidden_size, config.intermediate_size)

    def __call__(
        self,
        x: torch.Tensor,
        residual: torch.Tensor,
        step: AttentionStep,
        cache: tuple[torch.Tensor, torch.Tensor],
        keep: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (what is to be added to the residual, the residual), cut to the rows to keep.

        Args:
            x: (num_tokens, hidden), the previous layer's return, not yet added.
            residual: (num_tokens, hidden), changed in place.
            step: shared by the layers.
            cache: this layer's key and value blocks.
            keep: rows that anyone will look at, or None for all.
        """
        attended = self.attention(self.input_norm.add(x, residual), step, cache, keep)
        if keep is not None:
            residual = residual[keep]
        return self.mlp(self.post_norm.add(attended, residual)), residual

    @property
    def size_bytes(self) -> int:
        """Bytes of the weights."""
        return self.attention.size_bytes + self.mlp.size_bytes


class Qwen3VL(CausalLM):
    """The model; see `CausalLM`."""

    def __init__(
        self,
        model_dir: Path,
        config: Mapping[str, Any],
        checkpoint: Checkpoint,
        *,
        disable_vision_encoder: bool = False,
    ) -> None:
        tied = bool(config.get("tie_word_embeddings", config["text_config"].get("tie_word_embeddings", False)))
        self.text_config = parse_text_config(config["text_config"], tied)
        self.vision_config = parse_vision_config(config["vision_config"])
        if self.vision_config.out_hidden_size != self.text_config.hidden_size:
            raise CheckpointError("config.json: vision_config.out_hidden_size differs from text_config.hidden_size")
        self.device, self.dtype = checkpoint.device, checkpoint.dtype
        self.num_layers = self.text_config.num_layers
        self.num_kv_heads = self.text_config.attention.num_kv_heads
        self.head_dim = self.text_config.attention.head_dim
        self._limits = {
            modality: read_processor_limits(model_dir, modality, default)
            for modality, default in _DEFAULT_MAX_PIXELS.items()
        }
        self.info = self._describe(model_dir, config, modalities=() if disable_vision_encoder else ("image", "video"))
        self._load_text(checkpoint)
        self.visual = self._load_vision(checkpoint, disable_vision_encoder)

    def _describe(self, model_dir: Path, config: Mapping[str, Any], modalities: tuple[str, ...]) -> ModelInfo:
        text, vision = self.text_config, self.vision_config
        return ModelInfo(
            architecture=config["architectures"][0],
            dtype=str(self.dtype).removeprefix("torch."),
            vocab_size=text.vocab_size,
            max_position_embeddings=text.max_position_embeddings,
            hidden_size=text.hidden_size,
            eos_token_ids=read_eos_token_ids(model_dir, config),
            generation=read_generation_defaults(model_dir),
            image_token_id=config.get("image_token_id", 151655),
            video_token_id=config.get("video_token_id", 151656),
            vision_start_token_id=config.get("vision_start_token_id", 151652),
            vision_end_token_id=config.get("vision_end_token_id", 151653),
            spatial_merge_size=vision.merge_size,
            patch_size=vision.patch_size,
            temporal_patch_size=vision.temporal_patch_size,
            in_channels=vision.in_channels,
            num_deepstack_layers=len(vision.deepstack_layers),
            modalities=modalities,
        )

    def _load_text(self, checkpoint: Checkpoint) -> None:
        text = self.text_config
        source = checkpoint.under("model.language_model")
        if text.tied:
            checkpoint.skip("lm_head.")
        self.layers = [DecoderLayer(source.under(f"layers.{index}"), text) for index in range(text.num_layers)]
        self.norm = RMSNorm.load(source.under("norm"), text.hidden_size, text.norm_eps)
        self.embed, self.head = load_embedding_and_head(checkpoint, text.vocab_size, text.hidden_size, text.tied)
        axes = mrope_axes("interleaved", text.mrope_sections, self.head_dim // 2)
        self.rotary = RotaryTable(text.rope_theta, self.head_dim, axes, self.device)

    def _load_vision(self, checkpoint: Checkpoint, disabled: bool) -> VisionTower | None:
        if disabled:
            checkpoint.skip("model.visual.")
            return None
        image, video = self._limits["image"].statistics, self._limits["video"].statistics
        return VisionTower(checkpoint.under("model.visual"), self.vision_config, image, video)

    @torch.inference_mode()
    def encode(self, inputs: Sequence[EncoderInput]) -> list[EncoderOutput]:
        """Turn items into embeddings; see `CausalLM.encode`."""
        if self.visual is None and inputs:
            raise FailedPrecondition("This worker serves without its vision encoder.", reason="VISION_DISABLED")
        for item in inputs:
            self._check_item(item)
        outputs: list[EncoderOutput | None] = [
            self._pass_through(item) if item.kind == "embeddings" else None for item in inputs
        ]
        pending = [index for index, output in enumerate(outputs) if output is None]
        if pending:
            assert self.visual is not None
            for index, output in zip(pending, self.visual([inputs[index] for index in pending]), strict=True):
                outputs[index] = output
        return [output for output in outputs if output is not None]

    def _pass_through(self, item: EncoderInput) -> EncoderOutput:
        """Take embeddings that the caller computed."""
        deepstack = item.side.get("deepstack")
        return EncoderOutput(
            item.tensor.to(self.device, self.dtype),
            None if deepstack is None else deepstack.to(self.device, self.dtype),
        )

    def _check_item(self, item: EncoderInput) -> None:
        """Check a tensor against its grid.

        Raises:
            InvalidArgument: naming the part that is missing or has another shape.
        """
        vision = self.vision_config
        t, h, w = item.grid_thw
        if min(item.grid_thw) < 1 or h % vision.merge_size or w % vision.merge_size:
            message = f"Grid {list(item.grid_thw)}: height and width are multiples of {vision.merge_size}."
            raise InvalidArgument(message, reason="GRID_INVALID", field="grid_thw")
        side, temporal = vision.patch_size, vision.temporal_patch_size
        match item.kind:
            case "pixels_u8":
                frames = item.tensor.shape[0] if item.tensor.dim() else 0
                _expect("tensor", item.tensor, (frames, h * side, w * side, vision.in_channels))
                if math.ceil(frames / temporal) != t:
                    message = f"{frames} frames do not make {t} temporal patches."
                    raise InvalidArgument(message, reason="GRID_MISMATCH", field="grid_thw.t")
            case "patches":
                _expect("tensor", item.tensor, (t * h * w, vision.in_channels * temporal * side * side))
            case "embeddings":
                tokens, hidden, layers = self.embedding_tokens(item.grid_thw), self.hidden_size, self._num_deepstack
                _expect("tensor", item.tensor, (tokens, hidden))
                if layers and "deepstack" not in item.side:
                    message = 'Embeddings of this model come with a side tensor "deepstack" [layers, tokens, hidden].'
                    raise InvalidArgument(message, reason="SIDE_TENSOR_REQUIRED", field="side_tensors[deepstack]")
                if layers:
                    _expect("side_tensors[deepstack]", item.side["deepstack"], (layers, tokens, hidden))
            case _:
                message = f"A visual item cannot hold {item.kind}."
                raise InvalidArgument(message, reason="PAYLOAD_KIND", field="payload_kind")

    @torch.inference_mode()
    def forward(self, batch: ForwardBatch, kv_cache: KVCache) -> torch.Tensor:
        """Run one step; see `CausalLM.forward`."""
        residual = self.embed(batch.input_ids)
        if batch.mm_embeds is not None and batch.mm_positions is not None:
            residual.index_copy_(0, batch.mm_positions, batch.mm_embeds)
        cos, sin = self.rotary(batch.positions)
        step = AttentionStep(
            cos, sin, batch.slot_mapping, batch.block_tables, batch.query_start, batch.context_lens, batch.query_lens,
            batch.kv_lens,
        )  # fmt: skip
        x = torch.zeros_like(residual)
        keep = self._rows_of_last_layer(batch)
        for index, layer in enumerate(self.layers):
            last = index == self.num_layers - 1
            x, residual = layer(x, residual, step, kv_cache.layer(index), keep if last else None)
            self._add_deepstack(batch, index, residual)
        if keep is None:
            x, residual = x[batch.logits_indices], residual[batch.logits_indices]
        return self.head(self.norm.add(x, residual)).float()

    def _add_deepstack(self, batch: ForwardBatch, index: int, residual: torch.Tensor) -> None:
        """Add the side features that belong after decoder layer `index`, in place, to the placeholder rows."""
        if batch.mm_deepstack is not None and batch.mm_positions is not None and index < self._num_deepstack:
            residual.index_add_(0, batch.mm_positions, batch.mm_deepstack[index])

    def _rows_of_last_layer(self, batch: ForwardBatch) -> torch.Tensor | None:
        """Return the rows that the last layer needs to finish: those with logits, unless that is all of them.

        The others only leave their keys and values there. (DeepStack features that enter after the last layer, as in
        models with hardly any layers, address the whole batch.)
        """
        if self._num_deepstack >= self.num_layers or batch.logits_indices.shape[0] == batch.num_tokens:
            return None
        return batch.logits_indices

    def mrope_positions(self, prompt_len: int, items: Sequence[ItemLayout]) -> tuple[np.ndarray, int]:
        """Return the positions of a whole prompt; see `CausalLM.mrope_positions`."""
        return mrope_positions(prompt_len, items, self.vision_config.merge_size)

    def embedding_tokens(self, grid_thw: Grid) -> int:
        """Return how many placeholder tokens an item of this grid owns."""
        return math.prod(grid_thw) // self.vision_config.merge_size**2

    @property
    def _num_deepstack(self) -> int:
        return len(self.vision_config.deepstack_layers)

    # Sizes, for the report and the profile at start.

    @property
    def head_dims(self) -> tuple[int, ...]:
        """Head sizes of language model and vision tower."""
        return (self.head_dim, self.vision_config.head_dim) if self.visual else (self.head_dim,)

    def worst_grids(self, max_tokens: int) -> Mapping[str, Grid]:
        """Return the largest legal item of each modality; a clip's is one temporal patch, its attention costs most."""
        merge, side = self.vision_config.merge_size, self.vision_config.patch_size
        pixels_per_token = (merge * side) ** 2
        grids = {}
        for modality in self.info.modalities:
            frames = 1 if modality == "image" else self.vision_config.temporal_patch_size
            tokens = self._limits[modality].max_pixels // (pixels_per_token * frames)
            rows, columns = _widest_grid(max(min(tokens, max_tokens), 1))
            grids[modality] = (1, rows * merge, columns * merge)
        return grids

    def dummy_input(self, modality: str, grid_thw: Grid) -> EncoderInput:
        """Return an item of this grid, black."""
        t, h, w = grid_thw
        side = self.vision_config.patch_size
        frames = 1 if modality == "image" else t * self.vision_config.temporal_patch_size
        pixels = torch.zeros(frames, h * side, w * side, self.vision_config.in_channels, dtype=torch.uint8)
        return EncoderInput(modality, "pixels_u8", pixels, grid_thw)

    def encoder_workspace_bytes(self, grid_thw: Grid) -> int:
        """Return an upper estimate of the transient memory of `encode` for one item."""
        vision = self.vision_config
        raw = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
        # widest moment: residual, branch, normed input, rotary tables; and q/k/v with their outputs, or the inner layer
        wide = max(5 * vision.hidden_size, 2 * vision.intermediate_size)
        stream = 3 * vision.hidden_size + 2 * vision.head_dim + wide
        return math.prod(grid_thw) * max(2 * raw + vision.hidden_size, stream) * max(self.dtype.itemsize, 4)

    def forward_workspace_bytes(self, num_tokens: int, num_logits: int) -> int:
        """Return an upper estimate of the transient memory of `forward`."""
        text = self.text_config
        heads = text.attention.num_heads + 2 * text.attention.num_kv_heads
        stream = 4 * text.hidden_size + max(2 * heads * self.head_dim, 3 * text.intermediate_size)
        return num_tokens * stream * max(self.dtype.itemsize, 4) + num_logits * text.vocab_size * 8

    @property
    def encoder_token_bytes(self) -> int:
        """Bytes of one token of an `EncoderOutput`, side features counted."""
        return (1 + self._num_deepstack) * self.hidden_size * self.dtype.itemsize

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights as they are kept."""
        layers = sum(layer.size_bytes for layer in self.layers)
        embedding = 0 if self.embed.table is None or self.device.type == "cpu" else self.embed.table.nbytes
        return layers + self.head.size_bytes + embedding + (self.visual.size_bytes if self.visual else 0)


def _expect(field: str, tensor: torch.Tensor, shape: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != shape:
        raise InvalidArgument(
            f"The {field} has shape {list(tensor.shape)}; the grid asks for {list(shape)}.",
            reason="GRID_MISMATCH",
            field=f"{field}.shape",
        )


def _widest_grid(tokens: int) -> tuple[int, int]:
    """Return (rows, columns) with the largest product up to `tokens`, within the legal aspect ratio, squarest first."""
    side = math.isqrt(tokens)
    least = max(1, math.isqrt(tokens // _MAX_ASPECT_RATIO))
    rows = max(range(side, least - 1, -1), key=lambda rows: rows * min(tokens // rows, rows * _MAX_ASPECT_RATIO))
    return rows, min(tokens // rows, rows * _MAX_ASPECT_RATIO)
