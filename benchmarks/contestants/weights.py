"""Loading alone, in a fresh process whose memory the bench watches from outside.

Next: ../load_memory.py
"""

from pathlib import Path

import torch

from benchmarks.contestants.boot_engine import boot_engine


class Loader:
    """Imports everything first; then `load` makes model and caches as the worker does.

    Args:
        model_dir: the checkpoint.
        threads: of torch.
    """

    def __init__(self, model_dir: Path, threads: int) -> None:
        torch.set_num_threads(threads)
        self._model_dir, self._threads = model_dir, threads
        # the threads and the math library's own start-up memory belong to "before"
        torch.randn(256, 256) @ torch.randn(256, 256)

    def load(self) -> tuple[int, int]:
        """Get ready to serve, and stay so; returns (bytes of the weights as kept, bytes of the KV cache)."""
        self._engine = boot_engine(self._model_dir, self._threads)
        return self._engine.model.weight_bytes, self._engine.runner.kv_cache.size_bytes
