"""Qwen3.5, dense and MoE, beside transformers': greedy tokens across blocks, chunks, batches that share slots, bf16.

Next: tests/parity/test_model_qwen3_vl_moe.py
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.parity.model_harness import (
    Prompt,
    decode,
    make_batch,
    make_drivers,
    oracle_continuation,
    prefill,
    run_together,
)
from tests.parity.test_model_text import oracle_inputs, prompts
from tests.parity.test_model_vision import frames, patches
from tests.tiny_qwen3_5 import make_tiny_qwen3_5, make_tiny_qwen3_5_moe
from worker.models.base import CausalLM, EncoderInput
from worker.models.loader import load_encoders, load_model

pytestmark = pytest.mark.slow

# Logits reach 19. transformers takes prompts in chunks of 64 tokens, we take them token by token; what a state answers
# is normed, so where an answer is nearly nothing the rounding errors of both grow. Seeds are such that few do.
TOLERANCE = 1e-3
CONTINUATION = 64  # with blocks of 8 tokens
Pair = tuple[CausalLM, Any]

ENDS_IN_FULL = ["full_attention", "linear_attention", "linear_attention", "full_attention"]
KINDS: dict[str, Any] = {
    "dense": (make_tiny_qwen3_5, {"style": "4.57", "tie": False, "seed": 3, "text": {"attention_bias": True}}),
    "moe": (make_tiny_qwen3_5_moe, {"style": "5.x", "tie": True, "seed": 7, "text": {"layer_types": ENDS_IN_FULL}}),
}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny products gain nothing from more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", params=KINDS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Our model and transformers' of one checkpoint, in either spelling of its config."""
    from transformers import AutoModelForImageTextToText

    make, options = KINDS[request.param]
    path: Path = make(tmp_path_factory.mktemp("tiny"), **options)
    return load_model(path), AutoModelForImageTextToText.from_pretrained(path).eval()


def words(count: int) -> Prompt:
    """A prompt of text."""
    return Prompt().text([20 + 7 * index % 380 for index in range(count)])


def inputs_of(oracle: Any, prompt: Prompt) -> dict[str, torch.Tensor]:
    """The same prompt as transformers takes it, which without vision takes no types of tokens."""
    inputs = oracle_inputs(prompt)
    if not hasattr(oracle.config, "vision_config"):
        del inputs["mm_token_type_ids"]
    return inputs


@pytest.mark.parametrize("name", ["one token", "text", "mixed"])
def test_prefill_and_decode_equal_transformers(pair: Pair, name: str) -> None:
    """64 greedy tokens after text, images and clips are transformers', the prompt taken in odd chunks."""
    model, oracle = pair
    prompt = prompts(model)[name]
    [driver] = make_drivers(model, [prompt], room=CONTINUATION)
    tokens, logits = decode(driver, prefill(driver, 13), CONTINUATION)
    expected_tokens, expected = oracle_continuation(oracle, inputs_of(oracle, prompt), CONTINUATION)
    assert tokens == expected_tokens
    assert len(set(expected_tokens)) > 8
    assert (logits - expected).abs().max() < TOLERANCE


def test_a_long_prompt_equals_transformers(pair: Pair) -> None:
    """The logits of all tokens of a prompt longer than two of transformers' chunks are its own."""
    model, oracle = pair
    prompt = words(150)
    [driver] = make_drivers(model, [prompt])
    with torch.no_grad():
        expected = oracle(input_ids=torch.tensor([prompt.ids])).logits[0]
    assert (prefill(driver, 150, all_logits=True) - expected).abs().max() < TOLERANCE


@pytest.mark.parametrize("chunk", [1, 3, 7])
def test_chunks_that_cut_items_change_nothing(pair: Pair, chunk: int) -> None:
    """Prefill in chunks of any size gives the whole prefill's logits at every token, and the same state."""
    model, _ = pair
    prompt = prompts(model)["mixed"]
    [whole], [driver] = make_drivers(model, [prompt]), make_drivers(model, [prompt])
    expected = prefill(whole, len(prompt.ids), all_logits=True)
    assert (prefill(driver, chunk, all_logits=True) - expected).abs().max() < TOLERANCE
    assert whole.cache.states is not None and driver.cache.states is not None
    ours, theirs = (cache.recurrent[:, driver.slot] for cache in (driver.cache.states, whole.cache.states))
    assert (ours - theirs).abs().max() < TOLERANCE


