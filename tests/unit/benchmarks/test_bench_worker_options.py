"""One set-up for the worker as a service and for the bare engine."""

from pathlib import Path

from benchmarks.worker_options import as_flags, worker_options
from tessera.settings import load_settings
from worker.settings import WorkerSettings


def test_flags_and_fields_say_the_same() -> None:
    """The worker that reads the flags has the settings that the bare engine is made with."""
    options = worker_options(Path("/model"), threads=2)
    assert load_settings(WorkerSettings, as_flags(options), {}) == WorkerSettings(**options)  # type: ignore[arg-type]
