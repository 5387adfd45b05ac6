"""The language model beside transformers': prefill, chunks that cut items, batches, paged decode, both config styles.

Next: tests/parity/test_model_vision.py
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.parity.model_harness import (
    Prompt,
    decode,
    make_batch,
    make_drivers,
    oracle_continuation,
    prefill,
    run,
    run_together,
)
from tests.tiny_models import make_tiny_qwen3vl
from worker.models.base import CausalLM, EncoderInput
from worker.models.loader import load_model

pytestmark = pytest.mark.slow

LOGITS_TOLERANCE = 1e-4  # the rule allows 1e-3; logits reach 25, so this is about 30 units in the last place
CONTINUATION = 24


@pytest.fixture(scope="module", params=["4.57", "5.x"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[CausalLM, Any]]:
    """Our model and transformers' of the same checkpoint: untied in the older style, tied in the newer."""
    from transformers import Qwen3VLForConditionalGeneration

    path: Path = tmp_path_factory.mktemp("tiny")
    make_tiny_qwen3vl(path, style=request.param, seed=3, tie=request.param == "5.x")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield load_model(path), Qwen3VLForConditionalGeneration.from_pretrained(path).eval()
    torch.set_num_threads(threads)


def image(rng: np.random.Generator, height: int, width: int) -> EncoderInput:
    """A noisy still; sides in patches."""
    pixels = torch.from_numpy(rng.integers(0, 256, (1, height * 16, width * 16, 3), dtype=np.uint8))
    return EncoderInput("image", "pixels_u8", pixels, (1, height, width))


