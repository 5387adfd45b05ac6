"""Meters of memory for tests: one that counts what torch allocates on the CPU, one that says what it was told.

Next: tests/unit/worker/engine/test_memory_profile.py
"""

import gc
from collections.abc import Callable

from torch.autograd.profiler import profile

from worker.memory import Usage


class CountingMeter:
    """Counts every allocation of CPU tensors, those inside of ops too, as torch's profiler reports them."""

    def measure(self, run: Callable[[], object]) -> Usage:
        """See `worker.memory.Meter`."""
        gc.collect()
        with profile(profile_memory=True) as profiled:
            run()
            gc.collect()
        assert profiled.kineto_results is not None
        events = [event for event in profiled.kineto_results.events() if event.name() == "[memory]"]
        live = peak = 0
        for event in sorted(events, key=lambda event: event.start_ns()):
            live += event.nbytes()
            peak = max(peak, live)
        return Usage(peak - live, live)


class ScriptedMeter:
    """Runs what it is to measure, and answers with one usage after the other.

    Args:
        usages: answers; the last one is repeated.
    """

    def __init__(self, *usages: Usage) -> None:
        self._usages = list(usages) or [Usage(0, 0)]

    def measure(self, run: Callable[[], object]) -> Usage:
        """See `worker.memory.Meter`."""
        run()
        return self._usages.pop(0) if len(self._usages) > 1 else self._usages[0]
