"""Rows in segments, one after the other: what attention of a vision tower stays inside of.

Next: kernels/tessera_kernels/ops.py
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch

from tessera_kernels.transfer import on_device


@dataclass(frozen=True)
class Segments:
    """Lengths of segments, on the host for loops there and on the device for kernels.

    Args:
        lens: rows of each segment; empty where only the device knows them, in a recorded computation.
        starts: int32 (count + 1,), first row of each segment and the end of the last. Segments may be empty.
    """

    lens: Sequence[int]
    starts: torch.Tensor

    @classmethod
    def of(cls, lens: Sequence[int], device: torch.device) -> "Segments":
        """Return segments of these lengths."""
        starts = torch.tensor([0, *accumulate(lens)], dtype=torch.int32)
        return cls(lens, on_device(starts, device))

    @property
    def count(self) -> int:
        """Segments."""
        return self.starts.shape[0] - 1

    def padded_starts(self, count: int) -> torch.Tensor:
        """Return the starts of `count` segments, of which those left over are empty; on the host."""
        ends = [0, *accumulate(self.lens)]
        return torch.tensor(ends + ends[-1:] * (count - self.count), dtype=torch.int32)
