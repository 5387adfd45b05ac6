"""What the machine does by itself: reads from memory and multiplies matrices.

Next: hugging_face.py
"""

import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.costs import Machine

_READ_BYTES = 512 << 20  # far more than any cache
_GEMM_SIDE = 2048


class MachineTest:
    """Two short tests, run in turn with the contestants.

    Args:
        model_dir: not looked at; all contestants are made alike.
        threads: of torch.
    """

    def __init__(self, model_dir: Path, threads: int) -> None:
        torch.set_num_threads(threads)
        self._memory = torch.ones(_READ_BYTES // 4)
        self._a, self._b = (torch.randn(_GEMM_SIDE, _GEMM_SIDE) for _ in range(2))
        self.measure()

    def measure(self) -> Machine:
        """Return the best of a few tries of each."""
        read_s = _fastest(lambda: self._memory.sum(), 5)
        gemm_s = _fastest(lambda: self._a @ self._b, 3)
        return Machine(_READ_BYTES / read_s, 2 * _GEMM_SIDE**3 / gemm_s)


def _fastest(work: Callable[[], object], tries: int) -> float:
    best = float("inf")
    for _ in range(tries):
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    return best
