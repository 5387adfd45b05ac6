"""How much memory does loading take at its peak, beside what stays?

Next: results.py
"""

import threading
from pathlib import Path
from types import TracebackType

from benchmarks.row import Row
from benchmarks.stage import Stage

_INTERVAL_S = 0.002
_GB = 1e9


def load_memory(stage: Stage) -> Row:
    """Peak anonymous memory above that before loading, over the weights as the engine keeps them plus caches."""
    loader = stage.start("benchmarks.contestants.weights:Loader", stage.model_dir, stage.scale.threads)
    before = anonymous_bytes(loader.pid)
    with PeakWatch(loader.pid) as watch:
        weights, caches = loader.call("load")
    after = anonymous_bytes(loader.pid)
    loader.close()
    return Row(
        "load_memory",
        ours=(watch.peak_bytes - before) / _GB,
        other=(weights + caches) / _GB,
        target=1.15,
        unit="GB",
        better="lower",
        limit=(weights + caches) / _GB,
        note=f"weights {weights / _GB:.2f}, caches {caches / _GB:.2f}, kept {(after - before) / _GB:.2f} GB",
    )


class PeakWatch:
    """Looks at a process's anonymous memory every other millisecond, from outside.

    Args:
        pid: of the process.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self.peak_bytes = anonymous_bytes(pid)

    def __enter__(self) -> "PeakWatch":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(_INTERVAL_S):
            self.peak_bytes = max(self.peak_bytes, anonymous_bytes(self._pid))


def anonymous_bytes(pid: int) -> int:
    """Return the resident anonymous memory of a process (RssAnon); mapped files are not in it.

    Raises:
        OSError: there is no such process, or no /proc.
    """
    return parse_anonymous(Path(f"/proc/{pid}/status").read_text())


def parse_anonymous(status: str) -> int:
    """Return RssAnon of a /proc status file, in bytes.

    Raises:
        ValueError: it does not say.
    """
    for line in status.splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise ValueError("the kernel does not tell RssAnon")
