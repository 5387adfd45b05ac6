"""The engine on a tiny Qwen3-VL beside transformers: chunks, caches, preemption and neighbours change nothing.

Next: tests/parity/test_engine_qwen3_5.py
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tessera.hashing import content_hash
from tessera.items import MultimodalItem
from tessera.modality import Modality, PayloadKind
from tests.parity.model_harness import Prompt
from tests.parity.test_model_text import NAMES, prompts
from tests.tiny_models import VOCAB_SIZE, make_tiny_qwen3vl
from worker.engine.config import EngineConfig
from worker.engine.engine import Engine
from worker.engine.sampling_params import SamplingParams
from worker.engine.sequence import SequenceGroup, SequenceItem, TokenSpan
from worker.models.base import CausalLM, EncoderInput
from worker.models.loader import load_model

pytestmark = pytest.mark.slow

NEW_TOKENS = 24
MARGIN = 2e-4  # below it, two right implementations may choose differently
WIDEST = 256


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> CausalLM:
    """A tiny random checkpoint that hardly ever ends by itself."""
    path = tmp_path_factory.mktemp("tiny")
    make_tiny_qwen3vl(path, seed=3, eos_token_ids=(VOCAB_SIZE - 1,))
    return load_model(path)


@pytest.fixture(scope="module")
def expected(model: CausalLM, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, Any]]:
    """transformers' greedy continuation of each prompt, and the margin of each step."""
    from transformers import Qwen3VLForConditionalGeneration

    path: Path = tmp_path_factory.mktemp("oracle")
    make_tiny_qwen3vl(path, seed=3, eos_token_ids=(VOCAB_SIZE - 1,))
    oracle = Qwen3VLForConditionalGeneration.from_pretrained(path).eval()
    return {name: continuation(oracle, model, prompt) for name, prompt in prompts(model).items()}


def continuation(oracle: Any, model: CausalLM, prompt: Prompt) -> tuple[list[int], list[float]]:
    """Return transformers' greedy tokens and their margins."""
    inputs: dict[str, torch.Tensor] = {
        "input_ids": torch.tensor([prompt.ids]),
        "mm_token_type_ids": torch.tensor([prompt.mm_token_type_ids]),
    }
    names = {"image": ("pixel_values", "image_grid_thw"), "video": ("pixel_values_videos", "video_grid_thw")}
    for modality, (pixels, grids) in names.items():
        chosen = [item for item in prompt.items if item.modality == modality]
        if chosen:
            inputs[pixels] = torch.cat([patches(item) for item in chosen])
            inputs[grids] = torch.tensor([item.grid_thw for item in chosen])
    with torch.no_grad():
        out = oracle.generate(
            **inputs, max_new_tokens=NEW_TOKENS, do_sample=False, output_logits=True, return_dict_in_generate=True
        )
    top = torch.stack(out.logits, 1)[0].topk(2, dim=-1)
    return top.indices[:, 0].tolist(), (top.values[:, 0] - top.values[:, 1]).tolist()


