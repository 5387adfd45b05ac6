"""Positions by cubic convolution, against torch's grid_sample and straight from the formula in float64.

Next: tests/unit/kernels/test_reference.py
"""

import pytest
import torch

from tessera_kernels import ops, reference
from tessera_kernels.bicubic import cubic_weights

SIZES = [(8, 4, 6), (3, 2, 30), (24, 10, 36), (7, 14, 2), (24, 24, 24)]


def table(side: int) -> torch.Tensor:
    """A learned table, the same every time."""
    return torch.randn(side * side, 5, generator=torch.Generator().manual_seed(side))


@pytest.mark.parametrize(("side", "height", "width"), SIZES)
def test_positions_equal_grid_sample(side: int, height: int, width: int) -> None:
    """The table is sampled as grid_sample does in float64, then put in merge order."""
    learned = table(side)
    row, column = reference.merge_order(height, width, 2, learned.device)
    x, y = ((index.double() + 0.5) / size * 2 - 1 for index, size in ((column, width), (row, height)))
    exact = torch.nn.functional.grid_sample(
        learned.double().view(1, side, side, 5).permute(0, 3, 1, 2),
        torch.stack((x, y), dim=-1)[None, None],
        mode="bicubic",
        align_corners=False,
        padding_mode="border",
    )[0, :, 0].t()
    ours = ops.interpolate_positions_bicubic(learned, height, width, 2)
    assert ours.shape == (height * width, 5)
    assert (ours - exact).abs().max() < 2e-6


def test_the_kernel_is_keys_with_three_quarters() -> None:
    """A sample between two entries takes the four around it, by Keys' cubic with a = -3/4; the border repeats."""
    weights = cubic_weights(8, 4)  # samples at -1/4, 1/4, 3/4, 5/4, ...
    a, near, far = -0.75, 0.25, 0.75

    def inner(t: float) -> float:
        return (a + 2) * t**3 - (a + 3) * t**2 + 1

    def outer(t: float) -> float:
        return a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a

    middle = torch.tensor([outer(1 + near), inner(near), inner(far), outer(1 + far)])
    assert torch.allclose(weights[3], middle, atol=1e-7)  # 5/4: entries 0 to 3
    border = torch.tensor([outer(1 + far) + inner(far) + inner(near), outer(1 + near), 0, 0])
    assert torch.allclose(weights[0], border, atol=1e-7)  # -1/4: entries -2 and -1 are entry 0
    assert torch.allclose(weights.sum(1), torch.ones(8))


def test_a_grid_of_the_tables_size_is_the_table() -> None:
    """Without a change of size each patch has its own entry, in merge order, in the table's type."""
    learned = table(4).bfloat16()
    row, column = reference.merge_order(4, 4, 2, learned.device)
    assert torch.equal(ops.interpolate_positions_bicubic(learned, 4, 4, 2), learned[row * 4 + column])
