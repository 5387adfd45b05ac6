"""The vision tower of the GLM-V families: normed patches, bicubic positions, and a convolution that merges patches.

Patches lie in merge order, so the convolution over 2 x 2 of them is a linear layer over four neighbours.

Next: worker/models/glm4v.py
"""

from collections.abc import Sequence

import torch

from tessera_kernels import ops
from worker.layers.linear import Linear
from worker.layers.mlp import SwiGluMlp
from worker.layers.norm import LayerNorm, RMSNorm
from worker.layers.source import WeightSource
from worker.models.glm4v_config import GlmVisionConfig
from worker.models.info import ImageStatistics
from worker.models.vision_batch import VisionBatch
from worker.models.vision_tower import Branch, VisionBlock, VisionStep, VisionTower, place_by_table

_MERGER_EPS = 1e-5  # torch's default, whatever the config says of the RMS norms


class PatchMerger:
    """merge ** 2 neighbouring patches to one token: convolution, then projection, norm, GELU and feed-forward."""

    def __init__(self, source: WeightSource, config: GlmVisionConfig) -> None:
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
        return self.mlp(ops.gelu(self.norm(self.proj(merged))))

    @property
    def size_bytes(self) -> int:
        """Bytes of the weights."""
        return self.downsample.size_bytes + self.proj.size_bytes + self.mlp.size_bytes


def _load_downsample(source: WeightSource, config: GlmVisionConfig) -> Linear:
    """Return the convolution as a linear layer: its weight (out, hidden, merge, merge) with the channels last."""
    out, merge = config.out_hidden_size, config.merge_size
    kernel = source.mapped("weight", (out, config.hidden_size, merge, merge))
    weight = ops.linear.create(out, config.hidden_size * merge**2, source.dtype, source.device, bias=True)
    weight.write_rows(0, kernel.permute(0, 2, 3, 1).flatten(1))
    weight.write_bias(0, source.mapped("bias", (out,)))
    weight.seal()
    return Linear(weight)


class GlmVisionTower(VisionTower):
    """Items to embeddings; see `VisionTower`."""

    def __init__(
        self, source: WeightSource, config: GlmVisionConfig, image: ImageStatistics, video: ImageStatistics
    ) -> None:
        self.config = config
        super().__init__(source, config, image, video)
        self.embed_norm = self._load_norm(source.under("post_conv_layernorm"))
        table_shape = (config.table_side**2, config.hidden_size)
        self.position_table = source.under("embeddings").tensor("position_embedding.weight", table_shape)
        self.norm = self._load_norm(source.under("post_layernorm"))
        self.merger = PatchMerger(source, config)

    def _load_norm(self, source: WeightSource) -> RMSNorm:
        return RMSNorm.load(source, self.config.hidden_size, self.config.norm_eps)

    def load_block(self, source: WeightSource) -> VisionBlock:
        """Return one block; see `VisionTower`."""
        config = self.config
        mlp = SwiGluMlp.load(source.under("mlp"), config.hidden_size, config.out_hidden_size)
        return VisionBlock(source, config, self._load_norm, mlp, qkv_bias=config.qkv_bias, out_bias=False)

    def place(self, embedded: torch.Tensor, batch: VisionBatch) -> torch.Tensor:
        """Norm, then add learned positions; see `VisionTower`."""
        return place_by_table(self.embed_norm(embedded), self.position_table, batch, self.merge_size, cubic=True)

    def run(self, residual: torch.Tensor, step: VisionStep) -> tuple[torch.Tensor, Sequence[torch.Tensor]]:
        """Run the blocks, and merge what comes out of them; see `VisionTower`."""
        branch: Branch | None = None
        for block in self.blocks:
            branch = block(branch, residual, step)
        assert branch is not None, "a tower has blocks"
        return self.merger(self.norm.add(branch[0], residual, branch[1])), ()

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
