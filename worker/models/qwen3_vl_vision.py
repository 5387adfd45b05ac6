"""The vision tower of Qwen3-VL: pixels or patches to embeddings, several items in one batch.

All items' patches run through the blocks side by side; attention stays inside each frame.

Next: worker/models/qwen3_vl.py
"""

from collections.abc import Sequence

import torch

from tessera_kernels import ops
from worker.layers.linear import Linear
from worker.layers.mlp import GeluMlp
from worker.layers.norm import LayerNorm
from worker.layers.patch_embed import PatchEmbed
from worker.layers.rotary import inverse_frequencies
from worker.layers.source import WeightSource
from worker.models.base import EncoderInput, EncoderOutput
from worker.models.encoder import grid_of
from worker.models.info import ImageStatistics
from worker.models.qwen3_vl_config import VisionConfig

_EPS = 1e-6


class VisionBlock:
    """Pre-norm attention and feed-forward; the residual add of each is fused into the norm that follows."""

    def __init__(self, source: WeightSource, config: VisionConfig) -> None:
        hidden = config.hidden_size
        self.num_heads = config.num_heads
        self.scale = config.head_dim**-0.5
        self.norm1 = LayerNorm.load(source.under("norm1"), hidden, _EPS)
        self.qkv = Linear.load(source.under("attn"), [("qkv", 3 * hidden)], hidden, bias=True)
        self.proj = Linear.load(source.under("attn"), [("proj", hidden)], hidden, bias=True)
        self.norm2 = LayerNorm.load(source.under("norm2"), hidden, _EPS)
        self.mlp = GeluMlp.load(source.under("mlp"), hidden, config.intermediate_size, hidden)

    def __call__(
        self, x: torch.Tensor, residual: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, segment_lens: Sequence[int]
    ) -> torch.Tensor:
        """Return what is to be added to the residual, which holds all before it.

        Args:
            x: (n, hidden), the previous block's return, not yet added.
            residual: (n, hidden), changed in place.
            cos: fp32 (n, head_dim / 2); sin likewise.
            segment_lens: patches of each frame.
        """
        qkv = self.qkv(self.norm1.add(x, residual))
        ops.rope_qk(qkv, cos, sin, self.num_heads)
        attended = ops.segment_attention(qkv.view(x.shape[0], 3, self.num_heads, -1), segment_lens, self.scale)
        return self.mlp(self.norm2.add(self.proj(attended.flatten(1)), residual))

    @property
    def size_bytes(self) -> int:
        """Bytes of the weights."""
        return self.qkv.size_bytes + self.proj.size_bytes + self.mlp.size_bytes


