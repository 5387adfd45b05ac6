"""The vision tower of the GLM-V families: pixels or patches to embeddings, several items in one batch.

All items' patches run through the blocks side by side; attention stays inside each frame. Patches lie in merge order,
so the convolution that merges 2 x 2 of them is a linear layer over four neighbours.

Next: worker/models/glm4v.py
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from tessera_kernels import ops
from worker.layers.linear import Linear
from worker.layers.mlp import SwiGluMlp
from worker.layers.norm import LayerNorm, RMSNorm
from worker.layers.patch_embed import PatchEmbed
from worker.layers.rotary import inverse_frequencies
from worker.layers.source import WeightSource
from worker.models.base import EncoderInput, EncoderOutput
from worker.models.encoder import grid_of
from worker.models.glm4v_config import VisionConfig
from worker.models.info import ImageStatistics

_MERGER_EPS = 1e-5  # torch's default, whatever the config says of the RMS norms


class VisionBlock:
    """Pre-norm attention and feed-forward; the residual add of each is fused into the norm that follows."""

    def __init__(self, source: WeightSource, config: VisionConfig) -> None:
        hidden = config.hidden_size
        self.num_heads = config.num_heads
        self.scale = config.head_dim**-0.5
        self.norm1 = RMSNorm.load(source.under("norm1"), hidden, config.norm_eps)
        self.qkv = Linear.load(source.under("attn"), [("qkv", 3 * hidden)], hidden, bias=config.qkv_bias)
        self.proj = Linear.load(source.under("attn"), [("proj", hidden)], hidden)
        self.norm2 = RMSNorm.load(source.under("norm2"), hidden, config.norm_eps)
        self.mlp = SwiGluMlp.load(source.under("mlp"), hidden, config.out_hidden_size)

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
    """merge ** 2 neighbouring patches to one token: convolution, then projection, norm, GELU and feed-forward."""

    def __init__(self, source: WeightSource, config: VisionConfig) -> None:
        out = config.out_hidden_size
        self.width = config.hidden_size * config.merge_size**2
        self.downsample = _load_downsample(source.under("downsample"), config)
        merger = source.under("merger")
        self.proj = Linear.load(merger, [("proj", out)], out)
        self.norm = LayerNorm.load(merger.under("post_projection_norm"), out, _MERGER_EPS)
        self.mlp = SwiGluMlp.load(merger, out, config.intermediate_size)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x: (n, hidden) in merge order -> (n / merge ** 2, out_hidden)."""
        merged = self.downsample(x.view(-1, self.width))
        return self.mlp(F.gelu(self.norm(self.proj(merged))))

    @property
    def size_bytes(self) -> int:
        """Bytes of the weights."""
        return self.downsample.size_bytes + self.proj.size_bytes + self.mlp.size_bytes


def _load_downsample(source: WeightSource, config: VisionConfig) -> Linear:
    """Return the convolution as a linear layer: its weight (out, hidden, merge, merge) with the channels last."""
    out, merge = config.out_hidden_size, config.merge_size
    kernel = source.mapped("weight", (out, config.hidden_size, merge, merge))
    weight = ops.linear.create(out, config.hidden_size * merge**2, source.dtype, source.device, bias=True)
    weight.write_rows(0, kernel.permute(0, 2, 3, 1).flatten(1))
    weight.write_bias(0, source.mapped("bias", (out,)))
    weight.seal()
    return Linear(weight)


