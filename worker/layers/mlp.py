"""Feed-forward layers.

Next: worker/layers/linear.py
"""

import torch

from worker.layers.linear import Linear
from worker.layers.source import WeightSource


class SwiGluMlp:
    """down(silu(gate(x)) * up(x)), gate and up in one product."""

    def __init__(self, gate_up: Linear, down: Linear) -> None:
        self.gate_up = gate_up
        self.down = down

    @classmethod
    def load(cls, source: WeightSource, hidden_size: int, inner_size: int) -> "SwiGluMlp":
        """Read `gate_proj`, `up_proj` and `down_proj`."""
        parts = [("gate_proj", inner_size), ("up_proj", inner_size)]
        gate_up = Linear.load(source, parts, hidden_size, activation="swiglu")
        return cls(gate_up, Linear.load(source, [("down_proj", hidden_size)], inner_size))

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x: (n, hidden) -> (n, hidden)."""
        return self.down(self.gate_up(x))

    def deferred(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the result and a bias that is still to be added to it: none."""
        return self(x), None

    @property
    def size_bytes(self) -> int:
        """Bytes of the weights."""
        return self.gate_up.size_bytes + self.down.size_bytes


class GeluMlp:
    """linear_fc2(gelu(linear_fc1(x))), with biases."""

    def __init__(self, fc1: Linear, fc2: Linear) -> None:
        self.fc1 = fc1
        self.fc2 = fc2

    @classmethod
    def load(
        cls, source: WeightSource, in_size: int, inner_size: int, out_size: int, activation: str = "gelu_tanh"
    ) -> "GeluMlp":
        """Read `linear_fc1` and `linear_fc2`."""
        fc1 = Linear.load(source, [("linear_fc1", inner_size)], in_size, bias=True, activation=activation)
        return cls(fc1, Linear.load(source, [("linear_fc2", out_size)], inner_size, bias=True))

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x: (n, in_size) -> (n, out_size)."""
        return self.fc2(self.fc1(x))

    def deferred(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the result, and a bias that is still to be added to it; see `Linear.deferred`."""
        return self.fc2.deferred(self.fc1(x))

    @property
    def size_bytes(self) -> int:
        """Bytes of the weights."""
        return self.fc1.size_bytes + self.fc2.size_bytes
