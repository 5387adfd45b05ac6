"""Batch-invariant mode: every logit is, bit for bit, what the sequence alone gives, in fifty random mixes.

A mix draws a family, a build of the library, neighbours, the budget of a step, cache states, few or many blocks, forks
and threads. Alone means: nothing else in the engine, the whole prompt in one step, no caches, one thread.

Next: kernels/tessera_kernels/invariance.py
"""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tessera.items import MultimodalItem
from tessera.modality import Modality, PayloadKind
from tessera_kernels import cpu, invariance, library
from tessera_kernels.sampling import SampledRows
from tests.parity.families import MAKERS
from tests.parity.model_harness import Prompt
from tests.tiny_models import VOCAB_SIZE, make_tiny_qwen3vl
from tests.unit.kernels.conftest import BUILDS
from worker.engine.config import EngineConfig
from worker.engine.engine import Engine
from worker.engine.output import Logprob
from worker.engine.sampler import Draw, Rows, Sampler
from worker.engine.sampling_params import SamplingParams
from worker.engine.sequence import SequenceGroup, SequenceItem, TokenSpan
from worker.layers.graph import Recorder as GraphRecorder
from worker.models.base import CausalLM, EncoderInput
from worker.models.loader import load_model

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not BUILDS, reason="needs the C++ CPU library (make kernels)")]

BLOCK_SIZE = 8
NEW_TOKENS = 8
NUM_MIXES = 50
FAMILIES: dict[str, Callable[[Path], Path]] = {
    "qwen3_vl": lambda path: make_tiny_qwen3vl(path, eos_token_ids=(VOCAB_SIZE - 1,)),
    **MAKERS,
}
GREEDY = SamplingParams(NEW_TOKENS, ignore_eos=True)
PARAMS = {
    "text": replace(GREEDY, logprobs=True, top_logprobs=3),
    "long": replace(GREEDY, temperature=0.9, top_p=0.8, seed=3, n=3),
    "image": replace(GREEDY, temperature=1.1, top_k=40, seed=4, n=2, repetition_penalty=1.1, logprobs=True),
}

Key = tuple[str, int, int]  # prompt, choice, tokens before the one that is drawn


class Recorder(Sampler):
    """The sampler, and every row of logits that it was given, with what was drawn."""

    def __init__(self) -> None:
        self.seen: list[tuple[Key, torch.Tensor, Draw]] = []
        self._begun: deque[list[tuple[Key, torch.Tensor]]] = deque()

    def start(self, logits: torch.Tensor, rows: Rows, drawn: SampledRows | None = None) -> SampledRows:
        """Begin to draw, and note from what."""
        sampled = super().start(logits, rows, drawn)
        names = [sequence.group.request_id.split("/")[0] for _, sequence in rows]
        keys = [(name, one.choice, one.num_tokens) for name, (_, one) in zip(names, rows, strict=True)]
        self._begun.append([(key, logits[row].clone()) for key, (row, _) in zip(keys, rows, strict=True)])
        return sampled

    def finish(self, sampled: SampledRows, rows: Rows) -> list[Draw]:
        """Fetch, and note what was drawn."""
        draws = super().finish(sampled, rows)
        self.seen += [(*begun, draw) for begun, draw in zip(self._begun.popleft(), draws, strict=True)]
        return draws


@dataclass(frozen=True)
class Row:
    """What came of one token of a sequence alone."""

    logits: torch.Tensor
    token: int
    logprob: Logprob | None


class Family:
    """A tiny model, its prompts, and what each of them gives alone with a build of the library."""

    def __init__(self, model: CausalLM) -> None:
        self.model = model
        self.prompts = make_prompts(model)
        self._alone: dict[str, dict[Key, Row]] = {}

    def alone(self, build: str) -> dict[Key, Row]:
        """Return what each token of each choice gives with nothing beside it."""
        if build not in self._alone:
            rows: dict[Key, Row] = {}
            for name, prompt in self.prompts.items():
                for choice in range(PARAMS.get(name, GREEDY).n):
                    engine, recorder = make_engine(self.model, enable_prefix_cache=False, max_batched_tokens=512)
                    submit(engine, name, name, prompt, (choice,))
                    finish(engine)
                    rows |= {key: Row(logits, *draw) for key, logits, draw in recorder.seen}
            self._alone[build] = rows
        return self._alone[build]


