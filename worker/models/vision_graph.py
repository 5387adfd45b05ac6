"""Forwards of a vision tower recorded for common numbers of patches.

What follows the patch embedding depends on numbers of rows, items and frames alone, so a few sizes serve all items:
rows are padded up to the next one. Padding is no item's and no frame's; it comes out as rows that nobody reads. Larger
forwards run as they are: their launches hide behind their arithmetic.

Next: worker/layers/graph.py
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from tessera_kernels import ops
from worker.layers.graph import Graph, Recorder, new_pool
from worker.models.encoder import grid_of
from worker.models.vision_batch import VisionBatch, grid_table

if TYPE_CHECKING:
    from worker.models.vision_tower import VisionTower

# A step of at most half: a padded row costs what a real one does.
BUCKETS = (256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192)
MAX_ITEMS = 64
MAX_SEGMENTS = 256

_Result = tuple[torch.Tensor, Sequence[torch.Tensor]]


@dataclass(frozen=True)
class _Recording:
    """One size: its inputs and what runs on them.

    Args:
        residual: (rows, hidden).
        grids: int64 (MAX_ITEMS, 4).
        starts: int32 (MAX_SEGMENTS + 1,).
        graph: reads them.
    """

    residual: torch.Tensor
    grids: torch.Tensor
    starts: torch.Tensor
    graph: Graph[_Result]


class VisionGraphs:
    """Recordings of a tower by number of rows, made by `prepare`, or when a size is first met.

    Args:
        tower: whose forwards they are.
        record: what records; see `worker.layers.graph`.
    """

    def __init__(self, tower: "VisionTower", record: Recorder) -> None:
        self._tower = tower
        self._record = record
        self._recordings: dict[int, _Recording] = {}
        # One memory for all: a replay's results are copied out before the next begins.
        self._pool = new_pool(tower.device)

    def takes(self, batch: VisionBatch) -> bool:
        """Tell whether a forward has a size that is recorded."""
        return batch.rows <= BUCKETS[-1] and len(batch.items) <= MAX_ITEMS and batch.segments.count <= MAX_SEGMENTS

    def prepare(self) -> None:
        """Record all sizes, the largest first, so that the others share its memory."""
        for rows in reversed(BUCKETS):
            self._recording(rows)

    def __call__(self, residual: torch.Tensor, batch: VisionBatch) -> _Result:
        """Run what follows the patch embedding; see `VisionTower.after_embedding`."""
        recording = self._recording(next(rows for rows in BUCKETS if rows >= batch.rows))
        recording.residual[: batch.rows].copy_(residual)
        recording.residual[batch.rows :].zero_()
        table = grid_table([grid_of(item) for item in batch.items], MAX_ITEMS, batch.rows)
        recording.grids.copy_(ops.on_device(table, recording.grids.device))
        recording.starts.copy_(ops.on_device(batch.segments.padded_starts(MAX_SEGMENTS), recording.starts.device))
        merged, deepstack = recording.graph.replay()
        tokens = batch.rows // self._tower.merge_size**2
        return merged[:tokens].clone(), [side[:tokens] for side in deepstack]

    def _recording(self, rows: int) -> _Recording:
        if rows not in self._recordings:
            self._recordings[rows] = self._make(rows)
        return self._recordings[rows]

    def _make(self, rows: int) -> _Recording:
        tower, device = self._tower, self._tower.device
        # One frame that fills all rows, as blocks of merge ** 2 in a line: the recording reads whatever stands here.
        merge = tower.merge_size
        residual = torch.zeros(rows, tower.hidden_size, dtype=tower.dtype, device=device)
        grids = grid_table([(1, merge, rows // merge)], MAX_ITEMS, rows).to(device)
        starts = ops.Segments.of([rows], device).padded_starts(MAX_SEGMENTS).to(device)
        segments = ops.Segments((), starts)
        # The blocks change the residual, which the next replay finds copied anew.
        graph = self._record(lambda: tower.after_embedding(residual, grids, segments), self._pool)
        return _Recording(residual, grids, starts, graph)