def clip(rng: np.random.Generator, frames: int, height: int, width: int) -> EncoderInput:
    """A noisy clip; sides in patches."""
    pixels = torch.from_numpy(rng.integers(0, 256, (frames, height * 16, width * 16, 3), dtype=np.uint8))
    return EncoderInput("video", "pixels_u8", pixels, (-(-frames // 2), height, width))


def prompts(model: CausalLM) -> dict[str, Prompt]:
    """The kinds of prompt that positions, embeddings and DeepStack can go wrong in."""
    rng = np.random.default_rng(5)

    def words(count: int) -> list[int]:
        return rng.integers(20, 400, count).tolist()

    wide, tall, clip_a, clip_b = image(rng, 4, 12), image(rng, 8, 2), clip(rng, 5, 4, 6), clip(rng, 4, 2, 2)
    return {
        "text": Prompt().text(words(21)),
        "one token": Prompt().text(words(1)),
        "image": Prompt().text(words(4)).item(model, wide).text(words(5)),
        "image first": Prompt().item(model, tall).text(words(3)),
        "run of one": Prompt().text(words(2)).item(model, image(rng, 2, 2)).text(words(2)),
        "clip": Prompt().text(words(3)).item(model, clip_a).text(words(6)),
        "mixed": Prompt()
        .text(words(3))
        .item(model, wide)
        .text(words(2))
        .item(model, clip_a)
        .text(words(1))
        .item(model, tall)
        .text(words(4))
        .item(model, clip_b)
        .text(words(3)),
    }


NAMES = ["text", "one token", "image", "image first", "run of one", "clip", "mixed"]


def oracle_inputs(prompt: Prompt) -> dict[str, torch.Tensor]:
    """The same prompt as transformers takes it."""
    from tessera_kernels import reference

    inputs = {
        "input_ids": torch.tensor([prompt.ids]),
        "attention_mask": torch.ones(1, len(prompt.ids), dtype=torch.long),
        "mm_token_type_ids": torch.tensor([prompt.mm_token_type_ids]),
    }
    for modality, values, grids in (
        ("image", "pixel_values", "image_grid_thw"),
        ("video", "pixel_values_videos", "video_grid_thw"),
    ):
        items = [item for item in prompt.items if item.modality == modality]
        if items:
            inputs[values] = torch.cat([reference.patchify(_padded(item.tensor), 16, 2, 2) for item in items])
            inputs[grids] = torch.tensor([item.grid_thw for item in items])
    return inputs


def _padded(pixels: torch.Tensor) -> torch.Tensor:
    values = (pixels.float() / 255 - 0.5) / 0.5
    return torch.cat((values, values[-1:])) if len(values) % 2 else values


@pytest.mark.parametrize("name", NAMES)
def test_prefill_and_decode_equal_transformers(pair: tuple[CausalLM, Any], name: str) -> None:
    """Greedy tokens are transformers', and the logits of every step lie within the tolerance."""
    model, oracle = pair
    prompt = prompts(model)[name]
    [driver] = make_drivers(model, [prompt])
    tokens, logits = decode(driver, run([driver], [len(prompt.ids)]), CONTINUATION)
    expected_tokens, expected_logits = oracle_continuation(oracle, oracle_inputs(prompt), CONTINUATION)
    assert tokens == expected_tokens
    assert (logits - expected_logits).abs().max() < LOGITS_TOLERANCE


@pytest.mark.parametrize("name", NAMES)
def test_positions_equal_transformers(pair: tuple[CausalLM, Any], name: str) -> None:
    """mRoPE positions and the position of the first new token are transformers'."""
    model, oracle = pair
    prompt = prompts(model)[name]
    [driver] = make_drivers(model, [prompt])
    inputs = oracle_inputs(prompt)
    grids = {key: inputs.get(key) for key in ("image_grid_thw", "video_grid_thw")}
    positions, delta = oracle.model.get_rope_index(inputs["input_ids"], inputs["mm_token_type_ids"], **grids)
    assert np.array_equal(driver.positions, positions[:, 0].numpy())
    assert driver.next_position == len(prompt.ids) + int(delta)


@pytest.mark.parametrize("chunk", [1, 3, 7])
def test_chunks_that_cut_items_change_nothing(pair: tuple[CausalLM, Any], chunk: int) -> None:
    """Prefill in chunks of any size gives the whole prefill's logits at every token."""
    model, _ = pair
    prompt = prompts(model)["mixed"]
    [whole] = make_drivers(model, [prompt])
    expected = run([whole], [len(prompt.ids)], all_logits=True)
    [driver] = make_drivers(model, [prompt])
    assert (prefill(driver, chunk, all_logits=True) - expected).abs().max() < LOGITS_TOLERANCE


def test_chunks_and_decodes_share_a_batch(pair: tuple[CausalLM, Any]) -> None:
    """A sequence's logits do not depend on the chunks and decodes that run beside it."""
    model, oracle = pair
    cases = [prompts(model)[name] for name in ("mixed", "text", "clip")]
    drivers = make_drivers(model, cases, room=64)
    for prompt, ours in zip(cases, run_together(drivers, (5, 6, 7), 40), strict=True):
        theirs = oracle_continuation(oracle, oracle_inputs(prompt), len(ours))[1]
        assert len(ours) >= 10
        assert (ours - theirs).abs().max() < LOGITS_TOLERANCE


def test_no_logits_wanted_still_fills_the_cache(pair: tuple[CausalLM, Any]) -> None:
    """A chunk without logits returns none, and the next chunk sees its keys and values."""
    model, _ = pair
    prompt = prompts(model)["mixed"]
    [whole], [driver] = make_drivers(model, [prompt]), make_drivers(model, [prompt])
    expected = run([whole], [len(prompt.ids)])
    batch = make_batch([(driver, 20)])
    batch.logits_indices = batch.logits_indices[:0]
    assert model.forward(batch, driver.cache).shape == (0, model.vocab_size)
    assert (run([driver], [len(prompt.ids) - 20]) - expected).abs().max() < LOGITS_TOLERANCE


def test_pixels_matter(pair: tuple[CausalLM, Any]) -> None:
    """Another picture gives other logits: the parity above is not about text alone."""
    model, _ = pair
    rng = np.random.default_rng(1)
    [a] = make_drivers(model, [Prompt().item(model, image(rng, 4, 4)).text([30, 31, 32])])
    [b] = make_drivers(model, [Prompt().item(model, image(rng, 4, 4)).text([30, 31, 32])])
    assert (run([a], [7]) - run([b], [7])).abs().max() > 1.0
