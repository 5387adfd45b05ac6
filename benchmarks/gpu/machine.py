"""Where a benchmark of kernels runs: a GPU, timed by its own events; or the emulator, which shows that it runs.

Times are medians of graph replays, so that launches cost what they cost in serving, over input sets that together
exceed the second cache. Limits are measured in the same run: the copy bandwidth and the rate of a large product.

Next: benchmarks/gpu/table.py
"""

import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from tessera_kernels import cuda

EMULATED = Path(__file__).resolve().parents[2] / "kernels" / "build" / "libtessera_emulated.so"
_COPY_BYTES = 4 << 30
_PRODUCT_SIDE = 8192
_CACHE_BYTES = 256 << 20  # what input sets must exceed together, several times the second cache of an H200
_ROUNDS, _REPLAYS, _QUEUED = 20, 5, 15


@dataclass(frozen=True)
class Machine:
    """The device and its limits.

    Args:
        device: where tensors go.
        copy_gbps: bytes read and written by a large copy, 1e9 a second; 0 where nothing is timed.
        bf16_tflops: rate of a large bf16 product on random numbers; 0 likewise.
    """

    device: torch.device
    copy_gbps: float = 0.0
    bf16_tflops: float = 0.0

    @property
    def is_timed(self) -> bool:
        """Whether figures mean anything."""
        return self.device.type == "cuda"

    def milliseconds(self, calls: Sequence[Callable[[], object]]) -> float:
        """Return the median time of one call.

        Args:
            calls: the same computation on different memory, taken in turn.
        """
        if not self.is_timed:
            for call in calls:
                call()
            return float("nan")
        graph = _recorded(calls)
        times = []
        for _ in range(_ROUNDS):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            for _ in range(_REPLAYS):
                graph.replay()
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end) / _REPLAYS / len(calls))
        return statistics.median(times)

    def eager_milliseconds(self, call: Callable[[], object]) -> float:
        """Return the median time of a call that cannot be recorded, host time included."""
        if not self.is_timed:
            call()
            return float("nan")
        for _ in range(3):
            call()
        times = []
        for _ in range(_ROUNDS):
            torch.cuda.synchronize()
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            call()
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end))
        return statistics.median(times)

    def queued_milliseconds(self, call: Callable[[], object]) -> float:
        """Return the median time of one of many calls on the same memory, launched without waiting in between.

        What the host does for a call hides behind the device's work on the one before, if that takes longer.
        """
        if not self.is_timed:
            call()
            return float("nan")
        times = []
        for _ in range(_ROUNDS):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            for _ in range(3):
                call()  # so that the device is behind the host when the clock starts
            begin.record()
            for _ in range(_QUEUED):
                call()
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end) / _QUEUED)
        return statistics.median(times)

    def copies(self, size_bytes: int) -> int:
        """Return how many input sets of this size exceed the cache together."""
        return max(1, min(64, -(-_CACHE_BYTES // max(size_bytes, 1)))) if self.is_timed else 1


def _recorded(calls: Sequence[Callable[[], object]]) -> torch.cuda.CUDAGraph:
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for call in calls:
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    graph.replay()
    torch.cuda.synchronize()
    return graph


@contextmanager
def open_machine(emulated: bool) -> Iterator[Machine]:
    """Measure the GPU's limits, or run on the emulator.

    Raises:
        SystemExit: there is neither.
    """
    if emulated:
        if not EMULATED.is_file():
            raise SystemExit("The emulated ops are not built: run `make emulator`.")
        with cuda.using(cuda.load(EMULATED, "tessera_emulated", "cpu")), torch.inference_mode():
            yield Machine(torch.device("cpu"))
        return
    if not cuda.available():
        raise SystemExit(f"No CUDA ops here: {cuda.reason()}. With --emulated (or --tiny) all runs untimed on the CPU.")
    with torch.inference_mode():
        untimed = Machine(torch.device("cuda"))
        yield Machine(untimed.device, _copy_gbps(untimed), _bf16_tflops(untimed))


def _copy_gbps(machine: Machine) -> float:
    source = torch.empty(_COPY_BYTES, dtype=torch.uint8, device=machine.device).random_()
    target = torch.empty_like(source)
    return 2 * _COPY_BYTES / 1e6 / machine.milliseconds([lambda: target.copy_(source)])


def _bf16_tflops(machine: Machine) -> float:
    left, right = (
        torch.randn(_PRODUCT_SIDE, _PRODUCT_SIDE, device=machine.device, dtype=torch.bfloat16) for _ in range(2)
    )
    return 2 * _PRODUCT_SIDE**3 / 1e9 / machine.milliseconds([lambda: left @ right])