class PatchMerger:
    """merge ** 2 neighbouring patches to one token: norm, concatenation (in either order), two linear layers."""

    def __init__(self, source: WeightSource, config: VisionConfig, *, norm_after_concat: bool) -> None:
        self.width = config.hidden_size * config.merge_size**2
        self.norm_after_concat = norm_after_concat
        self.norm = LayerNorm.load(source.under("norm"), self.width if norm_after_concat else config.hidden_size, _EPS)
        self.mlp = GeluMlp.load(source, self.width, self.width, config.out_hidden_size, activation="gelu")

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x: (n, hidden) in merge order -> (n / merge ** 2, out_hidden)."""
        if self.norm_after_concat:
            return self.mlp(self.norm(x.view(-1, self.width)))
        return self.mlp(self.norm(x).view(-1, self.width))


class VisionTower:
    """Items to embeddings and DeepStack features.

    Args:
        source: the names below `model.visual`.
        config: sizes.
        image: statistics of images' pixels.
        video: statistics of clips' pixels.
    """

    def __init__(
        self, source: WeightSource, config: VisionConfig, image: ImageStatistics, video: ImageStatistics
    ) -> None:
        self.config = config
        self.out_hidden_size = config.out_hidden_size
        self.num_deepstack_layers = len(config.deepstack_layers)
        self.head_dim = config.head_dim
        self.device = source.device
        self.dtype = source.dtype
        self.patch_embed = PatchEmbed(source.under("patch_embed"), config, image, video)
        table_shape = (config.num_position_embeddings, config.hidden_size)
        self.position_table = source.tensor("pos_embed.weight", table_shape)
        inv_freq = inverse_frequencies(config.rope_theta, config.head_dim // 2, source.device)
        self.inv_freq = inv_freq.repeat(2)  # first by the row, then by the column
        self.axes = torch.tensor([0] * len(inv_freq) + [1] * len(inv_freq), device=source.device)
        self.blocks = [VisionBlock(source.under(f"blocks.{index}"), config) for index in range(config.depth)]
        self.merger = PatchMerger(source.under("merger"), config, norm_after_concat=False)
        self.deepstack_mergers = {
            layer: PatchMerger(source.under(f"deepstack_merger_list.{index}"), config, norm_after_concat=True)
            for index, layer in enumerate(config.deepstack_layers)
        }

    def __call__(self, inputs: Sequence[EncoderInput]) -> list[EncoderOutput]:
        """Encode items of kinds pixels_u8 and patches, whose shapes have been checked."""
        residual = torch.cat([self._embed(item) for item in inputs])
        cos, sin = self._rotary(inputs)
        segment_lens = [h * w for t, h, w in map(grid_of, inputs) for _ in range(t)]
        x = torch.zeros_like(residual)
        deepstack = []
        for index, block in enumerate(self.blocks):
            x = block(x, residual, cos, sin, segment_lens)
            if index in self.deepstack_mergers:
                deepstack.append(self.deepstack_mergers[index](residual + x))
        return self._split(inputs, self.merger(residual + x), deepstack)

    def _embed(self, item: EncoderInput) -> torch.Tensor:
        """Return patch embeddings plus learned positions, (t * h * w, hidden)."""
        frames, height, width = grid_of(item)
        tensor = item.tensor.to(self.device)
        embedded = self.patch_embed.pixels(tensor) if item.kind == "pixels_u8" else self.patch_embed.patches(tensor)
        positions = ops.interpolate_positions(self.position_table, height, width, self.config.merge_size)
        embedded.view(frames, height * width, -1).add_(positions)
        return embedded

    def _rotary(self, inputs: Sequence[EncoderInput]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return cos, sin of all patches, fp32 (n, head_dim / 2)."""
        positions = []
        for item in inputs:
            frames, height, width = grid_of(item)
            order = torch.stack(ops.merge_order(height, width, self.config.merge_size, self.device))
            positions.append(order.repeat(1, frames))
        cos, sin = ops.rotary_table(torch.cat(positions, dim=1), self.inv_freq, self.axes)
        return cos, sin

    def _split(
        self, inputs: Sequence[EncoderInput], merged: torch.Tensor, deepstack: Sequence[torch.Tensor]
    ) -> list[EncoderOutput]:
        """Cut the batch into items; each owns its memory, so that dropping one from a cache frees it."""
        unit = self.config.merge_size**2
        lengths = [t * h * w // unit for t, h, w in map(grid_of, inputs)]
        sides = torch.stack(list(deepstack)).split(lengths, dim=1) if deepstack else [None] * len(inputs)
        if len(inputs) == 1:
            return [EncoderOutput(merged, sides[0])]
        return [
            EncoderOutput(part.clone(), None if side is None else side.clone())
            for part, side in zip(merged.split(lengths), sides, strict=True)
        ]

    @property
    def patch_workspace(self) -> int:
        """Upper estimate of the numbers that are alive for each patch at the widest moment of a block."""
        config = self.config
        # residual, branch, normed input, rotary tables; and q/k/v with their outputs, or the inner layer
        wide = max(5 * config.hidden_size, 2 * config.intermediate_size)
        return 3 * config.hidden_size + 2 * config.head_dim + wide

    @property
    def size_bytes(self) -> int:
        """Bytes of the weights (norms and small tables left out)."""
        mergers = [self.merger, *self.deepstack_mergers.values()]
        blocks = sum(block.size_bytes for block in self.blocks)
        return blocks + sum(merger.mlp.size_bytes for merger in mergers) + self.patch_embed.size_bytes