def patches(item: EncoderInput) -> torch.Tensor:
    """Return an item's pixels as transformers' processors lay them out."""
    t, h, w = item.grid_thw
    frames = item.tensor.float().div(127.5).sub(1.0)
    frames = torch.cat([frames, frames[-1:].expand(2 * t - len(frames), -1, -1, -1)])
    grid = frames.view(t, 2, h // 2, 2, 16, w // 2, 2, 16, 3).permute(0, 2, 5, 3, 6, 8, 1, 4, 7)
    return grid.reshape(t * h * w, 3 * 2 * 16 * 16)


def staged(item: EncoderInput) -> MultimodalItem:
    """Return an item as a gateway stages it."""
    pixels = item.tensor.numpy()
    digest = content_hash(item.modality, "pixels_u8", "U8", pixels, item.grid_thw)
    return MultimodalItem(Modality(item.modality), PayloadKind.PIXELS_U8, digest, array=pixels, grid_thw=item.grid_thw)


def submit(engine: Engine, name: str, prompt: Prompt, max_tokens: int = NEW_TOKENS) -> None:
    """Stage a prompt's items and add it."""
    items = [staged(item) for item in prompt.items]
    for item in items:
        engine.items.put(item)
    placed = tuple(
        SequenceItem(item.modality, item.content_hash, tuple(TokenSpan(r.offset, r.length) for r in ranges), grid)
        for item, ranges, grid in zip(items, prompt.ranges, (item.grid_thw for item in items), strict=True)
    )
    params = SamplingParams(max_tokens=max_tokens, ignore_eos=True)
    engine.add(SequenceGroup(name, tuple(prompt.ids), params, placed))


def run(engine: Engine) -> dict[str, list[int]]:
    """Step until all have ended; return their tokens."""
    tokens: dict[str, list[int]] = {}
    while not engine.is_idle:
        for update in engine.step().updates:
            assert update.failure is None, update.failure
            tokens.setdefault(update.request_id, []).extend(update.token_ids)
    load = engine.load()
    assert (load.used_blocks, load.pinned_items) == (0, 0)
    assert load.free_blocks + load.cached_blocks == load.total_blocks
    return tokens


def make_engine(model: CausalLM, **limits: Any) -> Engine:
    """Return an engine on the model."""
    config = {"max_model_len": WIDEST, "num_blocks": 128, "block_size": 8, "max_sequences": 8}
    size = {"item_token_bytes": model.encoder_token_bytes, "encoder_cache_bytes": 1 << 20}
    return Engine(EngineConfig(**(config | size | limits)), model)  # type: ignore[arg-type]


def check(
    expected: dict[str, tuple[list[int], list[float]]], found: dict[str, list[int]], margin: float = MARGIN
) -> None:
    """Compare each continuation until the first step that could go either way."""
    for name, tokens in found.items():
        right, margins = expected[name.split("/")[0]]
        sure = next((step for step, gap in enumerate(margins) if gap < margin), len(margins))
        assert sure > 4, name
        assert tokens[:sure] == right[:sure], name


@pytest.mark.parametrize("name", NAMES)
def test_one_prompt_alone(name: str, model: CausalLM, expected: dict[str, Any]) -> None:
    """Each kind of prompt is continued as transformers does."""
    engine = make_engine(model)
    submit(engine, name, prompts(model)[name])
    check(expected, run(engine))


@pytest.mark.parametrize(
    "limits",
    [
        {},
        {"max_batched_tokens": 32},
        {"max_batched_tokens": 8, "enable_prefix_cache": False, "retain_encoded": False},
        {"max_batched_tokens": 11, "max_sequences": 3},
        {"num_blocks": 20, "max_model_len": 144},
        {"num_blocks": 20, "max_model_len": 144, "max_batched_tokens": 16, "enable_prefix_cache": False},
        {"encoder_cache_bytes": 0},
    ],
    ids=["wide", "32 tokens", "8 tokens, no caches", "3 seats", "few blocks", "few blocks, 16 tokens", "tight items"],
)
def test_all_at_once(limits: dict[str, Any], model: CausalLM, expected: dict[str, Any]) -> None:
    """All prompts together, under every pressure, cold and then warm, are continued as each alone."""
    cases = prompts(model)
    if limits.get("encoder_cache_bytes") == 0:
        most = max(sum(span.length for span in ranges) for prompt in cases.values() for ranges in prompt.ranges)
        limits = {"encoder_cache_bytes": most * model.encoder_token_bytes}
    engine = make_engine(model, **limits)
    for round_ in ("cold", "warm"):
        for name, prompt in cases.items():
            submit(engine, f"{name}/{round_}", prompt)
        check(expected, run(engine))
    if "num_blocks" in limits:
        assert engine.scheduler.num_preemptions > 0


def test_a_poisonous_item_harms_nobody_else(model: CausalLM, expected: dict[str, Any]) -> None:
    """Embeddings so large that the arithmetic overflows spoil their own request alone, and no block after it."""
    case = prompts(model)["image"]
    layers, tokens = model.info.num_deepstack_layers, model.item_tokens(case.items[0].size)
    huge = np.full((tokens, model.hidden_size), 3e38, np.float32)
    side = np.full((layers, tokens, model.hidden_size), 3e38, np.float32)
    engine = make_engine(model, num_blocks=40, max_model_len=144)
    poison = Prompt(list(case.ids), [], list(case.ranges), list(case.mm_token_type_ids))
    poison.items = [
        EncoderInput(
            "image", "embeddings", torch.from_numpy(huge), case.items[0].grid_thw, {"deepstack": torch.from_numpy(side)}
        )
    ]
    for name in ("text", "image", "mixed"):
        submit(engine, name, prompts(model)[name])
    submit_embeddings(engine, poison)
    found = run(engine)
    assert len(found.pop("poison")) == NEW_TOKENS
    check(expected, found)
    for name in ("clip", "image", "one token"):
        submit(engine, name, prompts(model)[name])
    check(expected, run(engine))


def submit_embeddings(engine: Engine, prompt: Prompt) -> None:
    """Add a prompt whose one item is precomputed embeddings."""
    from tessera.items import SideArray

    item = prompt.items[0]
    whole = MultimodalItem(
        Modality.IMAGE,
        PayloadKind.EMBEDDINGS,
        b"\7" * 32,
        "F32",
        item.tensor.numpy(),
        {"deepstack": SideArray("F32", item.side["deepstack"].numpy())},
        item.grid_thw,
    )
    engine.items.put(whole)
    spans = tuple(TokenSpan(r.offset, r.length) for r in prompt.ranges[0])
    placed = SequenceItem("image", whole.content_hash, spans, item.grid_thw)
    params = SamplingParams(max_tokens=NEW_TOKENS, ignore_eos=True)
    engine.add(SequenceGroup("poison", tuple(prompt.ids), params, (placed,)))
