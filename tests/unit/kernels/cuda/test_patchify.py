"""Pixels of mixed items to patch rows on CUDA, exactly.

Next: kernels/csrc/patchify.cu
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from tessera_kernels import reference
from tests.cuda_ops import Target, check_guards, check_op

CENTRE = 128.0
# (patch, merge, temporal): the kernels of sides 14 and 16 with every length of vector, and any other side
SHAPES = [(16, 2, 1), (16, 2, 2), (14, 2, 1), (14, 2, 2), (14, 2, 3), (16, 1, 2), (14, 4, 1), (6, 2, 2), (5, 3, 1)]
# (frames, height, width), in blocks of patches: stills, a clip of whole temporal patches, clips with odd frames
ITEMS = [(1, 1, 2), (4, 1, 1), (1, 2, 1), (5, 2, 3), (1, 1, 1)]


@dataclass(frozen=True)
class Batch:
    """Items side by side.

    Args:
        pixels: uint8 (bytes,).
        items: (k, 5); see `vision.patches_of_items`.
        exact: what the op should return, float64.
    """

    pixels: torch.Tensor
    items: torch.Tensor
    exact: torch.Tensor


def make_batch(
    target: Target,
    shape: tuple[int, int, int],
    sizes: Sequence[tuple[int, int, int]] = ITEMS,
    offset: int = 0,
    padding: int = 0,
    unused: int = 0,
    centre: float = CENTRE,
) -> Batch:
    """Return noisy items, their first byte `offset` bytes into memory, with padding rows and unused entries."""
    patch, merge, temporal = shape
    generator = torch.Generator().manual_seed(3)
    flat, table, exact = [torch.zeros(offset, dtype=torch.uint8)], [], []
    rows, first_byte = 0, offset
    for frames, *blocks in sizes:
        height, width = (size * merge for size in blocks)
        pixels = torch.randint(0, 256, (frames, height * patch, width * patch, 3), generator=generator).to(torch.uint8)
        table.append((rows, first_byte, frames, height, width))
        whole = torch.cat((pixels, *[pixels[-1:]] * (-frames % temporal)))
        exact.append(reference.patchify(whole, patch, merge, temporal).double() - centre)
        flat.append(pixels.flatten())
        rows, first_byte = rows + len(exact[-1]), first_byte + pixels.numel()
    exact.append(torch.zeros(padding, 3 * temporal * patch**2, dtype=torch.float64))
    table += [(rows + padding * (2 * index >= unused), 0, 0, 0, 0) for index in range(unused)]
    items = torch.tensor(table, dtype=torch.int64).view(-1, 5)
    return Batch(target.guarded(torch.cat(flat)), target.guarded(items), torch.cat(exact))


def run(target: Target, batch: Batch, shape: tuple[int, int, int], dtype: torch.dtype, centre: float = CENTRE) -> None:
    """Run the op and compare it with the batch's exact rows."""
    ours = target.ops.centred_patches(batch.pixels, batch.items, len(batch.exact), *shape, centre, dtype)
    assert ours.dtype is dtype and ours.is_contiguous()
    assert torch.equal(ours.cpu().double(), batch.exact)
    check_guards(batch.pixels, batch.items)


@pytest.mark.parametrize("shape", SHAPES)
def test_mixed_items(target: Target, dtype: torch.dtype, shape: tuple[int, int, int]) -> None:
    """Stills and clips of all sizes are cut in one launch; an unfinished temporal patch repeats the last frame."""
    run(target, make_batch(target, shape), shape, dtype)


@pytest.mark.parametrize("offset", [1, 2, 4, 8])
@pytest.mark.parametrize("patch", [14, 16])
def test_pixels_anywhere_in_memory(target: Target, patch: int, offset: int) -> None:
    """Pixels need not begin at a multiple of anything."""
    shape = (patch, 2, 2)
    run(target, make_batch(target, shape, ITEMS[:3], offset), shape, torch.bfloat16)


@pytest.mark.parametrize("shape", [(16, 2, 2), (14, 2, 1), (5, 2, 1)])
@pytest.mark.parametrize("padding", [4, 21])
def test_padding_is_zero(target: Target, dtype: torch.dtype, shape: tuple[int, int, int], padding: int) -> None:
    """Rows behind the last item are zeros, also where they end inside a block, beside entries that are not used."""
    run(target, make_batch(target, shape, ITEMS[:2], padding=padding, unused=40), shape, dtype)


