"""Rotation of neighbouring elements by layers that turn half-split pairs: the rows of q and k are regrouped at load.

A score is a sum over a head's elements, so any order of them gives the same one as long as queries and keys share it.
With the even elements of the turning part first and the odd ones behind them, pair (2 i, 2 i + 1) becomes pair
(i, i + half), which is what the attention ops turn; keys lie in the cache in that order, and nobody else reads them.

Next: worker/layers/rotary.py
"""

from collections.abc import Iterator

import torch

from worker.layers.source import WeightSource


def half_split_order(num_heads: int, head_dim: int, rotary_dim: int) -> torch.Tensor:
    """Return the stored row of each row of a projection: even, then odd, then unturned elements, head by head.

    Args:
        num_heads: heads of the projection.
        head_dim: elements of a head.
        rotary_dim: elements of a head that turn, the first ones.

    Returns:
        int64 (num_heads * head_dim,).
    """
    order = torch.arange(head_dim)
    order[:rotary_dim] = torch.cat((order[:rotary_dim:2], order[1:rotary_dim:2]))
    return (torch.arange(num_heads)[:, None] * head_dim + order).flatten()


class RegroupedPairs:
    """A `WeightSource` whose q_proj and k_proj come with their rows in half-split order, all else as it is.

    Args:
        source: of an attention layer.
        head_dim: elements of a head.
        rotary_dim: elements of a head that turn.
    """

    def __init__(self, source: WeightSource, head_dim: int, rotary_dim: int) -> None:
        self.dtype = source.dtype
        self.device = source.device
        self._source = source
        self._head_dim = head_dim
        self._rotary_dim = rotary_dim

    def under(self, prefix: str) -> WeightSource:
        """Return the source of the names below `prefix`, in their own order."""
        return self._source.under(prefix)

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Return the shape of a tensor; see `WeightSource`."""
        return self._source.shape(name)

    def slices(self, name: str, shape: tuple[int, ...]) -> Iterator[torch.Tensor]:
        """Take a stack of matrices one by one; see `WeightSource`."""
        return self._source.slices(name, shape)

    def mapped(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        """Take a tensor; see `WeightSource`. Queries and keys are copied into their new order."""
        tensor = self._source.mapped(name, shape)
        if name.split(".")[0] not in ("q_proj", "k_proj"):
            return tensor
        return tensor[half_split_order(shape[0] // self._head_dim, self._head_dim, self._rotary_dim)]

    def tensor(self, name: str, shape: tuple[int, ...], dtype: torch.dtype | None = None) -> torch.Tensor:
        """Take a tensor into memory; see `WeightSource`."""
        return self.mapped(name, shape).to(self.device, dtype or self.dtype)
