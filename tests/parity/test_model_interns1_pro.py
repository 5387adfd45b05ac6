"""InternS1-Pro beside a float64 reference: prefill, decode, chunks, batches, vision and time series.

transformers has no classes for the family; the reference is `tests/parity/interns1_pro_reference.py`.

Next: tests/unit/worker/models/test_interns1_pro.py
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.parity.interns1_pro_reference import Array, Reference
from tests.parity.model_harness import Driver, Prompt, make_drivers, run
from tests.tiny_interns1_pro import make_tiny_interns1_pro
from tests.tiny_interns1_pro_weights import FP8_BLOCK
from worker.models.base import CausalLM, EncoderInput
from worker.models.loader import load_encoders, load_model

pytestmark = pytest.mark.slow

LOGITS_TOLERANCE = 1e-3  # logits reach 37
EMBEDDING_TOLERANCE = 1e-4
CONTINUATION = 64


class Pair(NamedTuple):
    """Our model and the reference of the same checkpoint."""

    model: CausalLM
    reference: Reference
    path: Path


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """One tiny checkpoint."""
    path = make_tiny_interns1_pro(tmp_path_factory.mktemp("tiny"), seed=3)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield Pair(load_model(path), Reference(path), path)
    torch.set_num_threads(threads)


def visual(rng: np.random.Generator, frames: int, height: int, width: int) -> EncoderInput:
    """A noisy still (one frame) or clip; sides in patches."""
    pixels = torch.from_numpy(rng.integers(0, 256, (frames, height * 16, width * 16, 3), dtype=np.uint8))
    modality = "image" if frames == 1 else "video"
    return EncoderInput(modality, "pixels_u8", pixels, (-(-frames // 2), height, width))


def series(rng: np.random.Generator, length: int, channels: int, rate: float) -> EncoderInput:
    """A random walk far from zero, each channel on a scale of its own."""
    steps = rng.normal(size=(length, channels)).cumsum(0) * np.arange(1, channels + 1) + 50
    samples = torch.from_numpy(steps.astype(np.float32))
    return EncoderInput("time_series", "samples", samples, sampling_rate_hz=rate)


def words(rng: np.random.Generator, count: int) -> list[int]:
    """Ids of ordinary tokens."""
    return [int(token) for token in rng.integers(20, 400, count)]


def prompts(model: CausalLM) -> dict[str, Prompt]:
    """The kinds of prompt that positions and embeddings can go wrong in."""
    rng = np.random.default_rng(5)
    wide, tall, clip = visual(rng, 1, 4, 12), visual(rng, 1, 8, 2), visual(rng, 5, 4, 6)
    slow, stereo, sound = series(rng, 83, 1, 0), series(rng, 180, 3, 100), series(rng, 1000, 1, 16_000)
    mixed = Prompt().text(words(rng, 3)).item(model, wide).text(words(rng, 2)).item(model, stereo).item(model, clip)
    return {
        "text": Prompt().text(words(rng, 21)),
        "image": Prompt().text(words(rng, 4)).item(model, wide).text(words(rng, 5)),
        "video": Prompt().text(words(rng, 3)).item(model, clip).text(words(rng, 6)),
        "series": Prompt().item(model, slow).text(words(rng, 2)).item(model, stereo).item(model, sound).text([31]),
        "mixed": mixed.text(words(rng, 1)).item(model, tall).item(model, sound).text(words(rng, 4)),
    }


NAMES = ["text", "image", "video", "series", "mixed"]


def encoded(reference: Reference, item: EncoderInput) -> Array:
    """An item's embeddings by the reference."""
    if item.modality == "time_series":
        return reference.series(item.tensor.numpy(), item.sampling_rate_hz)
    return reference.vision(item.tensor.numpy())


def expected_logits(reference: Reference, prompt: Prompt, continuation: list[int]) -> Array:
    """The reference's logits of every token of prompt and continuation."""
    rows: dict[int, Array] = {}
    for item, ranges in zip(prompt.items, prompt.ranges, strict=True):
        places = [row for span in ranges for row in range(span.offset, span.end)]
        rows |= dict(zip(places, encoded(reference, item), strict=True))
    return reference.logits(prompt.ids + continuation, rows)


