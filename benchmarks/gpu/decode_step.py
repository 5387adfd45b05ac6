"""Part "step": decode steps of the language model through the engine's runner, as it records and replays them.

A step's limit is the bytes that it must read (the layers' and the head's weights once, each sequence's keys and values)
at the copy bandwidth of the same run. Rows of the embedding, activations and logits count as free.

Next: benchmarks/gpu/host_share.py
"""

import gc
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from benchmarks.gpu.machine import Machine
from benchmarks.gpu.random_model import make_language_model
from benchmarks.gpu.serving_plan import Plan
from benchmarks.gpu.table import Figure
from worker.engine.config import EngineConfig
from worker.engine.encoder_cache import EncoderCache
from worker.engine.model_runner import ModelRunner
from worker.engine.sampler import Sampler
from worker.engine.sampling_params import SamplingParams
from worker.engine.schedule import Chunk
from worker.engine.sequence import Sequence, SequenceGroup
from worker.layers.graph import EagerGraph, recorder_for
from worker.models.base import CausalLM

STEP_TARGET = 0.75
_BLOCK_SIZE = 16
_DRAWS = {
    "greedy": SamplingParams(1 << 20),
    "temperature, top-p, presence": SamplingParams(1 << 20, temperature=0.8, top_p=0.9, presence_penalty=0.5, seed=1),
}


def engine_config(plan: Plan, sequences: int) -> EngineConfig:
    """Return limits that so many sequences of twice the plan's context just fit."""
    length = 2 * plan.context
    return EngineConfig(
        max_model_len=length,
        num_blocks=sequences * -(-length // _BLOCK_SIZE),
        block_size=_BLOCK_SIZE,
        max_sequences=sequences,
        max_batched_tokens=max(2048, sequences),
        encoder_cache_bytes=1 << 20,
    )


def record(runner: ModelRunner) -> None:
    """Record all sizes, as the worker does before it serves; the CPU gets a stand-in of the recordings."""
    runner.record(recorder_for(runner.model.device) or EagerGraph)


@dataclass(frozen=True)
class DecodeStep:
    """One decode step that can be run again and again.

    Args:
        runner: that runs it; what its cache holds is overwritten.
        batch: sequences.
        context: tokens behind each.
    """

    runner: ModelRunner
    batch: int
    context: int

    @torch.inference_mode()
    def milliseconds(self, machine: Machine, params: SamplingParams | None = None) -> float:
        """Return the time of the step on the device, with the draw of its tokens where there are parameters for it."""
        sequences = [self._sequence(number, params or _DRAWS["greedy"]) for number in range(self.batch)]
        step = self.runner.prepare([Chunk(sequence, self.context, self.context + 1) for sequence in sequences])
        if params is None:
            return machine.queued_milliseconds(lambda: self.runner.run(step))
        rows, sampler = list(enumerate(sequences)), Sampler()
        return machine.queued_milliseconds(lambda: sampler.start(self.runner.run(step), rows))

    @property
    def read_bytes(self) -> int:
        """Bytes that the step reads at least."""
        decoder = self.runner.model.decoder  # type: ignore[attr-defined]
        weights = sum(layer.size_bytes for layer in decoder.layers) + decoder.head.size_bytes
        token = self.runner.model.kv_block_bytes(1)
        return weights + self.batch * (self.context + 1) * token

    def _sequence(self, number: int, params: SamplingParams) -> Sequence:
        """Return a sequence that has generated half of its tokens; penalties look at those."""
        vocab, length = self.runner.model.vocab_size, self.context + 1
        ids = [(number * length + place) * 7919 % vocab for place in range(length)]
        group = SequenceGroup(str(number), tuple(ids[: length // 2]), params)
        sequence = Sequence(group, 0, ids, number, *self.runner.positions(group))
        blocks = -(-length // _BLOCK_SIZE)
        sequence.num_computed, sequence.block_table = self.context, [number * blocks + i for i in range(blocks)]
        return sequence


class DecodeSteps:
    """The part, in a process of its own.

    Args:
        machine: with its limits.
        plan: what to run.
    """

    def __init__(self, machine: Machine, plan: Plan) -> None:
        self._machine = machine
        self._plan = plan

    def figures(self) -> list[Figure]:
        """Time every model's steps, one model after the other."""
        found: list[Figure] = []
        for model in self._plan.models:
            language_model = make_language_model(model, self._plan.dtype, self._machine.device)
            found += self._figures(model.name, language_model)
            del language_model
            gc.collect()  # recordings and model refer to each other
        return found

    def _figures(self, name: str, model: CausalLM) -> Iterator[Figure]:
        config = engine_config(self._plan, max(self._plan.batches))
        runner = ModelRunner(config, model, EncoderCache(config.encoder_cache_bytes, True))
        runner.kv_cache.blocks.normal_()
        record(runner)
        for batch in self._plan.batches:
            step = DecodeStep(runner, batch, self._plan.context)
            case = f"decode step, {name}, batch {batch}, context {self._plan.context}"
            limit = step.read_bytes / 1e6 / self._machine.copy_gbps if self._machine.is_timed else math.nan
            note = f"({step.read_bytes / 1e9:.2f} GB)" if self._machine.is_timed else ""
            ms = step.milliseconds(self._machine)
            yield Figure(case, ms, limit, "weight bandwidth", target=STEP_TARGET, note=note)
            for draw, params in _DRAWS.items():
                ms = step.milliseconds(self._machine, params)
                yield Figure(f"{case}, and draw ({draw})", ms, limit, "weight bandwidth")
