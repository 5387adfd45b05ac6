"""The GLM-V families beside transformers': tower, prefill, chunks that cut items, batches, paged decode.

Next: tests/unit/worker/models/test_glm4v.py
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tessera_kernels import reference
from tests.parity.glm4v_oracle import split_placeholder_mask
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
from tests.tiny_glm4v import CLIP_MEAN, CLIP_STD, make_tiny_glm4v, make_tiny_glm4v_moe
from worker.models.base import CausalLM, EncoderInput
from worker.models.encoder import grid_of
from worker.models.loader import load_encoders, load_model

pytestmark = pytest.mark.slow

FEATURES_TOLERANCE = 5e-5  # features are of order one; fp32 rounding through blocks and merger
LOGITS_TOLERANCE = 5e-4  # the rule allows 1e-3; logits reach 30, and transformers itself is 2e-4 off its own float64
MARGIN = 2e-4  # below it, two right implementations may choose differently
CONTINUATION = 64

Pair = tuple[CausalLM, Any]


def open_pair(path: Path) -> Pair:
    """Our model and transformers' of the same checkpoint."""
    from transformers import AutoModelForImageTextToText

    return load_model(path), split_placeholder_mask(AutoModelForImageTextToText.from_pretrained(path).eval())


@pytest.fixture(scope="module", params=["dense", "moe"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """GLM-4.1V in the older spelling of its config, GLM-4.5V in the newer."""
    path = tmp_path_factory.mktemp("tiny")
    if request.param == "dense":
        make_tiny_glm4v(path, style="4.57", seed=3)
    else:
        make_tiny_glm4v_moe(path, style="5.x", seed=4)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield open_pair(path)
    torch.set_num_threads(threads)


def item(seed: int, frames: int, height: int, width: int) -> EncoderInput:
    """A noisy still (no frames) or clip; sides in patches."""
    shape = (max(frames, 1), height * 14, width * 14, 3)
    pixels = torch.from_numpy(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))
    return EncoderInput("video" if frames else "image", "pixels_u8", pixels, (-(-shape[0] // 2), height, width))


def patches(pixels: torch.Tensor) -> torch.Tensor:
    """What the Hugging Face processor makes of pixels that need no resize."""
    values = (pixels.float() / 255 - torch.tensor(CLIP_MEAN)) / torch.tensor(CLIP_STD)
    padded = torch.cat((values, values[-1:])) if len(values) % 2 else values
    return reference.patchify(padded, 14, 2, 2)


def add(model: CausalLM, oracle: Any, prompt: Prompt, *parts: EncoderInput | int) -> Prompt:
    """Append items with their markers as GLM's processor lays them down, and runs of ordinary tokens."""
    config = oracle.config
    begin, end = config.image_start_token_id, config.image_end_token_id
    for part in parts:
        if isinstance(part, int):
            prompt.text(np.random.default_rng(len(prompt.ids)).integers(20, 400, part).tolist())
        elif part.modality == "image":
            prompt.text([begin]).item(model, part).text([end])
        else:
            prompt.text([config.video_start_token_id, begin]).item(model, part, between=(end, 30, begin))
            prompt.text([end, 31, config.video_end_token_id])
    return prompt


PROMPTS: dict[str, tuple[EncoderInput | int, ...]] = {
    "text": (21,),
    "image": (4, item(1, 0, 4, 12), 5),
    "two images": (item(2, 0, 8, 2), item(3, 0, 2, 2), 3),
    "clip": (3, item(4, 5, 4, 6), 6),
    "mixed": (3, item(1, 0, 4, 12), 2, item(4, 5, 4, 6), 1, item(2, 0, 8, 2), item(5, 4, 2, 2), 4),
}


def make_prompt(pair: Pair, name: str) -> Prompt:
    """One of the kinds of prompt that positions and embeddings can go wrong in."""
    return add(*pair, Prompt(), *PROMPTS[name])


def oracle_inputs(prompt: Prompt) -> dict[str, torch.Tensor]:
    """The same prompt as transformers takes it."""
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
            inputs[values] = torch.cat([patches(item.tensor) for item in items])
            inputs[grids] = torch.tensor([item.grid_thw for item in items])
    return inputs


def assert_continued(pair: Pair, prompt: Prompt) -> None:
    """Greedy tokens are transformers' up to a step too close to call, and so are the logits up to there."""
    model, oracle = pair
    [driver] = make_drivers(model, [prompt], room=CONTINUATION)
    tokens, logits = decode(driver, run([driver], [len(prompt.ids)]), CONTINUATION)
    expected_tokens, expected = oracle_continuation(oracle, oracle_inputs(prompt), CONTINUATION)
    top = expected.topk(2).values
    close = (top[:, 0] - top[:, 1] < MARGIN).nonzero().flatten().tolist()
    sure = close[0] if close else CONTINUATION
    assert tokens[:sure] == expected_tokens[:sure]
    assert (logits - expected)[: sure + 1].abs().max() < LOGITS_TOLERANCE
    assert sure > 16, "the prompt says too little"


@pytest.mark.parametrize("name", PROMPTS)
def test_prefill_and_decode_equal_transformers(pair: Pair, name: str) -> None:
    """64 greedy tokens, across block borders, are transformers', and so are the logits of every step."""
    assert_continued(pair, make_prompt(pair, name))


@pytest.mark.parametrize("name", ["two images", "clip", "mixed"])
def test_positions_equal_transformers(pair: Pair, name: str) -> None:
    """mRoPE positions and the position of the first new token are transformers'."""
    model, oracle = pair
    prompt = make_prompt(pair, name)
    [driver] = make_drivers(model, [prompt])
    inputs = oracle_inputs(prompt)
    grids = {key: inputs.get(key) for key in ("image_grid_thw", "video_grid_thw")}
    positions, delta = oracle.model.get_rope_index(inputs["input_ids"], inputs["mm_token_type_ids"], **grids)
    assert np.array_equal(driver.positions, positions[:, 0].numpy())
    assert driver.next_position == len(prompt.ids) + int(delta)


@pytest.mark.parametrize("chunk", [1, 5])
def test_chunks_that_cut_items_change_nothing(pair: Pair, chunk: int) -> None:
    """Prefill in odd chunks gives the whole prefill's logits at every token."""
    model, _ = pair
    prompt = make_prompt(pair, "mixed")
    [whole] = make_drivers(model, [prompt])
    expected = run([whole], [len(prompt.ids)], all_logits=True)
    [driver] = make_drivers(model, [prompt])
    assert (prefill(driver, chunk, all_logits=True) - expected).abs().max() < LOGITS_TOLERANCE


def test_no_logits_wanted_still_fills_the_cache(pair: Pair) -> None:
    """A chunk without logits, which leaves the last layer no row to finish, returns none; the next sees its keys."""
    model, _ = pair
    prompt = make_prompt(pair, "mixed")
    [whole], [driver] = make_drivers(model, [prompt]), make_drivers(model, [prompt])
    expected = run([whole], [len(prompt.ids)])
    batch = make_batch([(driver, 20)])
    batch.logits_indices = batch.logits_indices[:0]
    assert model.forward(batch, driver.cache).shape == (0, model.vocab_size)
    assert (run([driver], [len(prompt.ids) - 20]) - expected).abs().max() < LOGITS_TOLERANCE


def test_chunks_and_decodes_share_a_batch(pair: Pair) -> None:
    """A sequence's logits do not depend on the chunks and decodes that run beside it."""
    model, oracle = pair
    cases = [make_prompt(pair, name) for name in ("mixed", "text", "image")]
    drivers = make_drivers(model, cases, room=64)
    for prompt, ours in zip(cases, run_together(drivers, (5, 6, 7), 30), strict=True):
        theirs = oracle_continuation(oracle, oracle_inputs(prompt), len(ours))[1]
        assert len(ours) >= 8
        assert (ours - theirs).abs().max() < LOGITS_TOLERANCE


@pytest.mark.parametrize("kind", ["pixels_u8", "patches"])
def test_the_tower_alone_equals_transformers(tmp_path: Path, kind: str) -> None:
    """A tower loaded by itself gives transformers' embeddings of stills and clips of many sizes, encoded together."""
    from transformers import Glm4vForConditionalGeneration

    make_tiny_glm4v(tmp_path, seed=11, vision={"depth": 3})
    [encoder] = load_encoders(tmp_path)
    oracle = Glm4vForConditionalGeneration.from_pretrained(tmp_path).eval()
    sizes = [(0, 6, 8), (0, 2, 2), (0, 2, 40), (2, 4, 6), (5, 2, 4), (1, 10, 10), (4, 10, 4)]
    pixels = [item(seed, *size) for seed, size in enumerate(sizes)]
    rows = [patches(one.tensor) for one in pixels]
    inputs = pixels
    if kind == "patches":
        inputs = [EncoderInput(one.modality, kind, row, one.grid_thw) for one, row in zip(pixels, rows, strict=True)]
    outputs = encoder(inputs)
    frames = [
        (1, h, w) for t, h, w in map(grid_of, pixels) for _ in range(t)
    ]  # as transformers cuts clips before the tower
    with torch.no_grad():
        expected = oracle.model.visual(torch.cat(rows), grid_thw=torch.tensor(frames)).pooler_output
    assert [len(output.embeddings) for output in outputs] == [t * h * w // 4 for t, h, w in map(grid_of, pixels)]
    assert (torch.cat([output.embeddings for output in outputs]) - expected).abs().max() < FEATURES_TOLERANCE
    assert all(output.deepstack is None for output in outputs)


def test_bf16_is_as_near_to_fp32_as_transformers(tmp_path: Path) -> None:
    """In bf16 the tower strays no further from the fp32 features than twice what transformers' own bf16 does."""
    from transformers import Glm4vForConditionalGeneration

    make_tiny_glm4v(tmp_path, seed=11)
    clip = item(3, 4, 6, 8)
    [ours] = load_model(tmp_path, dtype="bfloat16").encode([clip])
    features = []
    for dtype in (torch.float32, torch.bfloat16):
        oracle = Glm4vForConditionalGeneration.from_pretrained(tmp_path, dtype=dtype).eval()
        with torch.no_grad():
            found = oracle.model.get_video_features(patches(clip.tensor).to(dtype), torch.tensor([clip.grid_thw]))
        features.append(found.pooler_output[0].float())
    exact, theirs = features
    assert (ours.embeddings.float() - exact).square().mean() < 2 * (theirs - exact).square().mean()


@pytest.mark.parametrize("text", [{}, {"mixtures": True}])
def test_glm46v_serves_the_language_model_that_its_config_names(tmp_path: Path, text: dict[str, Any]) -> None:
    """GLM-4.6V equals transformers with either language model, experts fused on disk included."""
    if text:
        text = {"model_type": "glm4v_moe_text", "moe_intermediate_size": 32, "n_routed_experts": 8}
        text |= {"num_experts_per_tok": 2, "head_dim": 32, "num_hidden_layers": 2}
    make_tiny_glm4v(tmp_path, family="glm46v", seed=6, text=text)
    pair = open_pair(tmp_path)
    assert_continued(pair, make_prompt(pair, "mixed"))


def test_a_text_only_checkpoint_serves_text(tmp_path: Path) -> None:
    """Without its vision part a checkpoint has no modalities and continues text as transformers does."""
    import json

    make_tiny_glm4v(tmp_path, seed=3)
    _, oracle = open_pair(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["vision_config"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    _drop_tensors(tmp_path / "model.safetensors", "model.visual.")
    model = load_model(tmp_path)
    assert model.info.modalities == () and model.info.image_token_id is None
    assert_continued((model, oracle), Prompt().text(list(range(40, 60))))


def _drop_tensors(file: Path, prefix: str) -> None:
    from safetensors.torch import load_file, save_file

    kept = {name: tensor.clone() for name, tensor in load_file(file).items() if not name.startswith(prefix)}
    save_file(kept, file, metadata={"format": "pt"})


def test_pixels_matter(pair: Pair) -> None:
    """Another picture gives other logits: the parity above is not about text alone."""
    model, _ = pair
    logits = []
    for seed in (1, 2):
        prompt = add(*pair, Prompt(), item(seed, 0, 4, 4)).text([30, 31, 32])
        [driver] = make_drivers(model, [prompt])
        logits.append(run([driver], [len(prompt.ids)]))
    assert (logits[0] - logits[1]).abs().max() > 1.0
