"""Learned and rotary positions of mixed grids on CUDA against float64.

Next: kernels/csrc/positions.cu
"""

from collections.abc import Sequence

import pytest
import torch

from tessera_kernels import reference, reference_vision
from tests.cuda_ops import Target, check_error, check_guards, check_op, strided

Grid = tuple[int, int, int]
# one block, a clip, the longest aspect that is served, sides as long as the table's, and one patch longer
GRIDS: list[Grid] = [(1, 2, 2), (3, 4, 6), (1, 2, 400), (1, 12, 12), (2, 14, 10)]
SIDE = 12


def table_of(target: Target, grids: Sequence[Grid], padding: int = 0, unused: int = 0) -> tuple[torch.Tensor, int]:
    """Return the grids as ops take them, and the rows with padding; unused entries begin where padding does or ends."""
    entries, rows = [], 0
    for frames, height, width in grids:
        entries.append((rows, frames, height, width))
        rows += frames * height * width
    entries += [(rows + padding * (2 * index >= unused), 0, 0, 0) for index in range(unused)]
    return target.guarded(torch.tensor(entries, dtype=torch.int64).view(-1, 4)), rows + padding


def places(grids: Sequence[Grid], merge: int) -> torch.Tensor:
    """Row, column, height and width of each patch's place, int64 (rows, 4)."""
    parts = [torch.zeros(0, 4, dtype=torch.int64)]
    for frames, height, width in grids:
        place = torch.stack(reference.merge_order(height, width, merge, torch.device("cpu")), 1)
        sizes = torch.tensor([[height, width]]).expand(len(place), 2)
        parts.append(torch.cat((place, sizes), 1).repeat(frames, 1))
    return torch.cat(parts)


def dense(index: torch.Tensor, weight: torch.Tensor, entries: int) -> torch.Tensor:
    """Weights of all entries of the table, float64 (rows, entries)."""
    return torch.zeros(len(index), entries, dtype=torch.float64).scatter_add_(1, index.long(), weight.double())


@pytest.mark.parametrize("cubic", [False, True])
@pytest.mark.parametrize("side", [1, 2, SIDE, 48])
@pytest.mark.parametrize("merge", [1, 2])
def test_taps(target: Target, cubic: bool, side: int, merge: int) -> None:
    """Entries and weights are those of float64, to the last digits of fp32, for any grid; a row's add up to one."""
    grids, rows = table_of(target, GRIDS)
    index, weight = target.ops.position_taps(grids, rows, merge, side, cubic)
    assert index.shape == weight.shape == (rows, 16 if cubic else 4)
    assert (index.dtype, weight.dtype) == (torch.int32, torch.float32)
    expected_index, expected_weight = reference_vision.position_taps(grids.cpu(), rows, merge, side, cubic)
    assert torch.equal(index.cpu(), expected_index)
    assert (weight.cpu() - expected_weight).abs().max() <= 2.5e-7
    assert (weight.cpu().double().sum(1) - 1).abs().max() <= 1e-6


def test_ends_of_bilinear_positions(target: Target) -> None:
    """The corners of a grid are the corners of the table, exactly; a grid as large as the table is the table."""
    grids, rows = table_of(target, [(1, 2, 6), (1, SIDE, SIDE)])
    index, weight = (x.cpu() for x in target.ops.position_taps(grids, rows, 1, SIDE, False))
    ends = [0, 5, 6, 11]  # of the first grid, in raster order since blocks are of one patch
    assert [dense(index, weight, SIDE**2)[row].nonzero().flatten().tolist() for row in ends] == [
        [0], [SIDE - 1], [SIDE * (SIDE - 1)], [SIDE**2 - 1]
    ]  # fmt: skip
    assert torch.equal(dense(index, weight, SIDE**2)[12:], torch.eye(SIDE**2, dtype=torch.float64))


