"""`python -m worker`: reads the settings once, sets up the log, serves.

Next: worker/server.py
"""

import os

import structlog
import uvloop

from tessera.errors import ServeError
from tessera.logs import configure_logs
from tessera.settings import load_settings
from worker.settings import WorkerSettings

# What an operator can mend; their modules are not imported before the worker needs them.
MENDABLE = ("CheckpointError", "SizingError")


def main() -> int:
    """Run the worker until it is told to stop; returns the exit code."""
    settings = load_settings(WorkerSettings, prog="python -m worker")
    configure_logs("worker", settings.log_level)
    log = structlog.get_logger(__name__)
    try:
        uvloop.run(serve(settings))
    except Exception as error:
        if isinstance(error, ServeError | OSError) or type(error).__name__ in MENDABLE:
            log.error("worker_failed", reason=str(error))
        else:
            log.error("worker_failed", exc_info=error)
        return 1
    return 0


async def serve(settings: WorkerSettings) -> None:
    """Build the worker inside the running loop and serve."""
    from worker.server import Worker

    await Worker(settings).serve()


if __name__ == "__main__":
    # A thread that still imports torch or reads weights cannot be joined, and would abort an ordinary exit.
    os._exit(main())
