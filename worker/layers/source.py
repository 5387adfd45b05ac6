"""Where layers take their weights from while a model is built; the loader gives the real one, tests a dict.

Next: worker/models/checkpoint.py
"""

from collections.abc import Iterator
from typing import Protocol

import torch


class WeightSource(Protocol):
    """Named tensors under a prefix, each taken once."""

    dtype: torch.dtype
    """Storage type of the model."""

    device: torch.device
    """Device of the model."""

    def under(self, prefix: str) -> "WeightSource":
        """Return the source of the names below `prefix`."""

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Return the shape of a tensor, which is not taken; None where there is no such tensor."""

    def slices(self, name: str, shape: tuple[int, ...]) -> Iterator[torch.Tensor]:
        """Take a stack of matrices one by one, each as `mapped` gives it; memory holds one at a time.

        Args:
            name: of the stack.
            shape: of all of it, (matrices, rows, columns).

        Raises:
            CheckpointError: as for `mapped`.
        """

    def mapped(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        """Take a tensor as it lies in the file, on the CPU, without a copy; an FP8 matrix dequantised to fp32.

        Raises:
            CheckpointError: the name is missing, or its shape is another.
        """

    def tensor(self, name: str, shape: tuple[int, ...], dtype: torch.dtype | None = None) -> torch.Tensor:
        """Take a tensor into memory, on the model's device, in its type or the given one."""
