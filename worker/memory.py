"""How much memory is free for caches, and how much a computation takes.

Next: worker/engine/memory_needs.py
"""

import gc
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Protocol

import torch

_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")


def free_bytes(device: torch.device) -> int:
    """Return the free bytes of a device; of this container where it has a limit."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info(device)[0]
    return min(_available_bytes(), _cgroup_left_bytes())


class Usage(NamedTuple):
    """Memory that a computation took.

    Args:
        peak_bytes: most at once, over what stays.
        kept_bytes: stays when all that it returned is gone: modules that were loaded, workspaces of libraries.
    """

    peak_bytes: int
    kept_bytes: int


class Meter(Protocol):
    """Tells how much memory a computation takes."""

    def measure(self, run: Callable[[], object]) -> Usage:
        """Run something once, to its end, and drop what it returns."""


class CudaMeter:
    """Counts what torch's allocator takes from the device, and what is gone from it for other reasons.

    Args:
        device: a GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def measure(self, run: Callable[[], object]) -> Usage:
        """See `Meter`; what the allocator cached before goes back to the device."""
        gc.collect()
        torch.cuda.synchronize(self._device)
        free_before = free_bytes(self._device)
        torch.cuda.reset_peak_memory_stats(self._device)
        run()
        gc.collect()  # of references in circles
        torch.cuda.synchronize(self._device)
        # Reserved, not allocated: what lies unused between allocations is nobody else's either.
        peak = torch.cuda.max_memory_reserved(self._device)
        free_after = free_bytes(self._device)
        return Usage(peak - torch.cuda.memory_reserved(self._device), max(free_before - free_after, 0))


def meter_for(device: torch.device) -> Meter | None:
    """Return what measures on a device; None on the CPU, where the largest steps take minutes."""
    return CudaMeter(device) if device.type == "cuda" else None


def _available_bytes() -> int:
    for line in _MEMINFO.read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) << 10
    raise RuntimeError(f"{_MEMINFO} does not say what is available")


def _cgroup_left_bytes(folder: Path = _CGROUP) -> int:
    """Return what a control group's limit leaves; a very large number where there is none."""
    try:
        limit, current = (folder / "memory.max").read_text().strip(), (folder / "memory.current").read_text()
    except OSError:
        return 1 << 62
    return (1 << 62) if limit == "max" else max(int(limit) - int(current), 0)