def assert_continuation(reference: Reference, driver: Driver, steps: list[torch.Tensor]) -> None:
    """Each token that was chosen is the reference's choice after all tokens before it, so both go the same way."""
    prompt = driver.prompt
    tokens = driver.ids[len(prompt.ids) :]
    expected = expected_logits(reference, prompt, tokens)[len(prompt.ids) - 1 : -1]
    assert tokens == expected.argmax(-1).tolist()
    assert np.abs(torch.stack(steps).numpy() - expected).max() < LOGITS_TOLERANCE


@pytest.mark.parametrize("name", NAMES)
def test_prefill_and_greedy_decode_equal_the_reference(pair: Pair, name: str) -> None:
    """The first logits and 64 greedy tokens, across the borders of blocks, are the reference's."""
    prompt = prompts(pair.model)[name]
    [driver] = make_drivers(pair.model, [prompt], room=CONTINUATION)
    steps = []
    for _ in range(CONTINUATION):
        steps.append(run([driver], [len(driver.ids) - driver.computed])[0])
        driver.ids.append(int(steps[-1].argmax()))
    assert_continuation(pair.reference, driver, steps)


@pytest.mark.parametrize("chunk", [1, 7])
def test_chunks_that_cut_items_change_nothing(pair: Pair, chunk: int) -> None:
    """Prefill in chunks of any size gives the reference's logits at every token."""
    prompt = prompts(pair.model)["mixed"]
    [driver] = make_drivers(pair.model, [prompt])
    parts = []
    while driver.computed < len(prompt.ids):
        parts.append(run([driver], [min(chunk, len(prompt.ids) - driver.computed)], all_logits=True))
    expected = expected_logits(pair.reference, prompt, [])
    assert np.abs(torch.cat(parts).numpy() - expected).max() < LOGITS_TOLERANCE


def test_sequences_share_a_batch(pair: Pair) -> None:
    """Chunks and decodes of two sequences in one step give each the reference's continuation."""
    drivers = make_drivers(pair.model, [prompts(pair.model)[name] for name in ("mixed", "series")], room=64)
    seen: list[list[torch.Tensor]] = [[] for _ in drivers]
    for _ in range(40):
        counts = [min(7 + index, len(d.ids) - d.computed) for index, d in enumerate(drivers)]
        logits = run(drivers, counts)
        for index, driver in enumerate(drivers):
            if driver.computed == len(driver.ids):
                seen[index].append(logits[index])
                driver.ids.append(int(logits[index].argmax()))
    for driver, steps in zip(drivers, seen, strict=True):
        assert len(steps) >= 20
        assert_continuation(pair.reference, driver, steps)


def test_positions_count_tokens(pair: Pair) -> None:
    """Every token of a prompt, placeholder or not, stands one after the one before it, on all three rows."""
    [driver] = make_drivers(pair.model, [prompts(pair.model)["mixed"]])
    assert (driver.positions == np.arange(len(driver.prompt.ids))).all()
    assert driver.next_position == len(driver.prompt.ids)


SERIES = [(83, 1, 0.0), (180, 3, 100.0), (1000, 1, 16_000.0), (37, 2, 2.0), (5, 1, 1.0), (190, 1, 1.0), (82, 1, 0.0)]


def test_series_of_a_batch_equal_the_reference_one_by_one(pair: Pair) -> None:
    """Length, channels, rate and neighbours may differ, and more tokens come than there are learned positions."""
    rng = np.random.default_rng(9)
    items = [series(rng, *case) for case in SERIES]
    together = pair.model.encode(items)
    for item, output in zip(items, together, strict=True):
        [alone] = pair.model.encode([item])
        expected = encoded(pair.reference, item)
        assert output.embeddings.shape == expected.shape == (pair.model.item_tokens(item.size), 64)
        assert np.abs(output.embeddings.numpy() - expected).max() < EMBEDDING_TOLERANCE
        assert (output.embeddings - alone.embeddings).abs().max() < EMBEDDING_TOLERANCE
    assert max(len(output.embeddings) for output in together) > 20


