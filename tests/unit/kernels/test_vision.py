"""Geometry of all items at once against that of one item, on the CPU."""

import math

import pytest
import torch

from tessera_kernels import bicubic, ops, reference

MERGE = 2
GRIDS = [(1, 2, 4), (3, 4, 2), (1, 6, 8)]
ROWS = sum(map(math.prod, GRIDS))
PADDING = 5


def table() -> torch.Tensor:
    """First row, t, h, w of each grid, and an entry that is not used."""
    firsts = [sum(map(math.prod, GRIDS[:index])) for index in range(len(GRIDS))]
    return torch.tensor([*((first, *grid) for first, grid in zip(firsts, GRIDS, strict=True)), (ROWS, 0, 0, 0)])


def test_patches() -> None:
    """Each item's rows are its own patches; the last frame fills up, padding is zero."""
    generator = torch.Generator().manual_seed(0)
    frames = [1, 5, 1]
    pixels = [
        torch.randint(0, 256, (count, h * 4, w * 4, 3), generator=generator, dtype=torch.uint8)
        for count, (_, h, w) in zip(frames, GRIDS, strict=True)
    ]
    starts = [sum(part.numel() for part in pixels[:index]) for index in range(3)]
    entries = zip(table().tolist(), starts, frames, strict=False)
    items = torch.tensor([(first, start, count, h, w) for (first, _, h, w), start, count in entries])
    flat = torch.cat([part.flatten() for part in pixels])
    ours = ops.patches_of_items(flat, items, ROWS + PADDING, 4, MERGE, 2, 128.0, torch.bfloat16)
    expected = [
        reference.centred_patches(torch.cat((part, part[-1:])), 4, MERGE, 2, 128.0, torch.bfloat16) for part in pixels
    ]
    assert torch.equal(ours[:ROWS], torch.cat(expected))
    assert not ours[ROWS:].any() and len(ours) == ROWS + PADDING


@pytest.mark.parametrize("cubic", [False, True])
@pytest.mark.parametrize("side", [1, 5, 12])
def test_learned_positions(cubic: bool, side: int) -> None:
    """Taps and sum give what interpolation item by item does; padding stays as it is."""
    positions = torch.randn(side * side, 16, generator=torch.Generator().manual_seed(0))
    interpolate = bicubic.interpolate_positions_bicubic if cubic else reference.interpolate_positions
    expected = torch.cat([interpolate(positions, h, w, MERGE).repeat(t, 1) for t, h, w in GRIDS])
    x, bias = torch.ones(ROWS + PADDING, 16), torch.arange(16.0)
    index, weight = ops.position_taps(table(), ROWS + PADDING, MERGE, side, cubic)
    ops.add_positions(x, bias, positions, index, weight)
    assert (x[:ROWS] - 1 - bias - expected).abs().max() < 1e-5
    assert torch.equal(x[ROWS:], (1 + bias).expand(PADDING, 16))


def test_rotary() -> None:
    """Each item's rows turn as the table of its own grid does; padding lies at (0, 0)."""
    inv_freq = 100.0 ** (-torch.arange(6) / 6)
    cos, sin = ops.vision_rotary(table(), ROWS + PADDING, MERGE, inv_freq)
    axes = torch.tensor([0] * 6 + [1] * 6)
    placed = [torch.stack(reference.merge_order(h, w, MERGE, torch.device("cpu"))).repeat(1, t) for t, h, w in GRIDS]
    expected = reference.rotary_table(torch.cat(placed, 1), inv_freq.repeat(2), axes)
    assert torch.equal(cos[:ROWS], expected[0]) and torch.equal(sin[:ROWS], expected[1])
    assert (cos[ROWS:] == 1).all() and (sin[ROWS:] == 0).all()


def test_nothing() -> None:
    """No items and no rows are fine."""
    none = torch.zeros(0, 4, dtype=torch.int64)
    assert ops.patches_of_items(
        torch.zeros(0, dtype=torch.uint8), torch.zeros(0, 5, dtype=torch.int64), 0, 4, 2, 1, 0.0, torch.float32
    ).shape == (0, 48)
    assert [x.shape for x in ops.position_taps(none, 0, 2, 4, True)] == [(0, 16)] * 2
    assert [x.shape for x in ops.vision_rotary(none, 3, 2, torch.ones(2))] == [(3, 4)] * 2
