"""Part "host": how much of a decode step of the whole engine the device waits for the host.

Wall time of a step is taken between the returns of `Engine.step` while all sequences decode. The device's time is that
of the same step, draw included, when its launches are queued ahead (benchmarks/gpu/decode_step.py); gaps between the
kernels of one recording are the device's own, so they count for it. What the profiler sees the kernels alone take is
told beside.

Next: benchmarks/gpu/busy_time.py
"""

import gc
import math
import time
from collections.abc import Iterator
from dataclasses import fields, replace

from benchmarks.gpu.busy_time import busy_ms
from benchmarks.gpu.decode_step import DecodeStep, engine_config, record
from benchmarks.gpu.machine import Machine
from benchmarks.gpu.random_model import make_language_model
from benchmarks.gpu.serving_plan import Plan
from benchmarks.gpu.table import Figure
from worker.engine.config import EngineConfig
from worker.engine.engine import Engine
from worker.engine.sampling_params import SamplingParams
from worker.engine.sequence import SequenceGroup
from worker.models.base import CausalLM

HOST_TARGET = 0.1
_SETTLING_STEPS = 5
_SWITCH = "async_scheduling"


class HostShares:
    """The part, in a process of its own.

    Args:
        machine: with its limits.
        plan: what to run.
    """

    def __init__(self, machine: Machine, plan: Plan) -> None:
        self._machine = machine
        self._plan = plan

    def figures(self) -> list[Figure]:
        """Time every model's engine, with and without asynchronous scheduling."""
        found: list[Figure] = []
        for model in self._plan.models:
            language_model = make_language_model(model, self._plan.dtype, self._machine.device)
            for name, config in self._configs():
                case = f"engine step, {model.name}, {self._plan.host_batch} sequences{name}"
                found.append(self._figure(case, language_model, config))
                gc.collect()  # an engine's recordings hold its cache, and refer to each other
            del language_model
        return found

    def _configs(self) -> Iterator[tuple[str, EngineConfig]]:
        config = engine_config(self._plan, self._plan.host_batch)
        if _SWITCH not in {field.name for field in fields(config)}:
            yield "", config
            return
        for on in (False, True):
            yield f", {_SWITCH} {'on' if on else 'off'}", replace(config, **{_SWITCH: on})

    def _figure(self, name: str, model: CausalLM, config: EngineConfig) -> Figure:
        plan, machine = self._plan, self._machine
        engine = Engine(config, model)
        record(engine.runner)
        self._fill(engine)
        wall_ms = self._wall_ms(engine)
        profiled = max(1, plan.host_steps // 4)
        kernels_ms = busy_ms(lambda: self._run(engine, profiled)) / profiled
        step = DecodeStep(engine.runner, plan.host_batch, plan.context + plan.host_steps // 2)
        device_ms = step.milliseconds(machine, self._params)
        target = 1 - HOST_TARGET if getattr(config, _SWITCH, True) else None  # of what a GPU has by default
        if not machine.is_timed:
            return Figure(name, math.nan, math.nan, "device time", target=target)
        note = f"(host {100 * (1 - device_ms / wall_ms):.1f} % of a step; kernels alone {kernels_ms:.4f} ms)"
        return Figure(name, wall_ms, device_ms, "device time", target=target, note=note)

    @property
    def _params(self) -> SamplingParams:
        """Greedy, and longer than anything that is run here."""
        return SamplingParams(self._plan.context, ignore_eos=True)

    def _fill(self, engine: Engine) -> None:
        """Submit all sequences and step until each has been decoding for a while."""
        vocab = engine.model.vocab_size
        for number in range(self._plan.host_batch):
            ids = tuple((number + place) * 7919 % vocab for place in range(self._plan.context))
            engine.add(SequenceGroup(str(number), ids, self._params))
        settled = 0
        while settled < _SETTLING_STEPS:
            settled = settled + 1 if self._step(engine) == self._plan.host_batch else 0

    def _wall_ms(self, engine: Engine) -> float:
        start = time.perf_counter()
        self._run(engine, self._plan.host_steps)
        return 1000 * (time.perf_counter() - start) / self._plan.host_steps

    def _run(self, engine: Engine, steps: int) -> None:
        for _ in range(steps):
            assert self._step(engine) == self._plan.host_batch, "every sequence gets a token in every step"

    def _step(self, engine: Engine) -> int:
        """Return how many tokens a step told."""
        updates = engine.step().updates
        assert not any(update.failure or update.finish_reason for update in updates)
        return sum(len(update.token_ids) for update in updates)
