"""What the vision towers share: blocks over patches of several items at once, and the way in and out of them.

All items' patches run through the blocks side by side, in merge order; attention stays inside each frame. Biases are
added by the op that reads a product next, wherever that saves a pass over it.

Next: worker/models/vision_graph.py
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from tessera_kernels import ops
from worker.layers.graph import Recorder, recorder_for
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
from worker.models.vision_batch import PATCH_BUDGET, VisionBatch, is_still, plan
from worker.models.vision_graph import VisionGraphs


@dataclass(frozen=True)
class VisionStep:
    """What all blocks of one call share.

    Args:
        cos: fp32 (n, head_dim / 2); sin likewise.
        segments: patches of each frame.
    """

    cos: torch.Tensor
    sin: torch.Tensor
    segments: ops.Segments


Branch = tuple[torch.Tensor, torch.Tensor | None]
"""What is to be added to the residual, and a bias that is to be added with it."""


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

    def __call__(self, branch: Branch | None, residual: torch.Tensor, step: VisionStep) -> Branch:
        """Return what is to be added to the residual, which holds all before it.

        Args:
            branch: the previous block's return, not yet added; None: nothing is to be added.
            residual: (n, hidden), changed in place.
            step: shared by the blocks.
        """
        normed = self.norm1(residual) if branch is None else self.norm1.add(branch[0], residual, branch[1])
        qkv, qkv_bias = self.qkv.deferred(normed)
        attended = ops.vision_attention(qkv, qkv_bias, step.cos, step.sin, step.segments, self.num_heads, self.scale)
        projected, bias = self.proj.deferred(attended)
        return self.mlp.deferred(self.norm2.add(projected, residual, bias))

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

    Attributes:
        patch_budget: most patches of one forward, unless a single frame has more.
        graphs: recorded forwards of common sizes, after `record`.
    """

    def __init__(
        self, source: WeightSource, config: VisionConfig, image: ImageStatistics, video: ImageStatistics
    ) -> None:
        self.out_hidden_size = config.out_hidden_size
        self.num_deepstack_layers = config.num_deepstack_layers
        self.hidden_size = config.hidden_size
        self.head_dim = config.head_dim
        self.merge_size = config.merge_size
        self.temporal_patch_size = config.temporal_patch_size
        self.device = source.device
        self.dtype = source.dtype
        self.patch_embed = PatchEmbed(source.under("patch_embed"), config, image, video)
        self.inv_freq = inverse_frequencies(config.rope_theta, config.head_dim // 2, source.device)
        self.blocks = [self.load_block(source.under(f"blocks.{index}")) for index in range(config.depth)]
        self.patch_budget = PATCH_BUDGET
        self.graphs: VisionGraphs | None = None

    @abstractmethod
    def load_block(self, source: WeightSource) -> VisionBlock:
        """Return one block, whose names stand below `source`."""

    @abstractmethod
    def place(self, embedded: torch.Tensor, batch: VisionBatch) -> torch.Tensor:
        """Return patch embeddings, (n, hidden), with their learned positions added; may change `embedded`."""

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
        parts: list[list[EncoderOutput]] = [[] for _ in inputs]
        for pieces in plan(inputs, self.patch_budget, self.temporal_patch_size):
            batch = VisionBatch(pieces, self.device)
            for piece, output in zip(batch.pieces, self._split(batch, *self._forward(batch)), strict=True):
                parts[piece.place].append(output)
        return list(map(_joined, parts))

    def record(self, record: Recorder | None = None) -> None:
        """Record forwards of common sizes, where the device does; see `VisionGraphs`.

        Args:
            record: what records; None: what the device has.
        """
        record = record or recorder_for(self.device)
        if record is not None:
            self.graphs = VisionGraphs(self, record)
            self.graphs.prepare()

    def _forward(self, batch: VisionBatch) -> tuple[torch.Tensor, Sequence[torch.Tensor]]:
        residual = self.place(self.patch_embed.batch(batch.items, list(map(is_still, batch.items))), batch)
        if self.graphs is not None and self.graphs.takes(batch):
            return self.graphs(residual, batch)
        return self.after_embedding(residual, batch.grids, batch.segments)

    def after_embedding(
        self, residual: torch.Tensor, grids: torch.Tensor, segments: ops.Segments
    ) -> tuple[torch.Tensor, Sequence[torch.Tensor]]:
        """Run everything behind the patch embedding, which depends on numbers of rows alone.

        Args:
            residual: (n, hidden), changed in place.
            grids: int64 (k, 4), first row, t, h, w of each item; rows behind the last item are padding.
            segments: patches of each frame.

        Returns:
            As `run`.
        """
        cos, sin = ops.vision_rotary(grids, residual.shape[0], self.merge_size, self.inv_freq)
        return self.run(residual, VisionStep(cos, sin, segments))

    def _split(
        self, batch: VisionBatch, merged: torch.Tensor, deepstack: Sequence[torch.Tensor]
    ) -> list[EncoderOutput]:
        """Cut the batch into items; each owns its memory, so that dropping one from a cache frees it."""
        lengths = [piece.rows // self.merge_size**2 for piece in batch.pieces]
        sides = torch.stack(list(deepstack)).split(lengths, dim=1) if deepstack else [None] * len(lengths)
        if len(lengths) == 1:
            return [EncoderOutput(merged, sides[0])]
        return [
            EncoderOutput(part.clone(), None if side is None else side.clone())
            for part, side in zip(merged.split(lengths), sides, strict=True)
        ]


def _joined(parts: Sequence[EncoderOutput]) -> EncoderOutput:
    """Put the pieces of an item together."""
    if len(parts) == 1:
        return parts[0]
    sides = [part.deepstack for part in parts if part.deepstack is not None]
    return EncoderOutput(torch.cat([part.embeddings for part in parts]), torch.cat(sides, dim=1) if sides else None)


def place_by_table(
    embedded: torch.Tensor, table: torch.Tensor, batch: VisionBatch, merge: int, *, cubic: bool
) -> torch.Tensor:
    """Add a learned table's entries, interpolated for each item's grid, in place; see `VisionTower.place`.

    Args:
        embedded: (n, hidden).
        table: (side ** 2, hidden).
        batch: whose rows they are.
        merge: patches of a block's side.
        cubic: whether a position takes 16 entries by cubic convolution instead of 4 by bilinear weights.
    """
    if ops.batches_positions(embedded):
        index, weight = ops.position_taps(batch.grids, batch.rows, merge, round(table.shape[0] ** 0.5), cubic)
        ops.add_positions(embedded, None, table, index, weight)
        return embedded
    interpolate = ops.interpolate_positions_bicubic if cubic else ops.interpolate_positions
    first = 0
    for frames, height, width in map(grid_of, batch.items):
        rows = embedded[first : (first := first + frames * height * width)]
        rows.view(frames, height * width, -1).add_(interpolate(table, height, width, merge))
    return embedded
