"""How long the device was busy, as the profiler saw it.

Next: benchmarks/gpu/served.py
"""

import json
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

_ON_DEVICE = {"kernel", "gpu_memcpy", "gpu_memset"}


def busy_ms(work: Callable[[], None]) -> float:
    """Return the milliseconds in which at least one kernel or copy ran; 0 where there is no GPU to look at."""
    activity = ProfilerActivity.CUDA if torch.cuda.is_available() else ProfilerActivity.CPU
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    with profile(activities=[activity]) as profiler:
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    with tempfile.TemporaryDirectory(prefix="tessera-trace-") as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text(errors="replace"))["traceEvents"]
    spans = [(event["ts"], event["ts"] + event["dur"]) for event in events if event.get("cat") in _ON_DEVICE]
    return covered(spans) / 1000


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """Return the length of what spans (begin, end) cover together; where they overlap, it counts once."""
    total, reached = 0.0, float("-inf")
    for begin, end in sorted(spans):
        total += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return total
