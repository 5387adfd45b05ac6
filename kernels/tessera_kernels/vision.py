"""Geometry of vision towers as ops: pixels to patch rows, learned and rotary positions, for all items of a batch.

Items lie side by side, stills and clips of all sizes, described by a table on the device, so that a launch does not
depend on their sizes. Tables hold int64, items in order. An item has t * h * w patches (t temporal patches, height,
width) in merge order: block by block of merge x merge patches, row by row inside a block. Rows behind the last item are
padding; entries that are not used begin at or behind the last row, and are empty.

Next: kernels/tessera_kernels/reference_vision.py
"""

import torch

from tessera_kernels import cpu, cuda, reference, reference_vision


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
    """Cut items into patches, each pixel less `centre`.

    Args:
        pixels: uint8 (bytes,), items back to back, (frames, height, width, 3) each.
        items: (k, 5): first row (a multiple of merge ** 2), first byte, frames, height and width in patches. What is
            missing from the last temporal patch repeats the last frame.
        rows: of the result.
        patch: pixels of a patch's side.
        merge: patches of a block's side.
        temporal: frames of a patch.
        centre: a multiple of 1 / 256, so that differences are exact in fp32; whole numbers' are in 16 bits as well.
        dtype: of the result.

    Returns:
        (rows, 3 * temporal * patch ** 2), columns by channel, frame, y, x; padding is zero.
    """
    if cuda.runs_on(pixels.device, dtype):
        return cuda.ops().centred_patches(pixels, items, rows, patch, merge, temporal, centre, dtype)
    return reference_vision.patches_of_items(pixels, items, rows, patch, merge, temporal, centre, dtype)


def position_taps(
    grids: torch.Tensor, rows: int, merge: int, side: int, cubic: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the entries of a square learned table that make up each row's position, and their weights.

    Args:
        grids: (k, 4): first row, t, h, w; frames of a clip share their positions.
        rows: of the result.
        merge: patches of a block's side.
        side: of the table.
        cubic: 16 entries by cubic convolution (a = -0.75, pixel centres, the border repeated) instead of 4 by bilinear
            weights with corners aligned.

    Returns:
        Index into the flattened table, int32 (rows, taps), and weight, fp32 (rows, taps); taps by row, then column.
        Padding has entry 0 with weight 0.
    """
    if cuda.runs_on(grids.device, torch.float32):
        index, weight = cuda.ops().position_taps(grids, rows, merge, side, cubic)
        return index, weight
    return reference_vision.position_taps(grids, rows, merge, side, cubic)


def add_positions(
    x: torch.Tensor, bias: torch.Tensor | None, table: torch.Tensor, index: torch.Tensor, weight: torch.Tensor
) -> None:
    """Add a bias and each row's weighted table entries, *in place*, rounded once.

    Args:
        x: (rows, hidden).
        bias: (hidden,), or None.
        table: (entries, hidden).
        index: int32 (rows, taps), of 4 or 16 taps; see `position_taps`.
        weight: fp32 (rows, taps).
    """
    if cuda.serves(x):
        cuda.ops().add_positions(x, bias, table, index, weight)
    else:
        reference_vision.add_positions(x, bias, table, index, weight)


def vision_rotary(
    grids: torch.Tensor, rows: int, merge: int, inv_freq: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return cos, sin of the two-dimensional rotary embedding.

    Args:
        grids: (k, 4): first row (a multiple of merge ** 2), t, h, w.
        rows: of the result.
        merge: patches of a block's side.
        inv_freq: fp32 (half,).

    Returns:
        Two fp32 (rows, 2 * half): the first half of the columns turns by a patch's row, the second by its column.
        Padding lies at (0, 0).
    """
    if cuda.serves(inv_freq):
        cos, sin = cuda.ops().vision_rotary(grids, rows, merge, inv_freq)
        return cos, sin
    return reference_vision.vision_rotary(grids, rows, merge, inv_freq)


def centred_patches(
    frames: torch.Tensor, patch: int, merge: int, temporal: int, centre: float, dtype: torch.dtype
) -> torch.Tensor:
    """Return patch rows in merge order, each pixel less `centre`. frames: uint8 (t * temporal, height, width, 3)."""
    if cpu.available() and frames.is_cpu and dtype is torch.float32 and frames.shape[3] == 3:
        return cpu.centred_patches(frames, patch, merge, temporal, centre)
    return reference.centred_patches(frames, patch, merge, temporal, centre, dtype)


def batches_positions(x: torch.Tensor) -> bool:
    """Tell whether learned positions of all items are added by one op (`add_positions`), not item by item."""
    return cuda.serves(x)


def batches_pixels(device: torch.device, dtype: torch.dtype) -> bool:
    """Tell whether pixels of all items become patch rows by one op (`patches_of_items`), not item by item."""
    return cuda.runs_on(device, dtype)