def test_without_items(target: Target) -> None:
    """No items are padding alone; no rows are no launch."""
    shape = (16, 2, 1)
    run(target, make_batch(target, shape, (), padding=8), shape, torch.bfloat16)
    run(target, make_batch(target, shape, (), padding=8, unused=2), shape, torch.bfloat16)
    run(target, make_batch(target, shape, ()), shape, torch.bfloat16)


def test_many_items(target: Target) -> None:
    """More items than a warp has lanes are told apart."""
    shape = (6, 2, 1)
    run(target, make_batch(target, shape, [(1, 1, 1 + index % 2) for index in range(70)]), shape, torch.float32)


def test_a_strip(target: Target) -> None:
    """The longest aspect that is served, 200 to 1, is an item like others."""
    shape = (14, 2, 1)
    run(target, make_batch(target, shape, [(1, 1, 200)]), shape, torch.bfloat16)


def test_centres_between_whole_numbers(target: Target) -> None:
    """A centre of whole 256ths is subtracted exactly."""
    shape = (16, 2, 1)
    for centre in (0.0, 127.5, 117.25, -3.00390625):
        run(target, make_batch(target, shape, ITEMS[:1], centre=centre), shape, torch.float32, centre)


def test_items_beyond_two_gigabytes(target: Target, tmp_path: Path) -> None:
    """Where an item's pixels lie is counted in 64 bits."""
    shape, first_byte = (14, 2, 1), (1 << 31) + 16
    batch = make_batch(target, shape, [(1, 1, 1)])
    count = batch.pixels.numel()
    # a file with a hole, so that nothing is written before the item
    pixels = torch.from_file(str(tmp_path / "pixels"), shared=True, size=first_byte + count, dtype=torch.uint8)
    pixels[first_byte:] = batch.pixels.cpu()
    items = torch.tensor([[0, first_byte, 1, 2, 2]], device=target.device)
    ours = target.ops.centred_patches(pixels.to(target.device), items, 4, *shape, CENTRE, torch.bfloat16)
    assert torch.equal(ours.cpu().double(), batch.exact)


def test_bad_arguments_are_refused(target: Target) -> None:
    """A wrong shape, type or size is an error that names the argument."""
    batch, rest = make_batch(target, (16, 2, 1), ITEMS[:1]), (8, 16, 2, 1, CENTRE, torch.bfloat16)
    op = target.ops.centred_patches
    with pytest.raises(RuntimeError, match="pixels has another dtype"):
        op(batch.pixels.float(), batch.items, *rest)
    with pytest.raises(RuntimeError, match="pixels must be flat"):
        op(batch.pixels.view(2, -1), batch.items, *rest)
    with pytest.raises(RuntimeError, match="items must have five columns"):
        op(batch.pixels, batch.items[:, :4].contiguous(), *rest)
    with pytest.raises(RuntimeError, match="items has another dtype"):
        op(batch.pixels, batch.items.int(), *rest)
    with pytest.raises(RuntimeError, match="between 1 and 1024"):
        op(batch.pixels, batch.items, 8, 0, 2, 1, CENTRE, torch.bfloat16)
    with pytest.raises(RuntimeError, match="centre must be a multiple"):
        op(batch.pixels, batch.items, 8, 16, 2, 1, 123.675, torch.bfloat16)
    with pytest.raises(RuntimeError, match="float32, bfloat16 and float16"):
        op(batch.pixels, batch.items, 8, 16, 2, 1, CENTRE, torch.int32)
    with pytest.raises(RuntimeError, match="rows must be"):
        op(batch.pixels, batch.items, 1 << 31, 16, 2, 1, CENTRE, torch.bfloat16)


def test_op_traces(target: Target, dtype: torch.dtype) -> None:
    """Schema, fake and tracing hold up to torch's own checks."""
    with torch.inference_mode(False):
        pixels = torch.zeros(16 * 16 * 8 * 3, dtype=torch.uint8, device=target.device)
        items = torch.tensor([[0, 0, 1, 2, 4]], device=target.device)
        check_op(target.ops.centred_patches, (pixels, items, 12, 16, 2, 1, CENTRE, dtype))