def test_pictures_and_clips_of_a_batch_equal_the_reference(pair: Pair) -> None:
    """The tower is Qwen3-VL's without DeepStack; odd clips repeat their last frame."""
    rng = np.random.default_rng(9)
    items = [visual(rng, 1, 2, 2), visual(rng, 3, 4, 6), visual(rng, 1, 10, 4), visual(rng, 4, 2, 8)]
    for item, output in zip(items, pair.model.encode(items), strict=True):
        assert output.deepstack is None
        assert np.abs(output.embeddings.numpy() - encoded(pair.reference, item)).max() < EMBEDDING_TOLERANCE


def test_encoders_run_alone(pair: Pair) -> None:
    """A worker that only encodes loads the towers without the language model and gives the same embeddings."""
    rng = np.random.default_rng(9)
    vision, time_series = load_encoders(pair.path)
    for encoder, item in ((vision, visual(rng, 1, 4, 4)), (time_series, series(rng, 180, 3, 100))):
        assert item.modality in encoder.modalities
        [alone], [inside] = encoder([item]), pair.model.encode([item])
        assert torch.equal(alone.embeddings, inside.embeddings)


VARIANTS: dict[str, dict[str, Any]] = {
    "frequencies are counted out": {"rope_scaling": {"num_inv_freq": 13, "fope_sep_head": True}},
    "heads share their mixing": {"rope_scaling": {"num_inv_freq": None, "fope_sep_head": False, "fope_init_factor": 1}},
    "one group, a dense layer": {"router_n_groups": 1, "mlp_only_layers": [1]},
    "one expert of each group, biases": {"router_n_groups": 4, "attention_bias": True},
    "one KV head": {"num_key_value_heads": 1},
    "as many KV heads as heads": {"num_key_value_heads": 4},
}


@pytest.mark.parametrize("text", VARIANTS.values(), ids=VARIANTS.keys())
def test_variants_of_the_config_equal_the_reference(tmp_path: Path, text: dict[str, Any]) -> None:
    """Logits follow the formulas whatever text_config says, in prefill and in single steps."""
    path = make_tiny_interns1_pro(tmp_path, with_vision=False, with_series=False, text={"num_hidden_layers": 2} | text)
    prompt = Prompt().text(words(np.random.default_rng(2), 20))
    [driver] = make_drivers(load_model(path), [prompt])
    logits = torch.cat([run([driver], [count], all_logits=True) for count in (17, 1, 2)])
    assert np.abs(logits.numpy() - Reference(path).logits(prompt.ids, {})).max() < LOGITS_TOLERANCE


def test_fp8_blocks_are_multiplied_out(tmp_path: Path) -> None:
    """An e4m3 checkpoint gives the logits of its numbers times their blocks' scales."""
    path = make_tiny_interns1_pro(tmp_path, with_vision=False, with_series=False, fp8=True)
    stored = load_file(path / "model.safetensors")
    weights = {}
    for name, tensor in stored.items():
        scale = stored.get(f"{name}_scale_inv")
        if scale is not None:
            spread = np.kron(scale.numpy(), np.ones(FP8_BLOCK))[: tensor.shape[0], : tensor.shape[1]]
            weights[name] = tensor.double() * torch.from_numpy(spread)
        elif not name.endswith("_scale_inv"):
            weights[name] = tensor
    assert sum(tensor.dtype is torch.float8_e4m3fn for tensor in stored.values()) == 3 * (4 + 16 * 3)
    prompt = Prompt().text(words(np.random.default_rng(2), 20))
    [driver] = make_drivers(load_model(path), [prompt])
    expected = Reference(path, weights).logits(prompt.ids, {})
    assert np.abs(run([driver], [20], all_logits=True).numpy() - expected).max() < LOGITS_TOLERANCE
