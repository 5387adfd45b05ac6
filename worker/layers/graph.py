"""A computation that is recorded once and replayed: one launch instead of hundreds.

It reads and writes the same memory at every replay, so its inputs are copied into fixed tensors, and what it returns
holds until the next replay.

Next: worker/models/vision_graph.py
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, Generic, Protocol, TypeVar

import torch

T = TypeVar("T", covariant=True)
_WARM_UPS = 2  # libraries choose kernels and take their workspaces at the first calls, which cannot be recorded


class Graph(Protocol[T]):
    """A computation that was recorded."""

    def replay(self) -> T:
        """Run it on what its inputs hold now; return its results, which the next replay overwrites."""


class CudaGraph(Generic[T]):
    """Recorded by CUDA.

    Args:
        run: the computation, without host synchronisation; called a few times.
        pool: memory shared with graphs that never run at the same time.
    """

    def __init__(self, run: Callable[[], T], pool: Any = None) -> None:
        with recording_stream(torch.device("cuda")):
            for _ in range(_WARM_UPS):
                run()
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, pool=pool, stream=_side_stream()):
            self._results = run()

    def replay(self) -> T:
        """See `Graph`."""
        self._graph.replay()
        return self._results


class EagerGraph(Generic[T]):
    """Runs the computation anew at every replay: what stands in for a recording where there is none to be had.

    Args:
        run: the computation.
        pool: not used.
    """

    def __init__(self, run: Callable[[], T], pool: object | None = None) -> None:
        self._run = run

    def replay(self) -> T:
        """See `Graph`."""
        return self._run()


Recorder = Callable[[Callable[[], Any], Any], Graph[Any]]
"""Makes a recording of a computation, in a pool of memory."""


def recorder_for(device: torch.device) -> Recorder | None:
    """Return what records on a device; None where recording gains nothing."""
    return CudaGraph if device.type == "cuda" else None


def new_pool(device: torch.device) -> object | None:
    """Return memory for recordings that never run at the same time; None where nothing is recorded."""
    return torch.cuda.graph_pool_handle() if device.type == "cuda" else None


@contextmanager
def recording_stream(device: torch.device) -> Iterator[None]:
    """Launch on the stream that recordings are made on, behind all that was launched before."""
    if device.type != "cuda":
        yield
        return
    current, side = torch.cuda.current_stream(), _side_stream()
    side.wait_stream(current)
    with torch.cuda.stream(side):
        yield
    current.wait_stream(side)


@cache
def _side_stream() -> torch.cuda.Stream:
    """Return the one stream of all recordings: for each that cuBLAS has seen it keeps a workspace."""
    return torch.cuda.Stream()
