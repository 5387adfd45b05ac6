"""The memory profile of real models, on the CPU path and on the CUDA ops compiled for the CPU, against their engines.

Next: worker/engine/memory_profile.py
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import structlog

from tessera_kernels import cuda
from tests.cuda_ops import emulated_library
from tests.fakes.meter import CountingMeter
from tests.parity.model_harness import Prompt
from tests.parity.test_batch_invariance import FAMILIES, staged
from worker import boot
from worker.engine.config import EngineConfig
from worker.engine.engine import Engine
from worker.engine.memory_needs import StepLimits
from worker.engine.memory_profile import profile_memory
from worker.engine.output import SequenceUpdate
from worker.engine.sampling_params import SamplingParams
from worker.engine.sequence import SequenceGroup, SequenceItem, TokenSpan
from worker.layers.graph import EagerGraph
from worker.memory import Usage
from worker.models.base import CausalLM
from worker.models.loader import load_model
from worker.settings import WorkerSettings

pytestmark = pytest.mark.slow

EMBEDDED = Path(__file__).resolve().parents[2] / "models" / "shapes" / "checkpoint"
LIMITS = StepLimits(max_model_len=72, max_sequences=3, max_batched_tokens=48, block_size=8)
EVERYTHING = SamplingParams(
    3, 1.0, 0.9, 40, 0.01, presence_penalty=0.5, frequency_penalty=0.5, repetition_penalty=1.1, logprobs=True,
    top_logprobs=20, ignore_eos=True,
)  # fmt: skip


@pytest.fixture(autouse=True, params=["cpu", "emulated"])
def path(request: pytest.FixtureRequest) -> Iterator[str]:
    """Which ops run."""
    library = None
    if request.param == "emulated":
        library = emulated_library()
        if library is None:
            pytest.skip("the emulated CUDA ops are not built (make emulator)")
    with cuda.using(library):
        yield request.param


def engine_of(model: CausalLM) -> Engine:
    """An engine of the profile's limits that has recorded its decode steps."""
    config = EngineConfig(
        max_model_len=LIMITS.max_model_len,
        num_blocks=40,
        block_size=LIMITS.block_size,
        max_sequences=LIMITS.max_sequences,
        max_batched_tokens=LIMITS.max_batched_tokens,
        item_token_bytes=model.encoder_token_bytes,
        enable_prefix_cache=False,
    )
    engine = Engine(config, model)
    engine.runner.record(EagerGraph)
    return engine


def submit(engine: Engine, name: str, prompt: Prompt) -> None:
    """Stage a prompt's items, and add it with all that a request may ask for."""
    items = [staged(item) for item in prompt.items]
    for item in items:
        engine.items.put(item)
    placed = tuple(
        SequenceItem(
            item.modality, item.content_hash, tuple(TokenSpan(s.offset, s.length) for s in spans), item.grid_thw
        )
        for item, spans in zip(items, prompt.ranges, strict=True)
    )
    engine.add(SequenceGroup(name, tuple(prompt.ids), EVERYTHING, placed))


def worst_prompts(model: CausalLM) -> list[Prompt]:
    """As many longest prompts as run at once: of worst items, one of each modality, or of text alone."""
    longest = LIMITS.max_model_len - EVERYTHING.max_tokens
    items = [model.dummy_input(size) for size in model.worst_items(longest - 4)]
    prompts = [Prompt().item(model, item) for item in items] + [Prompt() for _ in range(LIMITS.max_sequences)]
    texts = [(np.arange(longest - len(prompt.ids)) % 30 + 20).tolist() for prompt in prompts]
    return [prompt.text(text) for prompt, text in zip(prompts, texts, strict=True)][: LIMITS.max_sequences]


def _step(engine: Engine, updates: list[SequenceUpdate]) -> None:
    updates += engine.step().updates


