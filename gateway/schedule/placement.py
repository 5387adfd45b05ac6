"""Placement: which worker runs a request.

Least load: the fewest sequences that this gateway has in flight there plus
those the worker last reported of others. Ties go round.

Next: gateway/dispatch.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class WorkerView:
    """What placement sees of a worker.

    Attributes:
        ready: it can take a request.
        in_flight: sequences that this gateway has submitted and not seen end.
        reported: sequences that the worker reported running or waiting, of all gateways.
        max_sequences: how many it runs at once.
    """

    ready: bool
    in_flight: int
    reported: int
    max_sequences: int

    @property
    def load(self) -> float:
        """Share of the worker's sequences that are taken; above 1 it queues."""
        # A report may be older than our last submissions: never count fewer than our own.
        return max(self.in_flight, self.reported) / max(self.max_sequences, 1)


class Placement:
    """Chooses the least loaded worker; among equals each in turn."""

    def __init__(self) -> None:
        self._turn = 0

    def choose(self, workers: Sequence[WorkerView]) -> int | None:
        """Return the index of the worker to use, or None where none is ready."""
        count = len(workers)
        best: int | None = None
        for step in range(count):
            index = (self._turn + step) % count
            worker = workers[index]
            if worker.ready and (best is None or worker.load < workers[best].load):
                best = index
        if best is not None:
            self._turn = best + 1
        return best
