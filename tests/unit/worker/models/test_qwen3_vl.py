"""The model's own rules: what an item must look like, what it costs, which is the worst.

Next: tests/parity/test_model_text.py
"""

from pathlib import Path

import pytest
import torch

from tessera.errors import InvalidArgument
from tests.unit.worker.models import checkpoints
from worker.models.base import CausalLM, EncoderInput, ItemSize
from worker.models.encoder import _widest_grid
from worker.models.loader import load_model


@pytest.fixture
def model(tmp_path: Path) -> CausalLM:
    """A model with patches of 4 pixels and one DeepStack layer."""
    return load_model(checkpoints.write(tmp_path))


def test_info(model: CausalLM) -> None:
    """What `Describe` tells stands in the checkpoint's files."""
    info = model.info
    assert info.architecture == "Qwen3VLForConditionalGeneration"
    assert (info.vocab_size, info.hidden_size, info.max_position_embeddings) == (40, 16, 512)
    assert (info.image_token_id, info.video_token_id) == (8, 9)
    assert (info.vision_start_token_id, info.vision_end_token_id) == (5, 6)
    assert (info.patch_size, info.spatial_merge_size, info.temporal_patch_size) == (4, 2, 2)
    assert info.num_deepstack_layers == 1
    assert info.eos_token_ids == (3,)
    assert info.modalities == ("image", "video")
    assert model.head_dims == (16, 16)


GOOD = torch.zeros(1, 8, 16, 3, dtype=torch.uint8)
DEEPSTACK = {"deepstack": torch.zeros(1, 2, 16)}


@pytest.mark.parametrize(
    ("kind", "tensor", "grid", "side", "field"),
    [
        ("pixels_u8", GOOD, (1, 2, 6), {}, "tensor.shape"),
        ("pixels_u8", GOOD[0], (1, 2, 4), {}, "tensor.shape"),
        ("pixels_u8", GOOD, (2, 2, 4), {}, "grid_thw.t"),
        ("pixels_u8", GOOD, (1, 3, 4), {}, "grid_thw"),
        ("pixels_u8", GOOD, (1, 0, 4), {}, "grid_thw"),
        ("patches", torch.zeros(8, 95), (1, 2, 4), {}, "tensor.shape"),
        ("embeddings", torch.zeros(3, 16), (1, 2, 4), DEEPSTACK, "tensor.shape"),
        ("embeddings", torch.zeros(2, 16), (1, 2, 4), {}, "side_tensors[deepstack]"),
        ("embeddings", torch.zeros(2, 16), (1, 2, 4), {"deepstack": torch.zeros(2, 2, 16)}, "side_tensors[deepstack]."),
        ("samples", torch.zeros(3, 1), (1, 2, 4), {}, "payload_kind"),
    ],
)
def test_a_bad_item_is_refused_with_its_field(
    model: CausalLM, kind: str, tensor: torch.Tensor, grid: tuple[int, int, int], side: dict, field: str
) -> None:
    """The error names the part of the item that does not fit, or is missing."""
    with pytest.raises(InvalidArgument) as caught:
        model.encode([EncoderInput("image", kind, tensor, grid, side)])
    assert (caught.value.field or "").startswith(field)


def test_embeddings_pass_through_beside_pixels(model: CausalLM) -> None:
    """Ready embeddings come back as they are, in their place among encoded items."""
    pixels = EncoderInput("image", "pixels_u8", GOOD, (1, 2, 4))
    ready = torch.randn(2, 16, generator=torch.Generator().manual_seed(0))
    embeddings = EncoderInput("image", "embeddings", ready, (1, 2, 4), DEEPSTACK)
    first, second, third = model.encode([pixels, embeddings, pixels])
    assert torch.equal(second.embeddings, ready)
    assert second.deepstack is not None
    assert torch.equal(second.deepstack, DEEPSTACK["deepstack"])
    assert torch.allclose(first.embeddings, third.embeddings, atol=1e-5)


def test_an_item_does_not_depend_on_its_neighbours(model: CausalLM) -> None:
    """Encoded alone or in a batch, an item gives the same embeddings."""
    generator = torch.Generator().manual_seed(1)

    def noise(frames: int, height: int, width: int) -> torch.Tensor:
        return torch.randint(0, 256, (frames, height, width, 3), generator=generator, dtype=torch.uint8)

    items = [
        EncoderInput("image", "pixels_u8", noise(1, 8, 16), (1, 2, 4)),
        EncoderInput("video", "pixels_u8", noise(3, 16, 8), (2, 4, 2)),
        EncoderInput("image", "pixels_u8", noise(1, 8, 8), (1, 2, 2)),
    ]
    for item, together in zip(items, model.encode(items), strict=True):
        [alone] = model.encode([item])
        assert alone.embeddings.shape[0] == model.item_tokens(item.size)
        assert torch.allclose(alone.embeddings, together.embeddings, atol=1e-5)
        assert alone.deepstack is not None
        assert together.deepstack is not None
        assert torch.allclose(alone.deepstack, together.deepstack, atol=1e-5)


def test_an_odd_clip_repeats_its_last_frame(model: CausalLM) -> None:
    """Three frames are encoded as four, the last twice."""
    frames = torch.arange(3 * 8 * 8 * 3).view(3, 8, 8, 3).to(torch.uint8)
    even = torch.cat((frames, frames[-1:]))
    odd, padded = model.encode([EncoderInput("video", "pixels_u8", f, (2, 2, 2)) for f in (frames, even)])
    assert torch.allclose(odd.embeddings, padded.embeddings, atol=1e-6)


def test_the_worst_item_fills_budget_and_context(model: CausalLM) -> None:
    """The largest legal item is as large as the pixel budget or the context allows, and can be encoded."""
    sizes = model.worst_items(50)
    assert {size.modality: model.item_tokens(size) for size in sizes} == {"image": 50, "video": 50}
    assert model.item_tokens(model.worst_items(10**9)[0]) == 1_003_520 // 64
    outputs = model.encode([model.dummy_input(size) for size in sizes])
    assert [output.embeddings.shape[0] for output in outputs] == [50, 50]
    assert outputs[0].size_bytes == 50 * model.encoder_token_bytes


@pytest.mark.parametrize(("tokens", "grid"), [(1, (1, 1)), (2, (1, 2)), (7, (1, 7)), (12, (3, 4)), (16384, (128, 128))])
def test_widest_grid(tokens: int, grid: tuple[int, int]) -> None:
    """The grid with the most tokens is taken, the squarest among equals."""
    assert _widest_grid(tokens) == grid


def test_widest_grid_keeps_to_the_legal_aspect() -> None:
    """A prime number of tokens does not become a line that no picture may have."""
    rows, columns = _widest_grid(4099)
    assert columns <= 200 * rows
    assert 4090 <= rows * columns <= 4099


def test_estimates_grow_with_the_work(model: CausalLM) -> None:
    """More patches, tokens or logits never cost less."""
    assert model.encoder_workspace_bytes(ItemSize("video", (1, 4, 4))) < model.encoder_workspace_bytes(
        ItemSize("video", (2, 4, 4))
    )
    assert model.forward_workspace_bytes(10, 1) < model.forward_workspace_bytes(20, 1)
    assert model.forward_workspace_bytes(10, 1) < model.forward_workspace_bytes(10, 2)
    assert model.kv_block_bytes(16) == 2 * 2 * 16 * 16 * 4
