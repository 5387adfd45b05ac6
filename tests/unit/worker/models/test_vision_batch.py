"""Forwards of a bounded number of patches, and what comes of cutting items into them.

Next: tests/unit/worker/models/test_vision_cuda.py
"""

import math
from pathlib import Path

import pytest
import torch

from tests.unit.worker.models import checkpoints, glm_checkpoints
from worker.models.base import EncoderInput, ItemSize
from worker.models.encoder import VisionEncoder, grid_of
from worker.models.loader import load_encoders
from worker.models.vision_batch import VisionBatch, grid_table, plan

SIDE = 4  # pixels of a patch


def write_glm(folder: Path) -> Path:
    """Write GLM's checkpoint."""
    return checkpoints.write(folder, glm_checkpoints.tensors(), glm_checkpoints.config())


FAMILIES = {"qwen3_vl": checkpoints.write, "glm4v": write_glm}


def item(seed: int, frames: int, height: int, width: int, modality: str = "video") -> EncoderInput:
    """An item of noise; sides in patches."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (frames, height * SIDE, width * SIDE, 3), generator=generator, dtype=torch.uint8)
    return EncoderInput(modality, "pixels_u8", pixels, (math.ceil(frames / 2), height, width))


ITEMS = [
    item(0, 7, 2, 4),  # a clip whose last frame stands alone
    item(1, 1, 4, 6, "image"),
    item(2, 1, 2, 2),  # a clip of one frame
    item(3, 1, 6, 2, "image"),
    item(4, 4, 4, 4),
]


@pytest.mark.parametrize("budget", [1, 8, 24, 40, 1000])
def test_forwards_hold_the_budget(budget: int) -> None:
    """Every row of every item is in one forward, and none is larger than the budget unless it is a single frame."""
    forwards = plan(ITEMS, budget, 2)
    assert all(forwards)
    for pieces in forwards:
        frame = math.prod(grid_of(pieces[0].item)[1:])
        assert sum(piece.rows for piece in pieces) <= max(budget, frame)
        if frame > budget:
            assert len(pieces) == 1 and grid_of(pieces[0].item)[0] == 1
    for place, whole in enumerate(ITEMS):
        parts = [piece.item for pieces in forwards for piece in pieces if piece.place == place]
        assert torch.equal(torch.cat([part.tensor for part in parts]), whole.tensor)
        assert sum(grid_of(part)[0] for part in parts) == grid_of(whole)[0]


def test_ready_patches_are_cut_by_rows() -> None:
    """A clip of ready patches is cut between its temporal patches as well."""
    rows = torch.arange(3 * 8.0)[:, None].expand(24, 6)
    [[first], [second]] = plan([EncoderInput("video", "patches", rows, (3, 2, 4))], 16, 2)
    assert (first.item.grid_thw, second.item.grid_thw) == ((2, 2, 4), (1, 2, 4))
    assert torch.equal(torch.cat((first.item.tensor, second.item.tensor)), rows)


def test_kinds_lie_together() -> None:
    """Stills come first, then clips, then ready patches: each kind is one product."""
    ready = EncoderInput("image", "patches", torch.zeros(4, 6), (1, 2, 2))
    [pieces] = plan([ready, *ITEMS], 1000, 2)
    assert [piece.place for piece in VisionBatch(pieces, torch.device("cpu")).pieces] == [2, 4, 1, 3, 5, 0]


def test_the_table_of_grids() -> None:
    """Each entry has its first row; those left over begin behind the last row and have none."""
    table = grid_table([(1, 4, 6), (2, 2, 2)], 4, 40)
    assert table.tolist() == [[0, 1, 4, 6], [24, 2, 2, 2], [40, 0, 0, 0], [40, 0, 0, 0]]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("budget", [8, 24])
def test_cutting_changes_nothing(tmp_path: Path, family: str, budget: int) -> None:
    """Items come out as they went in, and equal to those of one forward, however small the forwards are."""
    [encoder] = load_encoders(FAMILIES[family](tmp_path))
    assert isinstance(encoder, VisionEncoder)
    whole = encoder(ITEMS)
    encoder.tower.patch_budget = budget  # type: ignore[attr-defined]
    for one, other, source in zip(encoder(ITEMS), whole, ITEMS, strict=True):
        assert one.embeddings.shape == (math.prod(grid_of(source)) // 4, encoder.hidden_size)
        assert torch.allclose(one.embeddings, other.embeddings, atol=1e-5)
        if other.deepstack is not None:
            assert one.deepstack is not None and torch.allclose(one.deepstack, other.deepstack, atol=1e-5)


def test_memory_is_bounded_by_the_budget(tmp_path: Path) -> None:
    """A clip's workspace grows up to the budget and no further; a single frame's is its own."""
    [encoder] = load_encoders(checkpoints.write(tmp_path))
    encoder.tower.patch_budget = 32  # type: ignore[attr-defined]

    def workspace(*grid: int) -> int:
        return encoder.workspace_bytes(ItemSize("video", grid))  # type: ignore[arg-type]

    assert workspace(1, 2, 4) < workspace(2, 2, 4) < workspace(4, 2, 4)
    assert workspace(4, 2, 4) == workspace(400, 2, 4) < workspace(1, 6, 6)


def test_a_clip_of_one_frame_has_clips_statistics(tmp_path: Path) -> None:
    """One frame of a clip is normed as clips are, also where images have other statistics."""
    folder = checkpoints.write(tmp_path)
    (folder / "preprocessor_config.json").write_text('{"image_mean": [0.1, 0.2, 0.3], "image_std": [0.9, 0.8, 0.7]}')
    [encoder] = load_encoders(folder)
    one = item(5, 1, 2, 4)
    two = EncoderInput("video", "pixels_u8", one.tensor.expand(2, -1, -1, -1), one.grid_thw)
    first, second = encoder([one, two])
    assert torch.allclose(first.embeddings, second.embeddings, atol=1e-5)