def test_chunks_and_decodes_share_a_batch(pair: Pair) -> None:
    """A sequence's logits do not depend on the chunks and decodes of other lengths that run beside it."""
    model, oracle = pair
    cases = [prompts(model)[name] for name in ("mixed", "text", "clip")]
    drivers = make_drivers(model, cases, room=64)
    for prompt, ours in zip(cases, run_together(drivers, (5, 6, 7), 30), strict=True):
        expected = oracle_continuation(oracle, inputs_of(oracle, prompt), len(ours))[1]
        assert len(ours) >= 10
        assert (ours - expected).abs().max() < TOLERANCE


def test_a_slot_is_used_again(pair: Pair) -> None:
    """A sequence that begins in the slot of one that has ended sees nothing of it."""
    model, _ = pair
    first, second = prompts(model)["clip"], prompts(model)["text"]
    [alone] = make_drivers(model, [second])
    expected = prefill(alone, 5)
    earlier, later = make_drivers(model, [first, second])
    later.slot = earlier.slot
    prefill(earlier, 9)
    assert torch.equal(prefill(later, 5), expected)


def test_no_logits_wanted_still_moves_the_state(pair: Pair) -> None:
    """A chunk without logits returns none, and the next chunk sees keys, values and state."""
    model, _ = pair
    prompt = prompts(model)["mixed"]
    [whole], [driver] = make_drivers(model, [prompt]), make_drivers(model, [prompt])
    batch = make_batch([(driver, 20)])
    batch.logits_indices = batch.logits_indices[:0]
    assert model.forward(batch, driver.cache).shape == (0, model.vocab_size)
    assert (prefill(driver, 100) - prefill(whole, 100)).abs().max() < TOLERANCE


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_only_checkpoint_equals_transformers(tmp_path: Path, kind: str) -> None:
    """The architecture for text, its config flat, has no encoders and gives transformers' logits."""
    from transformers import AutoModelForCausalLM

    path = KINDS[kind][0](tmp_path, text_only=True)
    model, oracle = load_model(path), AutoModelForCausalLM.from_pretrained(path).eval()
    assert model.info.modalities == () and model.info.image_token_id is None
    prompt = words(21)
    [driver] = make_drivers(model, [prompt], room=CONTINUATION)
    tokens, logits = decode(driver, prefill(driver, 5), CONTINUATION)
    expected_tokens, expected = oracle_continuation(oracle, inputs_of(oracle, prompt), CONTINUATION)
    assert tokens == expected_tokens
    assert (logits - expected).abs().max() < TOLERANCE


def test_the_tower_alone_equals_transformers(tmp_path: Path) -> None:
    """The vision encoder, loaded by itself, gives transformers' embeddings of stills and clips, without DeepStack."""
    from transformers import AutoModelForImageTextToText

    path = make_tiny_qwen3_5(tmp_path)
    [encoder] = load_encoders(path)
    pixels = [frames(1, 1, 6, 8), frames(2, 5, 2, 4)]
    grids = [(1, 6, 8), (3, 2, 4)]
    outputs = encoder(
        [
            EncoderInput(modality, "pixels_u8", tensor, grid)
            for modality, tensor, grid in zip(("image", "video"), pixels, grids, strict=True)
        ]
    )
    oracle = AutoModelForImageTextToText.from_pretrained(path).eval()
    with torch.no_grad():
        rows = torch.cat([patches(tensor) for tensor in pixels])
        expected = oracle.model.visual(rows, grid_thw=torch.tensor(grids)).pooler_output
    assert (torch.cat([output.embeddings for output in outputs]) - expected).abs().max() < 3e-5
    assert all(output.deepstack is None for output in outputs)


def test_bf16_is_as_near_to_fp32_as_transformers(tmp_path: Path) -> None:
    """In bf16 the logits stray hardly further from fp32 than transformers' own bf16 ones; the state stays fp32."""
    from transformers import AutoModelForImageTextToText

    path = make_tiny_qwen3_5(tmp_path)
    model = load_model(path, dtype="bfloat16")
    prompt = words(90)
    [driver] = make_drivers(model, [prompt])
    ours = prefill(driver, 31, all_logits=True)
    assert driver.cache.states is not None
    assert (driver.cache.states.conv.dtype, driver.cache.states.recurrent.dtype) == (torch.bfloat16, torch.float32)
    logits = {}
    for dtype in (torch.float32, torch.bfloat16):
        oracle = AutoModelForImageTextToText.from_pretrained(path, dtype=dtype).eval()
        with torch.no_grad():
            logits[dtype] = oracle(input_ids=torch.tensor([prompt.ids])).logits[0].float()
    exact, theirs = logits[torch.float32], logits[torch.bfloat16]
    assert (ours - exact).square().mean() < 1.5 * (theirs - exact).square().mean()
