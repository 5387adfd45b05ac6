"""The meter of a GPU: what it counts, on a device that is told what happens.

Next: tests/unit/worker/engine/test_memory_profile.py
"""

from collections.abc import Callable

import pytest
import torch

from worker.memory import CudaMeter, Usage, meter_for

GPU = torch.device("cuda", 0)
TOTAL = 1000


class FakeCuda:
    """A device with an allocator that caches what was freed, as torch's does.

    Args:
        used: allocated bytes.
        cached: freed bytes that the allocator keeps.
    """

    def __init__(self, used: int, cached: int) -> None:
        self.used, self.cached, self.outside = used, cached, 0
        self.peak = used + cached
        self.waited = 0

    def take(self, size: int) -> None:
        """Allocate, from the cache where it has room."""
        self.used += size
        self.cached = max(self.cached - size, 0)
        self.peak = max(self.peak, self.used + self.cached)

    def free(self, size: int) -> None:
        """Give back to the allocator."""
        self.used -= size
        self.cached += size

    def install(self, patch: pytest.MonkeyPatch) -> None:
        """Stand in for torch.cuda."""
        answers: dict[str, Callable[..., object]] = {
            "synchronize": lambda device: setattr(self, "waited", self.waited + 1),
            "empty_cache": lambda: setattr(self, "cached", 0),
            "mem_get_info": lambda device: (TOTAL - self.used - self.cached - self.outside, TOTAL),
            "reset_peak_memory_stats": lambda device: setattr(self, "peak", self.used + self.cached),
            "max_memory_reserved": lambda device: self.peak,
            "memory_reserved": lambda device: self.used + self.cached,
        }
        for name, answer in answers.items():
            patch.setattr(torch.cuda, name, answer)


def test_a_meter_tells_what_passes_from_what_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """The peak is over what stays; what stays is the allocator's growth and what is gone outside of it."""
    cuda = FakeCuda(used=100, cached=300)
    cuda.install(monkeypatch)

    def run() -> None:
        assert cuda.cached == 0, "what was cached before hides what is taken"
        cuda.take(50)
        cuda.take(20)  # a library's workspace, for good
        cuda.free(50)
        cuda.take(10)
        cuda.free(10)
        cuda.outside += 7

    meter = CudaMeter(GPU)
    assert meter.measure(run) == Usage(50, 27)
    assert (cuda.used, cuda.cached, cuda.waited) == (120, 0, 2)
    assert meter.measure(lambda: (cuda.take(5), cuda.free(5))) == Usage(5, 0)


def test_what_others_give_back_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that another process frees meanwhile makes nothing negative."""
    cuda = FakeCuda(used=100, cached=0)
    cuda.outside = 40
    cuda.install(monkeypatch)
    assert CudaMeter(GPU).measure(lambda: setattr(cuda, "outside", 0)) == Usage(0, 0)


def test_who_measures() -> None:
    """A GPU is measured; on the CPU estimates serve."""
    assert isinstance(meter_for(GPU), CudaMeter)
    assert meter_for(torch.device("cpu")) is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu() -> None:
    """Tensors that a computation makes and drops are its peak, and nothing of them stays."""
    size = 64 << 20

    def run() -> torch.Tensor:
        first = torch.zeros(size, dtype=torch.uint8, device=GPU)
        return first + 1

    meter = CudaMeter(GPU)
    meter.measure(run)
    usage = meter.measure(run)
    assert 2 * size <= usage.peak_bytes < 3 * size
    assert usage.kept_bytes < size
