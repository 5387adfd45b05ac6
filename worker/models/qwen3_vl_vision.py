"""The vision tower of Qwen3-VL: interpolated learned positions, and DeepStack features merged on the way.

Next: worker/models/glm4v.py
"""

from collections.abc import Sequence
from functools import partial

import torch

from worker.layers.mlp import GeluMlp
from worker.layers.norm import LayerNorm
from worker.layers.source import WeightSource
from worker.models.info import ImageStatistics
from worker.models.qwen3_vl_config import QwenVisionConfig
from worker.models.vision_batch import VisionBatch
from worker.models.vision_tower import Branch, VisionBlock, VisionStep, VisionTower, place_by_table

_EPS = 1e-6


class PatchMerger:
    """merge ** 2 neighbouring patches to one token: norm, concatenation (in either order), two linear layers."""

    def __init__(self, source: WeightSource, config: QwenVisionConfig, *, norm_after_concat: bool) -> None:
        self.width = config.hidden_size * config.merge_size**2
        self.norm_after_concat = norm_after_concat
        self.norm = LayerNorm.load(source.under("norm"), self.width if norm_after_concat else config.hidden_size, _EPS)
        self.mlp = GeluMlp.load(source, self.width, self.width, config.out_hidden_size, activation="gelu")

    def __call__(self, branch: Branch | None, residual: torch.Tensor) -> torch.Tensor:
        """Merge what comes out of a block.

        Args:
            branch: to be added to the residual; None: it has been.
            residual: (n, hidden) in merge order, changed in place.

        Returns:
            (n / merge ** 2, out_hidden).
        """
        if self.norm_after_concat:
            # Neighbours lie side by side in merge order: putting them together is another view of the same rows.
            return self.mlp(self._normed(branch, residual.view(-1, self.width)))
        return self.mlp(self._normed(branch, residual).view(-1, self.width))

    def _normed(self, branch: Branch | None, residual: torch.Tensor) -> torch.Tensor:
        if branch is None:
            return self.norm(residual)
        x, bias = branch
        return self.norm.add(x.view_as(residual), residual, bias)


class QwenVisionTower(VisionTower):
    """Items to embeddings and DeepStack features; see `VisionTower`."""

    def __init__(
        self, source: WeightSource, config: QwenVisionConfig, image: ImageStatistics, video: ImageStatistics
    ) -> None:
        self.config = config
        super().__init__(source, config, image, video)
        table_shape = (config.num_position_embeddings, config.hidden_size)
        self.position_table = source.tensor("pos_embed.weight", table_shape)
        self.merger = PatchMerger(source.under("merger"), config, norm_after_concat=False)
        self.deepstack_mergers = {
            layer: PatchMerger(source.under(f"deepstack_merger_list.{index}"), config, norm_after_concat=True)
            for index, layer in enumerate(config.deepstack_layers)
        }

    def load_block(self, source: WeightSource) -> VisionBlock:
        """Return one block; see `VisionTower`."""
        config = self.config
        mlp = GeluMlp.load(source.under("mlp"), config.hidden_size, config.intermediate_size, config.hidden_size)
        load_norm = partial(LayerNorm.load, hidden_size=config.hidden_size, eps=_EPS)
        return VisionBlock(source, config, load_norm, mlp, qkv_bias=True, out_bias=True)

    def place(self, embedded: torch.Tensor, batch: VisionBatch) -> torch.Tensor:
        """Add learned positions; see `VisionTower`."""
        return place_by_table(embedded, self.position_table, batch, self.merge_size, cubic=False)

    def run(self, residual: torch.Tensor, step: VisionStep) -> tuple[torch.Tensor, Sequence[torch.Tensor]]:
        """Run the blocks, and merge what comes out of them; see `VisionTower`."""
        branch: Branch | None = None
        deepstack = []
        for index, block in enumerate(self.blocks):
            branch = block(branch, residual, step)
            if index in self.deepstack_mergers:
                # The merger adds the branch to the residual, so the next block has nothing to add.
                deepstack.append(self.deepstack_mergers[index](branch, residual))
                branch = None
        return self.merger(branch, residual), deepstack

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
