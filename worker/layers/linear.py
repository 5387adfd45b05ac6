"""Linear layers over packed weights; projections of the same input are merged into one product.

Next: kernels/tessera_kernels/linear.py
"""

from collections.abc import Sequence

import torch

from tessera_kernels import ops
from worker.layers.source import WeightSource


class Linear:
    """activation(x @ weight.T + bias)."""

    def __init__(self, weight: ops.LinearWeight) -> None:
        self.weight = weight

    @classmethod
    def load(
        cls,
        source: WeightSource,
        parts: Sequence[tuple[str, int]],
        in_features: int,
        *,
        bias: bool = False,
        activation: str = "none",
    ) -> "Linear":
        """Read one layer, or several that share their input, stacked.

        Args:
            source: where the names stand.
            parts: (name, out_features) of each stacked layer, as ("q_proj", 2048).
            in_features: columns.
            bias: whether the layers have one.
            activation: applied to the product; with "swiglu" the parts are gate and up.
        """
        weight = ops.linear.create(
            sum(rows for _, rows in parts), in_features, source.dtype, source.device, bias=bias, activation=activation
        )
        start = 0
        for name, rows in parts:
            weight.write_rows(start, source.mapped(f"{name}.weight", (rows, in_features)))
            if bias:
                weight.write_bias(start, source.mapped(f"{name}.bias", (rows,)))
            start += rows
        weight.seal()
        return cls(weight)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x: (n, in_features) -> (n, out_features); with "swiglu" half as many."""
        return self.weight.apply(x)

    def deferred(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the result, and a bias that is still to be added to it, None where it has been.

        What reads the result next adds the bias on the way, which saves a pass over it.
        """
        return self.weight.deferred(x)

    @property
    def size_bytes(self) -> int:
        """Bytes kept."""
        return self.weight.size_bytes