class GlmVisionTower:
    """Items to embeddings.

    Args:
        source: the names below `model.visual`.
        config: sizes.
        image: statistics of images' pixels.
        video: statistics of clips' pixels.
    """

    num_deepstack_layers = 0

    def __init__(
        self, source: WeightSource, config: VisionConfig, image: ImageStatistics, video: ImageStatistics
    ) -> None:
        self.config = config
        self.out_hidden_size = config.out_hidden_size
        self.head_dim = config.head_dim
        self.device = source.device
        self.dtype = source.dtype
        self.patch_embed = PatchEmbed(source.under("patch_embed"), config, image, video)
        self.embed_norm = RMSNorm.load(source.under("post_conv_layernorm"), config.hidden_size, config.norm_eps)
        table_shape = (config.table_side**2, config.hidden_size)
        self.position_table = source.under("embeddings").tensor("position_embedding.weight", table_shape)
        inv_freq = inverse_frequencies(config.rope_theta, config.head_dim // 2, source.device)
        self.inv_freq = inv_freq.repeat(2)  # first by the row, then by the column
        self.axes = torch.tensor([0] * len(inv_freq) + [1] * len(inv_freq), device=source.device)
        self.blocks = [VisionBlock(source.under(f"blocks.{index}"), config) for index in range(config.depth)]
        self.norm = RMSNorm.load(source.under("post_layernorm"), config.hidden_size, config.norm_eps)
        self.merger = PatchMerger(source, config)

    def __call__(self, inputs: Sequence[EncoderInput]) -> list[EncoderOutput]:
        """Encode items of kinds pixels_u8 and patches, whose shapes have been checked."""
        residual = torch.cat([self._embed(item) for item in inputs])
        cos, sin = self._rotary(inputs)
        segment_lens = [h * w for t, h, w in map(grid_of, inputs) for _ in range(t)]
        x = torch.zeros_like(residual)
        for block in self.blocks:
            x = block(x, residual, cos, sin, segment_lens)
        return self._split(inputs, self.merger(self.norm.add(x, residual)))

    def _embed(self, item: EncoderInput) -> torch.Tensor:
        """Return normed patch embeddings plus learned positions, (t * h * w, hidden)."""
        frames, height, width = grid_of(item)
        tensor = item.tensor.to(self.device)
        embedded = self.patch_embed.pixels(tensor) if item.kind == "pixels_u8" else self.patch_embed.patches(tensor)
        normed = self.embed_norm(embedded)
        positions = ops.interpolate_positions_bicubic(self.position_table, height, width, self.config.merge_size)
        normed.view(frames, height * width, -1).add_(positions)
        return normed

    def _rotary(self, inputs: Sequence[EncoderInput]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return cos, sin of all patches, fp32 (n, head_dim / 2)."""
        positions = []
        for item in inputs:
            frames, height, width = grid_of(item)
            order = torch.stack(ops.merge_order(height, width, self.config.merge_size, self.device))
            positions.append(order.repeat(1, frames))
        cos, sin = ops.rotary_table(torch.cat(positions, dim=1), self.inv_freq, self.axes)
        return cos, sin

    def _split(self, inputs: Sequence[EncoderInput], merged: torch.Tensor) -> list[EncoderOutput]:
        """Cut the batch into items; each owns its memory, so that dropping one from a cache frees it."""
        if len(inputs) == 1:
            return [EncoderOutput(merged, None)]
        unit = self.config.merge_size**2
        lengths = [t * h * w // unit for t, h, w in map(grid_of, inputs)]
        return [EncoderOutput(part.clone(), None) for part in merged.split(lengths)]

    @property
    def patch_workspace(self) -> int:
        """Upper estimate of the numbers that are alive for each patch at the widest moment."""
        config = self.config
        # residual, branch, normed input, rotary tables; and q/k/v with their outputs, or the inner layer, or the
        # merger's layers, which only every merge ** 2-th row has
        block = max(5 * config.hidden_size, 3 * config.out_hidden_size)
        merged = -(-(3 * config.out_hidden_size + 3 * config.intermediate_size) // config.merge_size**2)
        return 3 * config.hidden_size + 2 * config.head_dim + max(block, merged)

    @property
    def size_bytes(self) -> int:
        """Bytes of the weights (norms and small tables left out)."""
        return sum(block.size_bytes for block in self.blocks) + self.merger.size_bytes + self.patch_embed.size_bytes
