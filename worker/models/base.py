"""What the engine and a model say to each other: items to encode, one step's batch, one interface for all families.

Next: worker/models/registry.py
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch

from worker.layers.kv_cache import KVCache
from worker.layers.positions import Span
from worker.layers.state_cache import StateCache, StateShape

Grid = tuple[int, int, int]
"""(t, h, w) of an item, in patches."""


@dataclass(frozen=True)
class ItemSize:
    """All that the number of an item's tokens, and the cost of encoding it, depend on.

    Args:
        modality: "image", "video" or "time_series".
        grid_thw: (t, h, w) in patches; None for a series.
        length: samples of a series.
        channels: of a series.
        sampling_rate_hz: of a series; 0 = unknown.
    """

    modality: str
    grid_thw: Grid | None = None
    length: int = 0
    channels: int = 1
    sampling_rate_hz: float = 0.0


@dataclass(frozen=True)
class EncoderInput:
    """One item to encode.

    Args:
        modality: "image", "video" or "time_series".
        kind: "pixels_u8", "patches", "samples" or "embeddings".
        tensor: pixels_u8: uint8 (frames, h * patch, w * patch, 3), before temporal padding.
            patches: float (t * h * w, channels * temporal_patch * patch ** 2), in merge order.
            samples: fp32 (length, channels).
            embeddings: float (tokens, hidden).
        grid_thw: (t, h, w) in patches; None for a series.
        side: further tensors of embeddings by name; "deepstack": (layers, tokens, hidden).
        sampling_rate_hz: of a series; 0 = unknown.
    """

    modality: str
    kind: str
    tensor: torch.Tensor
    grid_thw: Grid | None = None
    side: Mapping[str, torch.Tensor] = field(default_factory=dict)
    sampling_rate_hz: float = 0.0

    @property
    def size(self) -> ItemSize:
        """The item without its bytes."""
        if self.kind != "samples":
            return ItemSize(self.modality, self.grid_thw)
        length, channels = self.tensor.shape
        return ItemSize(self.modality, None, length, channels, self.sampling_rate_hz)


@dataclass(frozen=True)
class EncoderOutput:
    """What the encoder cache holds of one item.

    Args:
        embeddings: (tokens, hidden), model dtype.
        deepstack: (layers, tokens, hidden), model dtype, or None where the family has none.
    """

    embeddings: torch.Tensor
    deepstack: torch.Tensor | None

    @property
    def size_bytes(self) -> int:
        """Bytes of both tensors."""
        parts = [self.embeddings] if self.deepstack is None else [self.embeddings, self.deepstack]
        return sum(part.numel() * part.element_size() for part in parts)


@dataclass
class ForwardBatch:
    """One engine step: the new tokens of all sequences, one after the other (varlen), prefill chunks and decodes alike.

    Args:
        input_ids: (num_tokens,) int64; the ids at placeholder rows are not looked at.
        positions: (3, num_tokens) int64, rows (time, height, width).
        slot_mapping: (num_tokens,) int64, flat KV slot of each token: block_id * block_size + offset.
        block_tables: (num_seqs, max_blocks) int32, padded with any valid block id.
        context_lens: (num_seqs,) int32, KV length of each sequence *after* this step.
        query_start: (num_seqs + 1,) int32, first row of each sequence in the batch, and the number of tokens.
        logits_indices: (num_logits,) int64, rows whose logits are wanted.
        query_lens: new tokens of each sequence, on the host.
        kv_lens: `context_lens` on the host.
        state_slots: (num_seqs,) int64, slot of each sequence's recurrent state, updated in place; None where the
            model keeps none. A sequence whose KV length is its number of new tokens starts from zero.
        mm_embeds: (num_mm, hidden) embeddings of the placeholder rows, or None.
        mm_source: int64 (count, 2), half-open ranges of rows of `mm_embeds`, or None.
        mm_target: int64 (count, 2), the rows of the batch where each range goes; ascending and disjoint, or None.
        mm_deepstack: (layers, num_mm, hidden), or None.
    """

    input_ids: torch.Tensor
    positions: torch.Tensor
    slot_mapping: torch.Tensor
    block_tables: torch.Tensor
    context_lens: torch.Tensor
    query_start: torch.Tensor
    logits_indices: torch.Tensor
    query_lens: tuple[int, ...]
    kv_lens: tuple[int, ...]
    state_slots: torch.Tensor | None = None
    mm_embeds: torch.Tensor | None = None
    mm_source: torch.Tensor | None = None
    mm_target: torch.Tensor | None = None
    mm_deepstack: torch.Tensor | None = None

    @property
    def num_tokens(self) -> int:
        """Rows of the batch."""
        return int(self.input_ids.shape[0])

    @property
    def num_seqs(self) -> int:
        """Sequences of the batch."""
        return len(self.query_lens)


class ItemLayout(NamedTuple):
    """Where an item stands in the prompt, which is all that positions need of it.

    Args:
        modality: "image", "video" or "time_series".
        ranges: its runs of placeholder tokens, ascending.
        grid_thw: (t, h, w) in patches; None for a series, whose tokens advance like text.
    """

    modality: str
    ranges: Sequence[Span]
    grid_thw: Grid | None


@dataclass(frozen=True)
class GenerationDefaults:
    """What generation_config.json asks for where the caller leaves a parameter unset.

    Args:
        do_sample: False means greedy, whatever the other fields say.
        temperature: softmax temperature.
        top_p: nucleus mass.
        top_k: 0 means all tokens.
        repetition_penalty: 1.0 means none.
    """

    do_sample: bool = False
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0


@dataclass(frozen=True)
class ModelInfo:
    """What `Describe` and the engine need to know of a checkpoint.

    Args:
        architecture: name in config.json.
        dtype: of weights and activations, "float32" or "bfloat16".
        vocab_size: columns of the logits (may exceed the tokenizer's length).
        max_position_embeddings: longest context in tokens.
        hidden_size: width of the language model, and of an item's embeddings.
        eos_token_ids: ids that end a sequence.
        generation: defaults of the sampling parameters.
        bos_token_id: id that begins a sequence, or None.
        pad_token_id: id that fills up, or None.
        image_token_id: fills the ranges of images, None where the checkpoint takes none; likewise the next four.
        video_token_id: fills the ranges of clips; GLM's frames are images to it, so there it is the image's id.
        spatial_merge_size: patches merged along each side into one token.
        patch_size: pixels of a patch's side.
        temporal_patch_size: frames of a patch.
        in_channels: colour channels.
        num_deepstack_layers: side features of each visual token.
        modalities: served modalities.
        vision_disabled: the checkpoint has a vision encoder and it was left unread.
    """

    architecture: str
    dtype: str
    vocab_size: int
    max_position_embeddings: int
    hidden_size: int
    eos_token_ids: tuple[int, ...]
    generation: GenerationDefaults
    bos_token_id: int | None = None
    pad_token_id: int | None = None
    image_token_id: int | None = None
    video_token_id: int | None = None
    time_series_token_id: int | None = None
    vision_start_token_id: int | None = None
    vision_end_token_id: int | None = None
    spatial_merge_size: int = 1
    patch_size: int = 1
    temporal_patch_size: int = 1
    in_channels: int = 3
    num_deepstack_layers: int = 0
    modalities: tuple[str, ...] = ()
    vision_disabled: bool = False


class CausalLM(ABC):
    """A language model with optional encoders, in inference only.

    Attributes:
        info: what the checkpoint says of itself.
        num_layers: attention layers that need a KV cache.
        num_kv_heads: key/value heads.
        head_dim: elements of a head.
        dtype: of weights, activations and KV cache.
        device: where it runs.
        state_shape: recurrent state of a sequence; None where all layers keep keys and values.
    """

    info: ModelInfo
    num_layers: int
    num_kv_heads: int
    head_dim: int
    dtype: torch.dtype
    device: torch.device
    state_shape: StateShape | None = None

    @property
    def hidden_size(self) -> int:
        """Width of the language model."""
        return self.info.hidden_size

    @property
    def head_dims(self) -> tuple[int, ...]:
        """Head sizes of all attention layers, encoders' included; they decide which attention kernels serve."""
        return (self.head_dim,)

    @property
    def vocab_size(self) -> int:
        """Columns of the logits."""
        return self.info.vocab_size

    @abstractmethod
    def encode(self, inputs: Sequence[EncoderInput]) -> list[EncoderOutput]:
        """Turn items into embeddings, all in one batch.

        Args:
            inputs: items on any device; they are moved to the model's.

        Returns:
            One output for each input, in order.

        Raises:
            FailedPrecondition: the vision encoder is disabled.
            InvalidArgument: a tensor's shape does not fit its grid, or a part is missing.
            Unimplemented: a modality that the model does not have.
        """

    def record(self) -> None:  # noqa: B027 - most have nothing to record
        """Record what runs often, where the device does; to be called before serving, once."""

    @abstractmethod
    def forward(self, batch: ForwardBatch, kv_cache: KVCache) -> torch.Tensor:
        """Run one step, writing the new tokens' keys and values into the cache, and moving recurrent states on.

        Returns:
            Logits, (num_logits, vocab_size), of the type that the head gives: what draws from them widens it.
        """

    @abstractmethod
    def prompt_positions(self, prompt_len: int, items: Sequence[ItemLayout]) -> tuple[np.ndarray, int]:
        """Return where the tokens of a prompt stand.

        Args:
            prompt_len: tokens of the prompt after expansion.
            items: every item of the prompt, ordered by first offset.

        Returns:
            Segments, int64 (count, 6), which `ops.mrope_positions` describes, and the position of
            the first generated token on all axes (max + 1).

        Raises:
            InvalidArgument: the ranges do not fit the grids.
        """

    @abstractmethod
    def item_tokens(self, size: ItemSize) -> int:
        """Return how many placeholder tokens an item of this size owns.

        Raises:
            Unimplemented: a modality that the model does not have.
        """

    @abstractmethod
    def worst_items(self, max_tokens: int) -> list[ItemSize]:
        """Return the worst legal item of each served modality: most tokens, `max_tokens` at most."""

    @abstractmethod
    def dummy_input(self, size: ItemSize) -> EncoderInput:
        """Return an item of this size, black or silent, as the gateway would send it."""

    @abstractmethod
    def encoder_workspace_bytes(self, size: ItemSize) -> int:
        """Return an upper estimate of the transient memory of `encode` for one item, computed from shapes alone."""

    @abstractmethod
    def forward_workspace_bytes(self, num_tokens: int, num_logits: int) -> int:
        """Return an upper estimate of the transient memory of `forward`, computed from shapes alone."""

    @property
    @abstractmethod
    def encoder_token_bytes(self) -> int:
        """Bytes of one token of an `EncoderOutput`, side features counted."""

    @property
    @abstractmethod
    def weight_bytes(self) -> int:
        """Bytes of the weights as they are kept."""

    def kv_block_bytes(self, block_size: int) -> int:
        """Return the bytes of one KV block id over all layers."""
        return KVCache.block_bytes(self.num_layers, block_size, self.num_kv_heads, self.head_dim, self.dtype)

    def make_kv_cache(self, num_blocks: int, block_size: int, num_state_slots: int = 0) -> KVCache:
        """Allocate a KV cache of this model's shape on its device.

        Args:
            num_blocks: KV blocks.
            block_size: tokens of a block.
            num_state_slots: slots of recurrent state; looked at only where `state_shape` is set.
        """
        states = None
        if self.state_shape is not None:
            states = StateCache(self.state_shape, num_state_slots, self.device)
        return KVCache(
            self.num_layers, num_blocks, block_size, self.num_kv_heads, self.head_dim, self.dtype, self.device, states
        )