@pytest.mark.parametrize("family", ["shapes", "qwen3_vl_moe", "qwen3_5_moe"])
def test_no_step_takes_more(family: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    """No step of an engine takes more than the profile said, nor does the profile say twice of what the worst takes."""
    model = load_model(EMBEDDED if family == "shapes" else FAMILIES[family](tmp_path_factory.mktemp(family)))
    meter = CountingMeter()
    boot.warm_up(engine_of(model))  # what is made once and kept is made now
    needs = profile_memory(model, LIMITS, meter, records=True)
    assert needs.is_measured and needs.libraries_bytes == 0 < needs.recordings_bytes
    engine = engine_of(model)
    for number, prompt in enumerate(worst_prompts(model)):
        submit(engine, str(number), prompt)
    encodes: list[int] = []
    forwards: list[int] = []
    while not engine.is_idle:
        outputs: list[SequenceUpdate] = []
        encoded = engine.encoder_cache.used_bytes
        usage = meter.measure(partial(_step, engine, outputs))
        assert all(update.failure is None for update in outputs)
        (forwards if engine.encoder_cache.used_bytes == encoded else encodes).append(usage.peak_bytes)
    assert len(encodes) == 2
    assert max(encodes) <= max(needs.encode_bytes, needs.step_bytes) < 2 * max(encodes), (encodes, needs)
    assert max(forwards) <= needs.step_bytes < 2 * max(forwards), (forwards, needs)


@pytest.fixture
def log() -> Iterator[list[structlog.types.EventDict]]:
    """What is logged."""
    with structlog.testing.capture_logs() as logs:
        yield logs


def test_a_worker_that_measures(
    monkeypatch: pytest.MonkeyPatch, path: str, log: list[structlog.types.EventDict]
) -> None:
    """Where there is a meter the worker starts with a profile, logs it, and sizes its caches by it."""
    measured: list[Usage] = []

    class Meter(CountingMeter):
        def measure(self, run: Callable[[], object]) -> Usage:
            usage = super().measure(run)
            measured.append(Usage(usage.peak_bytes + (100 << 20), 3 << 20))
            return measured[-1]

    monkeypatch.setattr(boot, "meter_for", lambda device: Meter())
    monkeypatch.setattr(boot, "free_bytes", lambda device: 1 << 30)
    settings = WorkerSettings(
        str(EMBEDDED), device="cpu", threads=1, max_model_len=64, max_sequences=3, max_batched_tokens=32,
        kv_cache_share=1.0,
    )  # fmt: skip
    engine, _ = boot.boot(settings, lambda state, share: None)
    block_bytes = engine.model.kv_block_bytes(16)
    [profiled] = [entry for entry in log if entry["event"] == "memory_profiled"]
    assert len(measured) == 6  # two modalities, two shapes of a step, copies, recorded steps
    assert profiled["encode_mib"] == max(usage.peak_bytes for usage in measured[:2]) >> 20
    assert profiled["step_mib"] == max(usage.peak_bytes for usage in measured[2:5]) >> 20
    assert profiled["recordings_mib"] == measured[5].peak_bytes >> 20
    assert (profiled["libraries_mib"], profiled["profile_s"] > 0) == (18, True)
    taken = max(usage.peak_bytes for usage in measured[:5]) + measured[5].peak_bytes
    blocks = ((1 << 30) - taken - engine.config.encoder_cache_bytes) // block_bytes
    assert engine.config.num_blocks == min(blocks, 3 * 4)
    [ready] = [entry for entry in log if entry["event"] == "model_ready"]
    assert ready["free_bytes"] == 1 << 30


def test_an_engine_that_is_cut_to_what_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the profile measured is what KV blocks go without; without recordings it is less."""

    class Meter(CountingMeter):
        def measure(self, run: Callable[[], object]) -> Usage:
            return super().measure(run)._replace(peak_bytes=100 << 20)

    free = (256 << 20) + (200 << 20)
    monkeypatch.setattr(boot, "meter_for", lambda device: Meter())
    settings = WorkerSettings(
        str(EMBEDDED),
        device="cpu",
        threads=1,
        max_model_len=80,
        max_sequences=2,
        max_batched_tokens=8,
        kv_cache_share=1.0,
    )
    block_bytes = load_model(EMBEDDED).kv_block_bytes(16)
    monkeypatch.setattr(boot, "free_bytes", lambda device: free + 5 * block_bytes)
    engine, _ = boot.boot(settings, lambda state, share: None)
    assert engine.config.num_blocks == 5
    settings = replace(settings, check_launches=True)  # nothing is recorded then
    monkeypatch.setattr(boot, "free_bytes", lambda device: free - (100 << 20) + 6 * block_bytes)
    engine, _ = boot.boot(settings, lambda state, share: None)
    assert engine.config.num_blocks == 6
