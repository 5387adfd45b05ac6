"""Where layers take their weights from while a model is built; the loader gives the real one, tests a dict.

Next: worker/models/checkpoint.py
"""

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

    def mapped(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        """Take a tensor as it lies in the file, on the CPU, without a copy.

        Raises:
            CheckpointError: the name is missing, or its shape is another.
        """

    def tensor(self, name: str, shape: tuple[int, ...], dtype: torch.dtype | None = None) -> torch.Tensor:
        """Take a tensor into memory, on the model's device, in its type or the given one."""
