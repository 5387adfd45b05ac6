"""What one forward of a vision tower takes: items of all sizes side by side, at most as many patches as the budget.

A clip that exceeds the budget is cut between its temporal patches: attention and mergers stay inside a frame, so its
pieces do not see each other in any case. A single frame above the budget goes alone.

Next: worker/models/vision_tower.py
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch

from tessera_kernels import ops
from worker.models.base import EncoderInput, Grid
from worker.models.encoder import grid_of

PATCH_BUDGET = 32768
"""Patches of one forward: enough to keep the largest device busy, and 1 to 2 GiB of workspace in 16 bits."""


@dataclass(frozen=True)
class Piece:
    """An item, or some of a clip's temporal patches.

    Args:
        place: index of its item.
        item: what is encoded, its grid that of the piece.
    """

    place: int
    item: EncoderInput

    @property
    def rows(self) -> int:
        """Patches."""
        return math.prod(grid_of(self.item))


def plan(inputs: Sequence[EncoderInput], budget: int, temporal: int) -> list[list[Piece]]:
    """Cut items into forwards of at most `budget` patches, in the items' order.

    Args:
        inputs: items of kinds pixels_u8 and patches.
        budget: patches.
        temporal: frames of a temporal patch.
    """
    forwards: list[list[Piece]] = [[]]
    room = budget
    for place, item in enumerate(inputs):
        for piece in _cut(place, item, budget, temporal):
            if piece.rows > room and forwards[-1]:
                forwards.append([])
                room = budget
            forwards[-1].append(piece)
            room -= piece.rows
    return forwards


def _cut(place: int, item: EncoderInput, budget: int, temporal: int) -> list[Piece]:
    """Cut an item into pieces that fit, whole where it does."""
    frames, height, width = grid_of(item)
    length = max(1, budget // (height * width))
    if frames <= length:
        return [Piece(place, item)]
    step = length * (temporal if item.kind == "pixels_u8" else height * width)  # rows of the tensor
    grids: list[Grid] = [(min(length, frames - first), height, width) for first in range(0, frames, length)]
    parts = [item.tensor[index * step : (index + 1) * step] for index in range(len(grids))]
    return [Piece(place, replace(item, tensor=part, grid_thw=grid)) for part, grid in zip(parts, grids, strict=True)]


class VisionBatch:
    """The items of one forward, stills first, then clips, then ready patches: each kind is one product.

    Args:
        pieces: of one forward.
        device: of the tower.
    """

    def __init__(self, pieces: Sequence[Piece], device: torch.device) -> None:
        self.pieces = sorted(pieces, key=lambda piece: _kind_order(piece.item))
        self.items = [piece.item for piece in self.pieces]
        self.device = device
        self.rows = sum(piece.rows for piece in self.pieces)

    @cached_property
    def grids(self) -> torch.Tensor:
        """Return int64 (k, 4): first row, t, h, w of each item, on the device."""
        return ops.on_device(grid_table([grid_of(item) for item in self.items]), self.device)

    @cached_property
    def segments(self) -> ops.Segments:
        """Return the frames, which attention stays inside of."""
        lens = [height * width for frames, height, width in map(grid_of, self.items) for _ in range(frames)]
        return ops.Segments.of(lens, self.device)


def grid_table(grids: Sequence[Grid], length: int | None = None, rows: int = 0) -> torch.Tensor:
    """Return first row, t, h, w of items side by side, int64 (k, 4), on the host.

    Args:
        grids: of the items.
        length: entries; those that are left over begin behind the last row. None: one for each grid.
        rows: where they begin.
    """
    table = torch.zeros(length or len(grids), 4, dtype=torch.int64)
    table[:, 0] = rows
    first = 0
    for index, grid in enumerate(grids):
        table[index] = torch.tensor((first, *grid))
        first += math.prod(grid)
    return table


def is_still(item: EncoderInput) -> bool:
    """Tell whether an item is one frame of an image, whose temporal patch is that frame repeated."""
    return item.kind == "pixels_u8" and item.modality == "image" and item.tensor.shape[0] == 1


def _kind_order(item: EncoderInput) -> int:
    return 0 if is_still(item) else 1 if item.kind == "pixels_u8" else 2
