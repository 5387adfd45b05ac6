"""The largest steps at start: what is run, what it is said to take, and that nothing of it stays.

Next: tests/parity/test_memory_profile.py
"""

import weakref
from dataclasses import replace
from typing import Any

import pytest
import torch

from tessera_kernels.sampling import SampledRows, SamplingBatch
from tests.fakes.meter import CountingMeter, ScriptedMeter
from tests.unit.worker.engine.fakes import FakeModel
from tests.unit.worker.engine.stateful import StatefulModel
from worker.engine import memory_profile
from worker.engine.memory_needs import MemoryNeeds, StepLimits
from worker.engine.memory_profile import WorstSteps, profile_memory
from worker.engine.sizing import EngineOptions, SizingError, checked_options, step_limits
from worker.memory import Usage
from worker.models.base import ItemSize

LIMITS = StepLimits(max_model_len=90, max_sequences=6, max_batched_tokens=40, block_size=4)


class Witness(FakeModel):
    """Notes what it is given; two modalities, of which one fills a step alone."""

    def __init__(self) -> None:
        super().__init__()
        self.items: list[list[ItemSize]] = []
        self.steps: list[dict[str, Any]] = []
        self.alive: list[weakref.ref[torch.Tensor]] = []

    def worst_items(self, max_tokens: int) -> list[ItemSize]:
        return [ItemSize("image", (1, 2, 2 * 15)), ItemSize("video", (1, 2, 2 * min(max_tokens, 70)))]

    def encode(self, inputs):  # type: ignore[no-untyped-def]
        self.items.append([item.size for item in inputs])
        return super().encode(inputs)

    def forward(self, batch, kv_cache):  # type: ignore[no-untyped-def]
        noted = {"lens": batch.query_lens, "kv_lens": batch.kv_lens, "logits": batch.logits_indices.tolist()}
        embeds = None if batch.mm_embeds is None else tuple(batch.mm_embeds.shape)
        self.steps.append(noted | {"embeds": embeds, "tables": tuple(batch.block_tables.shape)})
        if int(batch.context_lens.max()) == 0:  # padding, as recorded steps have it
            logits = torch.zeros(batch.num_seqs, self.vocab_size)
        else:
            logits = super().forward(batch, kv_cache)
        self.alive += [weakref.ref(tensor) for tensor in (logits, batch.block_tables, kv_cache.blocks)]
        return logits


def profile(model: Any = None, limits: StepLimits = LIMITS, records: bool = True, *usages: Usage) -> MemoryNeeds:
    """Run the profile with a meter that answers `usages`."""
    return profile_memory(model or Witness(), limits, ScriptedMeter(*usages), records=records)


def test_the_worst_item_of_each_modality_is_encoded() -> None:
    """Each modality's worst item is encoded by itself, as many of them at once as a step encodes."""
    model = Witness()
    profile(model)
    image, video = ItemSize("image", (1, 2, 30)), ItemSize("video", (1, 2, 140))
    assert model.items == [[image, image], [video]]


def test_steps_are_full_and_contexts_longest() -> None:
    """A full step runs as one chunk, and as a chunk of each sequence, all at the end of the longest context."""
    model = Witness()
    profile(model)
    long, wide, decode = model.steps
    assert (long["lens"], long["logits"]) == ((40,), [39])
    assert (wide["lens"], wide["logits"]) == ((7, 7, 7, 7, 6, 6), [6, 13, 20, 27, 33, 39])
    for step, count in ((long, 1), (wide, 6)):
        assert step["kv_lens"] == (90,) * count and step["tables"] == (count, 23)
        assert step["embeds"] == (40, 4)
    assert (decode["lens"], decode["kv_lens"], decode["tables"]) == ((1,) * 6, (90,) * 6, (6, 23))
    assert decode["embeds"] is None


def test_steps_that_hold_more_than_a_context() -> None:
    """Where a step has more tokens than the longest context, or than all of them, sequences are as long as that."""
    model = Witness()
    profile(model, replace(LIMITS, max_model_len=16))
    assert [step["lens"] for step in model.steps[:2]] == [(14, 13, 13), (7, 7, 7, 7, 6, 6)]
    model = Witness()
    profile(model, replace(LIMITS, max_model_len=5))
    assert [step["lens"] for step in model.steps[:-1]] == [(5,) * 6]