@dataclass(frozen=True)
class Mix:
    """How a mix is run; all of it drawn from its number."""

    family: str
    build: str
    threads: int
    names: tuple[str, ...]
    turns: int
    gap: int
    limits: dict[str, Any]

    @classmethod
    def draw(cls, number: int, families: list[str], names: list[str]) -> "Mix":
        """Return mix `number`; families take turns."""
        rng = np.random.default_rng(number)
        budget = int(rng.choice([7, 9, 16, 33, 64, 129, 512]))
        few_blocks = bool(rng.random() < 0.5)
        threads = 2 if number % 10 == 4 else 1  # two are slow where others want the cores too
        return cls(
            families[number % len(families)],
            BUILDS[number // len(families) % len(BUILDS)],
            threads,
            tuple(rng.choice(names, int(rng.integers(3, 8 if threads == 1 else 5))).tolist()),
            int(rng.integers(1, 3 if threads == 1 else 2)),
            int(rng.integers(0, 4)),
            {
                "max_batched_tokens": budget,
                "max_sequences": min(budget, int(rng.integers(3, 9))),
                "enable_prefix_cache": bool(rng.random() < 0.7),
                "retain_encoded": bool(rng.random() < 0.5),
                "state_checkpoints": int(rng.choice([3, 16])),
                "async_scheduling": bool(rng.random() < 0.5),
                **({"num_blocks": 13, "max_model_len": 104} if few_blocks else {}),
            },
        )


def make_prompts(model: CausalLM) -> dict[str, Prompt]:
    """Text, stills, clips and series, some that begin alike."""
    rng = np.random.default_rng(5)
    side = 14 if "Glm" in model.info.architecture else 16

    def words(count: int) -> list[int]:
        return rng.integers(20, 400, count).tolist()

    def visual(frames: int, height: int, width: int) -> EncoderInput:
        pixels = torch.from_numpy(rng.integers(0, 256, (frames, height * side, width * side, 3), dtype=np.uint8))
        return EncoderInput("image" if frames == 1 else "video", "pixels_u8", pixels, (-(-frames // 2), height, width))

    def series(length: int, channels: int, rate_hz: float) -> EncoderInput:
        samples = torch.from_numpy(rng.normal(size=(length, channels)).cumsum(0).astype(np.float32))
        return EncoderInput("time_series", "samples", samples, sampling_rate_hz=rate_hz)

    wide, tall, clip, long = visual(1, 4, 12), visual(1, 8, 2), visual(5, 4, 6), words(70)
    prompts = {
        "text": Prompt().text(words(21)),
        "one token": Prompt().text(words(1)),
        "long": Prompt().text(long),
        "parts late": Prompt().text([*long[:45], *words(12)]),
        "image": Prompt().text(words(4)).item(model, wide).text(words(5)),
        "clip": Prompt().text(words(3)).item(model, clip).text(words(6)),
        "mixed": Prompt()
        .text(words(3))
        .item(model, wide)
        .item(model, clip)
        .text(words(1))
        .item(model, tall)
        .text([31]),
    }
    if "time_series" in model.info.modalities:
        first, second = series(83, 1, 0.0), series(180, 3, 100.0)
        prompts["series"] = Prompt().item(model, first).text(words(2)).item(model, second).text([31])
        prompts["one series"] = Prompt().text(words(2)).item(model, second).text([31])
    return prompts


def staged(item: EncoderInput) -> MultimodalItem:
    """Return an item as a gateway stages it."""
    dtype = "F32" if item.kind == "samples" else "U8"
    made = MultimodalItem(
        Modality(item.modality), PayloadKind(item.kind), b"", dtype, item.tensor.numpy(), grid_thw=item.grid_thw,
        sampling_rate_hz=item.sampling_rate_hz,
    )  # fmt: skip
    return replace(made, content_hash=made.compute_hash())


def make_engine(model: CausalLM, **limits: Any) -> tuple[Engine, Recorder]:
    """Return an engine, and what notes its logits."""
    usual = {"max_model_len": 256, "num_blocks": 160, "block_size": BLOCK_SIZE, "max_sequences": 8}
    size = {"item_token_bytes": model.encoder_token_bytes, "encoder_cache_bytes": 1 << 20}
    engine, recorder = Engine(EngineConfig(**(usual | size | limits)), model), Recorder()  # type: ignore[arg-type]
    engine.sampler = recorder
    return engine, recorder


def submit(engine: Engine, request_id: str, name: str, prompt: Prompt, choices: tuple[int, ...]) -> None:
    """Stage a prompt's items and add it."""
    items = [staged(item) for item in prompt.items]
    for item in items:
        engine.items.put(item)
    placed = tuple(
        SequenceItem(
            item.modality, item.content_hash, tuple(TokenSpan(r.offset, r.length) for r in ranges), item.grid_thw
        )
        for item, ranges in zip(items, prompt.ranges, strict=True)
    )
    params = PARAMS.get(name, GREEDY)
    engine.add(SequenceGroup(request_id, tuple(prompt.ids), params, placed, choices=choices))


def finish(engine: Engine) -> None:
    """Step until all have ended."""
    while not engine.is_idle:
        assert all(update.failure is None for update in engine.step().updates)


def run_mix(mix: Mix, family: Family, record: GraphRecorder | None = None) -> tuple[Engine, Recorder]:
    """Run a mix to its end, decode steps recorded where something records."""
    engine, recorder = make_engine(family.model, **mix.limits)
    if record is not None:
        engine.runner.record(record)
    torch.set_num_threads(mix.threads)
    try:
        for turn in range(mix.turns):
            for number, name in enumerate(mix.names):
                choices = tuple(range(PARAMS.get(name, GREEDY).n))
                submit(engine, f"{name}/{turn}/{number}", name, family.prompts[name], choices)
                for _ in range(mix.gap):
                    assert all(update.failure is None for update in engine.step().updates)
            finish(engine)
    finally:
        torch.set_num_threads(1)
    return engine, recorder


@pytest.fixture(scope="module")
def family_of(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Family]]:
    """Families, each made once."""
    made: dict[str, Family] = {}

    def family(name: str) -> Family:
        if name not in made:
            made[name] = Family(load_model(FAMILIES[name](tmp_path_factory.mktemp(name))))
        return made[name]

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield family
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def preemptions() -> list[int]:
    """How many each mix had."""
    return []


def names_of(family: str) -> list[str]:
    """Return the prompts of a family."""
    series = ["series", "one series"] if family == "interns1_pro" else []
    return ["text", "one token", "long", "parts late", "image", "clip", "mixed", *series]


@pytest.mark.parametrize("number", range(NUM_MIXES))
def test_a_mix_changes_no_bit(number: int, family_of: Callable[[str], Family], preemptions: list[int]) -> None:
    """Logits, draws and log probabilities of all sequences of a mix are those of each alone."""
    families = list(FAMILIES)
    mix = Mix.draw(number, families, names_of(families[number % len(families)]))
    family = family_of(mix.family)
    with invariance.using(True), cpu.using(library.load(capability=mix.build)):
        alone = family.alone(mix.build)
        engine, recorder = run_mix(mix, family)
    assert recorder.seen
    for key, logits, draw in recorder.seen:
        expected = alone[key]
        assert torch.equal(logits, expected.logits), (key, mix, (logits - expected.logits).abs().max())
        assert draw == (expected.token, expected.logprob), (key, mix)
    preemptions.append(engine.scheduler.num_preemptions)
    if number == NUM_MIXES - 1 and len(preemptions) == NUM_MIXES:
        assert sum(count > 0 for count in preemptions) > 5


def test_without_the_mode_neighbours_show(family_of: Callable[[str], Family]) -> None:
    """The same comparison fails where the mode is off, so it can fail."""
    family = family_of("qwen3_vl")
    mix = Mix("qwen3_vl", BUILDS[-1], 1, ("text", "long", "mixed", "image"), 1, 1, {"max_batched_tokens": 33})
    with cpu.using(library.load(capability=mix.build)):
        plain = Family(family.model).alone(mix.build)
        _, recorder = run_mix(mix, family)
    assert any(key in plain and not torch.equal(logits, plain[key].logits) for key, logits, _ in recorder.seen)


@pytest.mark.parametrize("name", ["qwen3_vl", "glm4v", "interns1_pro"])
def test_an_item_is_encoded_as_if_alone(name: str, family_of: Callable[[str], Family]) -> None:
    """Embeddings and side features do not depend on the items beside it, their order, or the threads."""
    family = family_of(name)
    items = [item for prompt in family.prompts.values() for item in prompt.items]
    for build in BUILDS:
        with invariance.using(True), cpu.using(library.load(capability=build)):
            alone = [family.model.encode([item])[0] for item in items]
            torch.set_num_threads(2)
            together = family.model.encode(items[::-1])[::-1]
            torch.set_num_threads(1)
        for one, other in zip(alone, together, strict=True):
            assert torch.equal(one.embeddings, other.embeddings)
            assert one.deepstack is None or torch.equal(one.deepstack, other.deepstack)  # type: ignore[arg-type]
