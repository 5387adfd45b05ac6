"""How much memory is free for caches.

Next: worker/boot.py
"""

from pathlib import Path

import torch

_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")


def free_bytes(device: torch.device) -> int:
    """Return the free bytes of a device; of this container where it has a limit."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info(device)[0]
    return min(_available_bytes(), _cgroup_left_bytes())


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
