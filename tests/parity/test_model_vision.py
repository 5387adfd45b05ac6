"""The vision tower beside transformers': pixels and patches, stills and clips, several at once.

Next: tests/parity/test_model_text.py
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tessera_kernels import reference
from tests.tiny_models import make_tiny_qwen3vl
from worker.models.base import CausalLM, EncoderInput
from worker.models.loader import load_model

pytestmark = pytest.mark.slow

TOLERANCE = 3e-5  # features are of order one; fp32 rounding through three blocks


@pytest.fixture(scope="module", params=["4.57", "5.x"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[CausalLM, Any]:
    """Our model and transformers' of the same checkpoint."""
    from transformers import Qwen3VLForConditionalGeneration

    path: Path = tmp_path_factory.mktemp("tiny")
    make_tiny_qwen3vl(path, style=request.param, seed=11)
    return load_model(path), Qwen3VLForConditionalGeneration.from_pretrained(path).eval()


def frames(seed: int, count: int, height: int, width: int) -> torch.Tensor:
    """Noise; sides in patches."""
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.integers(0, 256, (count, height * 16, width * 16, 3), dtype=np.uint8))


def patches(pixels: torch.Tensor) -> torch.Tensor:
    """What the Hugging Face processor makes of pixels that need no resize."""
    values = (pixels.float() / 255 - 0.5) / 0.5
    padded = torch.cat((values, values[-1:])) if len(values) % 2 else values
    return reference.patchify(padded, 16, 2, 2)


ITEMS = [
    ("image", 1, 6, 8),
    ("image", 1, 2, 2),
    ("image", 1, 2, 40),
    ("video", 2, 4, 6),
    ("video", 5, 2, 4),
    ("video", 4, 10, 10),
]


@torch.no_grad()
def oracle_features(oracle: Any, rows: torch.Tensor, grids: list[tuple[int, int, int]]) -> tuple[torch.Tensor, Any]:
    """Return transformers' embeddings and DeepStack features of several items."""
    out = oracle.model.visual(rows, grid_thw=torch.tensor(grids))
    return out.pooler_output, torch.stack(out.deepstack_features)


@pytest.mark.parametrize("kind", ["pixels_u8", "patches"])
def test_a_batch_of_items_equals_transformers(pair: tuple[CausalLM, Any], kind: str) -> None:
    """Embeddings and DeepStack features of stills and clips of many sizes, encoded together, are transformers'."""
    model, oracle = pair
    inputs, rows, grids = [], [], []
    for seed, (modality, count, height, width) in enumerate(ITEMS):
        pixels = frames(seed, count, height, width)
        grids.append((-(-count // 2), height, width))
        rows.append(patches(pixels))
        tensor = pixels if kind == "pixels_u8" else rows[-1]
        inputs.append(EncoderInput(modality, kind, tensor, grids[-1]))
    outputs = model.encode(inputs)
    embeddings, deepstack = oracle_features(oracle, torch.cat(rows), grids)
    assert (torch.cat([output.embeddings for output in outputs]) - embeddings).abs().max() < TOLERANCE
    ours = torch.cat([output.deepstack for output in outputs if output.deepstack is not None], dim=1)
    assert (ours - deepstack).abs().max() < TOLERANCE


def test_bf16_is_as_near_to_fp32_as_transformers(pair: tuple[CausalLM, Any], tmp_path: Path) -> None:
    """In bf16 the tower strays no further from the fp32 features than transformers' own bf16 does."""
    from transformers import Qwen3VLForConditionalGeneration

    make_tiny_qwen3vl(tmp_path, seed=11)
    model = load_model(tmp_path, dtype="bfloat16")
    oracle = Qwen3VLForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.bfloat16).eval()
    exact = Qwen3VLForConditionalGeneration.from_pretrained(tmp_path).eval()
    pixels = frames(3, 4, 6, 8)
    expected, _ = oracle_features(exact, patches(pixels), [(2, 6, 8)])
    theirs, _ = oracle_features(oracle, patches(pixels).bfloat16(), [(2, 6, 8)])
    [ours] = model.encode([EncoderInput("video", "pixels_u8", pixels, (2, 6, 8))])
    assert (ours.embeddings.float() - expected).square().mean() < 2 * (theirs.float() - expected).square().mean()
