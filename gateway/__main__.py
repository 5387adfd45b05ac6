"""`python -m gateway`: reads the settings once, sets up the log, serves.

Next: server.py.
"""

from __future__ import annotations

import sys

import structlog
import uvloop

from gateway.settings import GatewaySettings
from tessera.errors import ServeError
from tessera.logs import configure_logs
from tessera.settings import load_settings


def main() -> int:
    """Run the gateway until it is told to stop; returns the exit code."""
    settings = load_settings(GatewaySettings, prog="python -m gateway")
    configure_logs("gateway", settings.log_level)
    try:
        uvloop.run(serve(settings))
    except (ServeError, OSError) as error:
        # What an operator can mend: a model that is not there, a port that is taken.
        structlog.get_logger(__name__).error("gateway_failed", reason=str(error))
        return 1
    return 0


async def serve(settings: GatewaySettings) -> None:
    """Build the gateway inside the running loop and serve."""
    from gateway.server import Gateway

    await Gateway(settings).serve()


if __name__ == "__main__":
    sys.exit(main())
