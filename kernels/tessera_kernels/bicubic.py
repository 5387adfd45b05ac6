"""Learned vision positions resampled by cubic convolution, as GLM's towers do; once an item, so torch everywhere.

The kernel is separable: one small matrix for the rows, one for the columns, and the table between them.

Next: kernels/tessera_kernels/ops.py
"""

import torch

from tessera_kernels import invariance

_A = -0.75  # of the cubic kernel, as in torch's grid_sample (its antialiased image resize has -0.5)


def interpolate_positions_bicubic(table: torch.Tensor, height: int, width: int, merge: int) -> torch.Tensor:
    """Resample a square learned table to a grid: bicubic, pixel centres, its border repeated, in merge order.

    Source: transformers 5.23, Glm4vVisionEmbeddings (grid_sample, align_corners=False, padding_mode="border").

    Args:
        table: (side * side, hidden).
        height: patches; width likewise.
        merge: patches of a block's side.

    Returns:
        (height * width, hidden), the table's type.
    """
    side = round(table.shape[0] ** 0.5)
    rows, columns = (cubic_weights(size, side).to(table.device) for size in (height, width))
    square = table.float().view(side, -1)  # (side, side * hidden)
    with invariance.one_thread():
        raster = columns @ (rows @ square).view(height, side, -1)  # (height, width, hidden)
    blocks = raster.view(height // merge, merge, width // merge, merge, -1).transpose(1, 2)
    return blocks.reshape(height * width, -1).to(table.dtype)


def cubic_weights(size: int, side: int) -> torch.Tensor:
    """Return what each of `side` entries contributes to each of `size` samples along one axis.

    Sample i lies at (i + 1/2) * side / size - 1/2; entries beyond the border count as the border's.

    Returns:
        fp32 (size, side), rows summing to 1.
    """
    position = (torch.arange(size, dtype=torch.float64) + 0.5) * side / size - 0.5
    first = position.floor()
    weights = torch.zeros(size, side, dtype=torch.float64)
    for tap in (-1, 0, 1, 2):
        entry = (first + tap).long().clamp(0, side - 1)
        weights.scatter_add_(1, entry[:, None], _cubic((position - first - tap).abs())[:, None])
    return weights.float()


def _cubic(distance: torch.Tensor) -> torch.Tensor:
    """Return the kernel at distances of at most 2."""
    near = ((_A + 2) * distance - (_A + 3)) * distance**2 + 1
    far = ((_A * distance - 5 * _A) * distance + 8 * _A) * distance - 4 * _A
    return torch.where(distance <= 1, near, far)