def test_all_rows_are_drawn_with_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each draw has all sequences, at random, cut, with penalties over all tokens, and with log probabilities."""
    drawn, sample = [], memory_profile.sampling.sample

    def note(logits: torch.Tensor, batch: SamplingBatch) -> SampledRows:
        drawn.append(batch)
        return sample(logits, batch)

    monkeypatch.setattr(memory_profile.sampling, "sample", note)
    model = Witness()
    profile(model)
    assert len(drawn) == 2
    for batch, step in zip(drawn, model.steps, strict=False):
        assert len(batch.rows) == len(batch.changes) == 6
        assert batch.is_random and batch.is_cut and batch.num_top == 20
        assert set(batch.rows["source"]) == set(range(len(step["logits"])))
        assert (batch.changes["repetition"] != 1).all() and (batch.changes["presence"] != 0).all()
        assert (batch.changes["seen_end"] - batch.changes["seen_begin"] == 90).all() and len(batch.seen) == 6 * 90


@pytest.mark.slow
@pytest.mark.parametrize("make", [Witness, StatefulModel])
def test_nothing_stays(make: type[FakeModel], monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors, caches and recordings of the profile are gone when it ends."""
    model = make()
    if isinstance(model, StatefulModel):
        monkeypatch.setattr(model, "forward", lambda batch, cache: torch.zeros(len(batch.logits_indices), 97))
    profile(model)
    usage = CountingMeter().measure(lambda: profile(model))
    assert usage.kept_bytes == 0 < usage.peak_bytes
    assert not any(ref() is not None for ref in getattr(model, "alive", ()))


def test_states_and_blocks_are_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy for each sequence is measured, of blocks and, where the model has such, of states."""
    copied: list[tuple[str, int]] = []
    model = StatefulModel()
    make = model.make_kv_cache

    def noting(*sizes: int) -> Any:
        cache = make(*sizes)
        assert cache.states is not None
        monkeypatch.setattr(cache, "copy_blocks", lambda pairs: copied.append(("blocks", len(pairs))))
        monkeypatch.setattr(cache.states, "copy", lambda pairs: copied.append(("states", len(pairs))))
        return cache

    monkeypatch.setattr(model, "make_kv_cache", noting)
    monkeypatch.setattr(model, "forward", lambda batch, cache: torch.zeros(len(batch.logits_indices), 97))
    profile(model)
    assert copied == [("blocks", 6), ("states", 6)]


def test_what_is_measured() -> None:
    """Encodes and steps take turns, so the largest of each counts; recorded steps come on top; what stays is told."""
    usages = [Usage(70, 1), Usage(50, 2), Usage(10, 4), Usage(30, 8), Usage(20, 16), Usage(9, 32)]
    needs = profile(Witness(), LIMITS, True, *usages)
    assert needs == MemoryNeeds(70, 30, 9, 63, is_measured=True)
    assert needs.total_bytes == 79
    assert profile(Witness(), LIMITS, False, *usages[:5]).recordings_bytes == 0


def test_recordings_count_their_inputs() -> None:
    """What recorded steps take holds inputs of the largest size, which all share, beside the largest forward."""
    limits = StepLimits(max_model_len=3000, max_sequences=6, max_batched_tokens=8, block_size=4)
    usage = CountingMeter().measure(WorstSteps(Witness(), limits).rehearse)
    tables = 6 * 750 * 4
    logits = 6 * 97 * 4
    assert tables + 2 * logits < usage.peak_bytes < tables + 4 * logits


@pytest.mark.parametrize(
    ("method", "text"),
    [
        (
            "encode",
            r"not enough memory for the largest item of modality image .* lower --max-batched-tokens or --max-m",
        ),
        ("forward", r"not enough memory for a step of 40 tokens .* lower --max-batched-tokens, --max-sequences or"),
        ("rehearse", r"not enough memory for recorded steps of 6 sequences .* lower --max-sequences or --max-model"),
    ],
)
def test_a_profile_that_runs_out_of_memory(method: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Running out of memory is an error of one sentence that names the flags to lower."""

    def fail(*given: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    model = Witness()
    monkeypatch.setattr(WorstSteps if method == "rehearse" else model, method, fail)
    with pytest.raises(SizingError, match=text) as caught:
        profile(model)
    assert "\n" not in str(caught.value) and caught.value.__suppress_context__


def limits_of(model: FakeModel | None = None, free_bytes: int = 1 << 30, **options: Any) -> StepLimits:
    """Limits of the steps that are profiled."""
    return step_limits(
        model or FakeModel(), checked_options(EngineOptions(**({"block_size": 4} | options))), free_bytes
    )


def test_limits_of_the_profile() -> None:
    """Steps are profiled with the limits that were named; others are cut to what memory could hold at all."""
    block = 4 * 2 * 2 * 8
    assert limits_of() == StepLimits(4096, 64, 2048, 4)
    assert limits_of(max_sequences=5, max_batched_tokens=99) == StepLimits(4096, 5, 99, 4)
    assert limits_of(max_batched_tokens=9).max_sequences == 9
    assert limits_of(free_bytes=10 * block).max_model_len == 40
    assert limits_of(free_bytes=10 * block, max_model_len=50).max_model_len == 50
    assert limits_of(num_blocks=3).max_model_len == 12
    assert limits_of(kv_cache_bytes=7 * block).max_model_len == 28
    assert limits_of(free_bytes=1).max_model_len == 1
    slot = StatefulModel().state_shape.slot_bytes  # type: ignore[union-attr]
    assert limits_of(StatefulModel(), 20 * slot).max_sequences == 10
    assert limits_of(StatefulModel(), 20 * slot, max_sequences=12).max_sequences == 12
    with pytest.raises(SizingError, match="--max-model-len 5000"):
        limits_of(max_model_len=5000)
