"""Geometry of vision towers in plain torch, for items of all sizes side by side: the oracle of the batched kernels.

An item is a still or a clip; its patches come in merge order, and rows behind the last item are padding.

Next: kernels/tessera_kernels/vision.py
"""

import torch

from tessera_kernels import reference

Taps = tuple[torch.Tensor, torch.Tensor]


def patches_of_items(
    pixels: torch.Tensor,
    items: torch.Tensor,
    rows: int,
    patch: int,
    merge: int,
    temporal: int,
    centre: float,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Return the items' patch rows; see `vision.patches_of_items`."""
    out = torch.zeros(rows, 3 * temporal * patch**2, dtype=dtype, device=pixels.device)
    for first, first_byte, frames, height, width in items.tolist():
        if first >= rows:
            break
        shape = frames, height * patch, width * patch, 3
        taken = pixels[first_byte : first_byte + frames * shape[1] * shape[2] * 3].view(shape)
        taken = torch.cat((taken, taken[-1:].expand(-frames % temporal, *shape[1:])))
        part = reference.centred_patches(taken, patch, merge, temporal, centre, dtype)
        out[first : first + len(part)] = part
    return out


def position_taps(grids: torch.Tensor, rows: int, merge: int, side: int, cubic: bool) -> Taps:
    """Return entries and weights of each row; see `vision.position_taps`."""
    taps = 16 if cubic else 4
    index = torch.zeros(rows, taps, dtype=torch.int32, device=grids.device)
    weight = torch.zeros(rows, taps, device=grids.device)
    axis_taps = _cubic_taps if cubic else _linear_taps
    for first, frames, height, width in grids.tolist():
        if first >= rows:
            break
        placed = reference.merge_order(height, width, merge, grids.device)
        (row, row_weight), (column, column_weight) = (
            axis_taps(place, size, side) for place, size in zip(placed, (height, width), strict=True)
        )
        count = frames * height * width
        entries = (row[:, :, None] * side + column[:, None, :]).flatten(1)
        weights = (row_weight[:, :, None] * column_weight[:, None, :]).flatten(1)
        index[first : first + count] = entries.int().repeat(frames, 1)
        weight[first : first + count] = weights.float().repeat(frames, 1)
    return index, weight


def _linear_taps(place: torch.Tensor, size: int, side: int) -> Taps:
    """Return the two entries of one axis, corners aligned: int64 and float64, (n, 2) each."""
    numerator, span = place * (side - 1), max(size - 1, 1)
    low = numerator // span
    fraction = (numerator - low * span).double() / span
    return torch.stack((low, (low + 1).clamp(max=side - 1)), 1), torch.stack((1 - fraction, fraction), 1)


def _cubic_taps(place: torch.Tensor, size: int, side: int) -> Taps:
    """Return the four entries of one axis by cubic convolution, pixel centres, the border repeated: (n, 4) each."""
    numerator, span = (2 * place + 1) * side - size, 2 * size
    low = numerator.div(span, rounding_mode="floor")
    fraction = (numerator - low * span).double() / span
    taps = torch.arange(-1, 3, device=place.device)
    distance = (fraction[:, None] - taps).abs()
    near = (1.25 * distance - 2.25) * distance**2 + 1
    far = -0.75 * (((distance - 5) * distance + 8) * distance - 4)
    return (low[:, None] + taps).clamp(0, side - 1), torch.where(distance <= 1, near, far)


def add_positions(
    x: torch.Tensor, bias: torch.Tensor | None, table: torch.Tensor, index: torch.Tensor, weight: torch.Tensor
) -> None:
    """Add bias and weighted entries to rows *in place*; see `vision.add_positions`."""
    sums = x.float() if bias is None else x.float() + bias.float()
    for tap in range(index.shape[1]):
        sums = sums + table[index[:, tap].long()].float() * weight[:, tap, None]
    x.copy_(sums)


def vision_rotary(grids: torch.Tensor, rows: int, merge: int, inv_freq: torch.Tensor) -> Taps:
    """Return cos, sin of each row's angles; see `vision.vision_rotary`."""
    positions = torch.zeros(2, rows, dtype=torch.int64, device=grids.device)
    for first, frames, height, width in grids.tolist():
        if first >= rows:
            break
        placed = torch.stack(reference.merge_order(height, width, merge, grids.device))
        positions[:, first : first + frames * height * width] = placed.repeat(1, frames)
    axes = torch.arange(2, device=inv_freq.device).repeat_interleave(len(inv_freq))
    cos, sin = reference.rotary_table(positions.to(inv_freq.device), inv_freq.repeat(2), axes)
    return cos, sin
