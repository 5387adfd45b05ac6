"""Rotary embeddings: which frequency turns by which axis of a token's position is all that families differ in.

Next: worker/layers/positions.py
"""

from collections.abc import Sequence
from typing import Literal

import torch

from tessera_kernels import ops

MropeMode = Literal["none", "chunked", "interleaved"]


def mrope_axes(mode: MropeMode, sections: Sequence[int], half: int) -> list[int]:
    """Return the axis (0 time, 1 height, 2 width) that each frequency turns by.

    Args:
        mode: "none" (time alone), "chunked" (contiguous bands) or "interleaved" (height and width every third).
        sections: frequencies of (time, height, width).
        half: frequencies in all.

    Raises:
        ValueError: chunked sections do not add up to `half`.
    """
    if mode == "none":
        return [0] * half
    if mode == "chunked":
        if sum(sections) != half:
            raise ValueError(f"mrope_section {list(sections)} does not add up to {half} frequencies")
        return [axis for axis, count in enumerate(sections) for _ in range(count)]
    return [axis if (axis := index % 3) and index < 3 * sections[axis] else 0 for index in range(half)]


def inverse_frequencies(theta: float, rotary_dim: int, device: torch.device) -> torch.Tensor:
    """Return theta ** (-2 i / rotary_dim) for i < rotary_dim / 2, fp32."""
    exponents = torch.arange(0, rotary_dim, 2, dtype=torch.float32) / rotary_dim
    return (1.0 / theta**exponents).to(device)


class RotaryTable:
    """Cosines and sines of a step's tokens, computed once and shared by all layers.

    Args:
        theta: base of the frequencies.
        rotary_dim: rotated elements of a head.
        axes: the position axis of each of the rotary_dim / 2 frequencies.
        device: where it runs.
    """

    def __init__(self, theta: float, rotary_dim: int, axes: Sequence[int], device: torch.device) -> None:
        self.inv_freq = inverse_frequencies(theta, rotary_dim, device)
        self.axes = torch.tensor(axes, device=device)

    def __call__(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """positions: (num_axes, n) int64 -> cos, sin: fp32 (n, rotary_dim / 2)."""
        cos, sin = ops.rotary_table(positions, self.inv_freq, self.axes)
        return cos, sin
