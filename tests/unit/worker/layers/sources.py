"""Weights for a layer under test, without a file.

Next: tests/unit/worker/layers/test_moe.py
"""

from collections.abc import Iterator

import torch

CPU = torch.device("cpu")


class DictSource:
    """A `WeightSource` over a dict.

    Args:
        tensors: by full name.
        dtype: storage type of the model.
        prefix: of the names that are asked for.
        device: of the model.
    """

    def __init__(
        self,
        tensors: dict[str, torch.Tensor],
        dtype: torch.dtype = torch.float32,
        prefix: str = "",
        device: torch.device = CPU,
    ) -> None:
        self.tensors = tensors
        self.dtype, self.device = dtype, device
        self.prefix = prefix

    def under(self, prefix: str) -> "DictSource":
        """Return the source of the names below `prefix`."""
        return DictSource(self.tensors, self.dtype, f"{self.prefix}{prefix}.", self.device)

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Return a tensor's shape, or None."""
        found = self.tensors.get(self.prefix + name)
        return None if found is None else tuple(found.shape)

    def slices(self, name: str, shape: tuple[int, ...]) -> Iterator[torch.Tensor]:
        """Return the matrices of a stack."""
        return iter(self.mapped(name, shape))

    def mapped(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        """Return the tensor, checked."""
        assert self.shape(name) == shape
        return self.tensors[self.prefix + name]

    def tensor(self, name: str, shape: tuple[int, ...], dtype: torch.dtype | None = None) -> torch.Tensor:
        """Return a copy in the model's type or the given one."""
        return self.mapped(name, shape).to(self.device, dtype or self.dtype, copy=True)