@pytest.mark.parametrize("cubic", [False, True])
def test_padding_has_no_position(target: Target, cubic: bool) -> None:
    """Rows behind the last item have entry 0 with weight 0, in an empty batch as well."""
    for sizes, padding, unused in ((GRIDS[:2], 21, 40), ((), 9, 3), ((), 9, 0), ((), 0, 0)):
        grids, rows = table_of(target, sizes, padding, unused)
        index, weight = target.ops.position_taps(grids, rows, 2, SIDE, cubic)
        assert len(index) == len(weight) == rows
        assert not index[rows - padding :].any() and not weight[rows - padding :].any()
        check_guards(grids)


@pytest.mark.parametrize("cubic", [False, True])
@pytest.mark.parametrize(("rows", "hidden"), [(1, 8), (5, 63), (7, 64), (9, 2056), (4, 2100), (0, 16), (3, 1)])
@pytest.mark.parametrize("has_bias", [False, True])
def test_add(target: Target, dtype: torch.dtype, cubic: bool, rows: int, hidden: int, has_bias: bool) -> None:
    """A row takes its bias and its weighted entries in fp32 and is rounded once, wherever the rows lie."""
    taps, entries = (16, 36) if cubic else (4, 9)
    generator = torch.Generator().manual_seed(rows)
    index = torch.randint(0, entries, (rows, taps), generator=generator, dtype=torch.int32)
    index[1::2] = index[0 : rows // 2 * 2 : 2]  # neighbours that share what they take
    index = target.guarded(index)
    weight = target.randn(rows, taps, seed=1)
    table = target.randn(entries, hidden, dtype=dtype, seed=2)
    bias = target.randn(hidden, dtype=dtype, seed=3) if has_bias else None
    for make in (lambda x: x, strided, lambda x: strided(x, 3)):
        x = make(target.randn(rows, hidden, dtype=dtype, seed=4))
        exact = x.double() + (weight.double()[:, :, None] * table.double()[index.long()]).sum(1)
        exact = exact if bias is None else exact + bias.double()
        beside = x.untyped_storage().nbytes()
        target.ops.add_positions(x, bias, table, index, weight)
        check_error("add_positions", x, exact)
        if beside == (rows * hidden + 128) * dtype.itemsize:
            check_guards(x)
        elif rows:
            assert x.as_strided((rows, x.stride(0) - hidden), x.stride(), hidden).isnan().all()


@pytest.mark.parametrize("cubic", [False, True])
def test_positions_of_a_batch(target: Target, dtype: torch.dtype, cubic: bool) -> None:
    """Taps and sum together give each item's interpolated table, and leave padding as it is."""
    grids, rows = table_of(target, [GRIDS[1], GRIDS[4]], padding=5, unused=2)
    table = target.randn(SIDE**2, 72, dtype=dtype)
    x = target.randn(rows, 72, dtype=dtype, seed=1)
    before = x.double()
    exact = dense(*reference_vision.position_taps(grids.cpu(), rows, 2, SIDE, cubic), SIDE**2) @ table.cpu().double()
    target.ops.add_positions(x, None, table, *target.ops.position_taps(grids, rows, 2, SIDE, cubic))
    check_error("add_positions", x, before.cpu() + exact)
    assert torch.equal(x[-5:].double(), before[-5:])


@pytest.mark.parametrize("half", [1, 16, 18, 20, 300])
@pytest.mark.parametrize("merge", [1, 2])
def test_rotary(target: Target, half: int, merge: int) -> None:
    """The first half of the columns turns by a patch's row, the second by its column; padding does not turn."""
    grids, rows = table_of(target, GRIDS[:3] if half < 300 else GRIDS[:1], padding=6, unused=4)
    inv_freq = target.guarded(10000.0 ** (-torch.arange(half) / half))
    cos, sin = target.ops.vision_rotary(grids, rows, merge, inv_freq)
    place = torch.nn.functional.pad(places(GRIDS[:3] if half < 300 else GRIDS[:1], merge), (0, 0, 0, 6))[:, :2]
    angles = (place[:, :, None].float() * inv_freq.cpu()).flatten(1).double()
    check_error("vision_rotary", cos, angles.cos())
    check_error("vision_rotary", sin, angles.sin())
    assert (cos.cpu() - angles.cos()).abs().max() <= 2e-7 and (sin.cpu() - angles.sin()).abs().max() <= 2e-7
    check_guards(grids, inv_freq)


def test_rotary_of_few_rows(target: Target) -> None:
    """An empty batch is padding alone; rows may end inside a block; no frequencies and no rows are no launch."""
    inv_freq = target.guarded(torch.ones(3))
    for rows in (0, 1, 7):
        grids, _ = table_of(target, ())
        cos, sin = target.ops.vision_rotary(grids, rows, 2, inv_freq)
        assert cos.shape == sin.shape == (rows, 6)
        assert (cos == 1).all() and (sin == 0).all()
    assert target.ops.vision_rotary(grids, 4, 2, inv_freq[:0])[0].shape == (4, 0)


def test_bad_arguments_are_refused(target: Target) -> None:
    """A wrong shape, type or size is an error that names the argument."""
    grids, rows = table_of(target, GRIDS[:1])
    x, table, weight = target.randn(4, 8), target.randn(9, 8), target.randn(4, 4)
    index = target.guarded(torch.zeros(4, 4, dtype=torch.int32))
    with pytest.raises(RuntimeError, match="grids must have four columns"):
        target.ops.position_taps(grids[:, :3].contiguous(), rows, 2, SIDE, False)
    with pytest.raises(RuntimeError, match="grids has another dtype"):
        target.ops.vision_rotary(grids.int(), rows, 2, weight[0])
    with pytest.raises(RuntimeError, match="side must be"):
        target.ops.position_taps(grids, rows, 2, 4097, True)
    with pytest.raises(RuntimeError, match="merge must be"):
        target.ops.position_taps(grids, rows, 0, SIDE, True)
    with pytest.raises(RuntimeError, match="inv_freq has another dtype"):
        target.ops.vision_rotary(grids, rows, 2, weight[0].double())
    with pytest.raises(RuntimeError, match="table has another dtype"):
        target.ops.add_positions(x, None, table.bfloat16(), index, weight)
    with pytest.raises(RuntimeError, match="table must have rows as long"):
        target.ops.add_positions(x, None, table[:, :4].contiguous(), index, weight)
    with pytest.raises(RuntimeError, match="index has another dtype"):
        target.ops.add_positions(x, None, table, index.long(), weight)
    with pytest.raises(RuntimeError, match="index must have 4 or 16 columns"):
        target.ops.add_positions(x, None, table, index[:, :3].contiguous(), weight)
    with pytest.raises(RuntimeError, match="weight has another shape"):
        target.ops.add_positions(x, None, table, index, weight[:3])
    with pytest.raises(RuntimeError, match="bias has another shape"):
        target.ops.add_positions(x, table[0, :4].clone(), table, index, weight)
    with pytest.raises(RuntimeError, match="last axis contiguous"):
        target.ops.add_positions(target.randn(8, 4).t(), None, table, index, weight)


def test_ops_trace(target: Target, dtype: torch.dtype) -> None:
    """Schemas, fakes and tracing hold up to torch's own checks."""
    with torch.inference_mode(False):
        grids = torch.tensor([[0, 1, 2, 4]], device=target.device)
        x, bias, table = (torch.randn(shape, dtype=dtype, device=target.device) for shape in ((8, 16), 16, (9, 16)))
        index, weight = target.ops.position_taps(grids, 8, 2, 3, False)
        check_op(target.ops.position_taps, (grids, 12, 2, 3, True))
        check_op(target.ops.vision_rotary, (grids, 12, 2, torch.ones(4, device=target.device)))
        check_op(target.ops.add_positions, (x, bias, table, index, weight))
