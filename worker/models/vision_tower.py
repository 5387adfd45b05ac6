"""What the vision towers share: blocks over patches of several items at once, and the way in and out of them.

All items' patches run through the blocks side by side, in merge order; attention stays inside each frame.

Next: worker/models/qwen3_vl.py
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from tessera_kernels import ops
from worker.layers.linear import Linear
from worker.layers.mlp import GeluMlp, SwiGluMlp
from worker.layers.norm import LayerNorm, RMSNorm
from worker.layers.patch_embed import PatchEmbed
from worker.layers.rotary import inverse_frequencies
from worker.layers.source import WeightSource
from worker.models.base import EncoderInput, EncoderOutput
from worker.models.config import VisionConfig
from worker.models.encoder import grid_of
from worker.models.info import ImageStatistics


@dataclass(frozen=True)
class VisionStep:
    """What all blocks of one call share.

    Args:
        cos: fp32 (n, head_dim / 2); sin likewise.
        segment_lens: patches of each frame.
    """

    cos: torch.Tensor
    sin: torch.Tensor
    segment_lens: Sequence[int]


class VisionBlock:
    """Pre-norm attention and feed-forward; the residual add of each is fused into the norm that follows.

    Args:
        source: the block's names.
        config: sizes.
        load_norm: reads a norm of the stream's width.
        mlp: feed-forward layer.
        qkv_bias: whether queries, keys and values have biases.
        out_bias: whether the output projection has one.
    """

    def __init__(
        self,
        source: WeightSource,
        config: VisionConfig,
        load_norm: Callable[[WeightSource], LayerNorm | RMSNorm],
        mlp: GeluMlp | SwiGluMlp,
        *,
        qkv_bias: bool,
        out_bias: bool,
    ) -> None:
        hidden = config.hidden_size
        self.num_heads = config.num_heads
        self.scale = config.head_dim**-0.5
        self.norm1 = load_norm(source.under("norm1"))
        self.qkv = Linear.load(source.under("attn"), [("qkv", 3 * hidden)], hidden, bias=qkv_bias)
        self.proj = Linear.load(source.under("attn"), [("proj", hidden)], hidden, bias=out_bias)
        self.norm2 = load_norm(source.under("norm2"))
        self.mlp = mlp

    def __call__(self, x: torch.Tensor, residual: torch.Tensor, step: VisionStep) -> torch.Tensor:
        """Return what is to be added to the residual, which holds all before it.

        Args:
            x: (n, hidden), the previous block's return, not yet added.
            residual: (n, hidden), changed in place.
            step: shared by the blocks.
        """
        qkv = self.qkv(self.norm1.add(x, residual))
        ops.rope_qk(qkv, step.cos, step.sin, self.num_heads)
        attended = ops.segment_attention(qkv.view(x.shape[0], 3, self.num_heads, -1), step.segment_lens, self.scale)
        return self.mlp(self.norm2.add(self.proj(attended.flatten(1)), residual))

    @property
    def size_bytes(self) -> int:
        """Bytes of the weights."""
        return self.qkv.size_bytes + self.proj.size_bytes + self.mlp.size_bytes


class VisionTower(ABC):
    """Items to embeddings; a family brings its blocks, its learned positions, and what follows the blocks.

    Args:
        source: the names below `model.visual`.
        config: sizes.
        image: statistics of images' pixels.
        video: statistics of clips' pixels.
    """

    def __init__(
        self, source: WeightSource, config: VisionConfig, image: ImageStatistics, video: ImageStatistics
    ) -> None:
        self.out_hidden_size = config.out_hidden_size
        self.num_deepstack_layers = config.num_deepstack_layers
        self.head_dim = config.head_dim
        self.merge_size = config.merge_size
        self.device = source.device
        self.dtype = source.dtype
        self.patch_embed = PatchEmbed(source.under("patch_embed"), config, image, video)
        inv_freq = inverse_frequencies(config.rope_theta, config.head_dim // 2, source.device)
        self.inv_freq = inv_freq.repeat(2)  # first by the row, then by the column
        self.axes = torch.tensor([0] * len(inv_freq) + [1] * len(inv_freq), device=source.device)
        self.blocks = [self.load_block(source.under(f"blocks.{index}")) for index in range(config.depth)]

    @abstractmethod
    def load_block(self, source: WeightSource) -> VisionBlock:
        """Return one block, whose names stand below `source`."""

    @abstractmethod
    def place(self, embedded: torch.Tensor, item: EncoderInput) -> torch.Tensor:
        """Return an item's patch embeddings, (t * h * w, hidden), with its learned positions added."""

    @abstractmethod
    def run(self, residual: torch.Tensor, step: VisionStep) -> tuple[torch.Tensor, Sequence[torch.Tensor]]:
        """Run the blocks and what follows them.

        Args:
            residual: (n, hidden), all items' patches, changed in place.
            step: shared by the blocks.

        Returns:
            Embeddings (n / merge ** 2, out_hidden), and as many side features as there are DeepStack layers.
        """

    @property
    @abstractmethod
    def patch_workspace(self) -> int:
        """Upper estimate of the numbers that are alive for each patch at the widest moment."""

    @property
    @abstractmethod
    def size_bytes(self) -> int:
        """Bytes of the weights (norms and small tables left out)."""

    def __call__(self, inputs: Sequence[EncoderInput]) -> list[EncoderOutput]:
        """Encode items of kinds pixels_u8 and patches, whose shapes have been checked."""
        residual = torch.cat([self.place(self._embed(item), item) for item in inputs])
        cos, sin = self._rotary(inputs)
        step = VisionStep(cos, sin, [h * w for t, h, w in map(grid_of, inputs) for _ in range(t)])
        return self._split(inputs, *self.run(residual, step))

    def _embed(self, item: EncoderInput) -> torch.Tensor:
        tensor = item.tensor.to(self.device)
        return self.patch_embed.pixels(tensor) if item.kind == "pixels_u8" else self.patch_embed.patches(tensor)

    def _rotary(self, inputs: Sequence[EncoderInput]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return cos, sin of all patches, fp32 (n, head_dim / 2)."""
        positions = []
        for item in inputs:
            frames, height, width = grid_of(item)
            order = torch.stack(ops.merge_order(height, width, self.merge_size, self.device))
            positions.append(order.repeat(1, frames))
        cos, sin = ops.rotary_table(torch.cat(positions, dim=1), self.inv_freq, self.axes)
        return cos, sin

    def _split(
        self, inputs: Sequence[EncoderInput], merged: torch.Tensor, deepstack: Sequence[torch.Tensor]
    ) -> list[EncoderOutput]:
        """Cut the batch into items; each owns its memory, so that dropping one from a cache frees it."""
        lengths = [t * h * w // self.merge_size**2 for t, h, w in map(grid_of, inputs)]
        sides = torch.stack(list(deepstack)).split(lengths, dim=1) if deepstack else [None] * len(inputs)
        if len(inputs) == 1:
            return [EncoderOutput(merged, sides[0])]
        return [
            EncoderOutput(part.clone(), None if side is None else side.clone())
            for part, side in zip(merged.split(lengths), sides, strict=True)
        ]
