"""The worker's engine in the calling process, made by the worker's own code.

Next: engine.py
"""

from pathlib import Path

from benchmarks.worker_options import worker_options
from tessera.logs import configure_logs
from worker.boot import boot
from worker.engine.engine import Engine
from worker.settings import WorkerSettings


def boot_engine(model_dir: Path, threads: int) -> Engine:
    """Return an engine that has run its first step.

    Args:
        model_dir: the checkpoint.
        threads: of the arithmetic.
    """
    configure_logs("benchmarks", "warning")
    settings = WorkerSettings(**worker_options(model_dir, threads))  # type: ignore[arg-type]
    engine, _ = boot(settings, report=lambda *_: None)
    return engine
