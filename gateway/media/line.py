"""Who is next for a pool process: small jobs first, big ones never last for ever.

Plain Python, no I/O. Big jobs (clips) never hold all processes at once where there are two or more, so that a picture
waits for a picture at most.

Next: gateway/media/pool.py
"""

from collections import deque
from typing import Generic, TypeVar

Job = TypeVar("Job")


class Line(Generic[Job]):
    """Two queues of waiting jobs.

    Args:
        processes: How many jobs run at once.
        patience: Small jobs that may overtake a waiting big one, in a row.
    """

    def __init__(self, processes: int, patience: int = 8) -> None:
        self._most_big = max(1, processes - 1)
        self._patience = patience
        self._small: deque[Job] = deque()
        self._big: deque[Job] = deque()
        self._running_big = 0
        self._overtaken = 0

    def __len__(self) -> int:
        return len(self._small) + len(self._big)

    def push(self, job: Job, big: bool) -> None:
        """A job comes in."""
        (self._big if big else self._small).append(job)

    def pop(self) -> tuple[Job, bool] | None:
        """The next job to start, and whether it is big; None where none may start now."""
        big_may = bool(self._big) and self._running_big < self._most_big
        if big_may and (not self._small or self._overtaken >= self._patience):
            self._overtaken = 0
            self._running_big += 1
            return self._big.popleft(), True
        if not self._small:
            return None
        self._overtaken += big_may
        return self._small.popleft(), False

    def done(self, big: bool) -> None:
        """A job that was popped has ended."""
        self._running_big -= big

    def remove(self, job: Job) -> bool:
        """A waiting job gives up; whether it was still waiting."""
        for queue in (self._small, self._big):
            if job in queue:
                queue.remove(job)
                return True
        return False

    def drain(self) -> list[Job]:
        """All waiting jobs, which leave."""
        jobs = [*self._small, *self._big]
        self._small.clear()
        self._big.clear()
        return jobs
