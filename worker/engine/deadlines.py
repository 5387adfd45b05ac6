"""Which sequences are late.

Next: worker/engine/scheduler.py
"""

import heapq

from worker.engine.sequence import Sequence, Status


class Deadlines:
    """Deadlines of unfinished sequences; those that have finished are forgotten on the way."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, int, Sequence]] = []

    def watch(self, sequence: Sequence) -> None:
        """Take a sequence in; one without a deadline is no matter."""
        if sequence.group.deadline_s is not None:
            heapq.heappush(self._heap, (sequence.group.deadline_s, sequence.arrival, sequence.choice, sequence))

    def expired(self, now_s: float) -> list[Sequence]:
        """Return the unfinished sequences whose deadline has passed; each is returned once."""
        late = []
        while self._heap and self._heap[0][0] <= now_s:
            sequence = heapq.heappop(self._heap)[-1]
            if sequence.status is not Status.FINISHED:
                late.append(sequence)
        return late

    def next_s(self) -> float | None:
        """Return the earliest deadline of all unfinished sequences."""
        while self._heap and self._heap[0][-1].status is Status.FINISHED:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None
