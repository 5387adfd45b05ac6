"""Health of the gateway: SERVING while a worker is ready.

Next: server.py.
"""

from __future__ import annotations

from collections.abc import Sequence

from grpc_health.v1 import health_pb2
from grpc_health.v1._async import HealthServicer

SERVICES = ("", "tessera.v1.InferenceService")


class GatewayHealth:
    """Keeps grpc.health.v1 in step with the workers."""

    def __init__(self) -> None:
        self.servicer = HealthServicer()
        self._draining = False

    async def update(self, ready: Sequence[bool]) -> None:
        """Set the status of each service from which workers are ready."""
        serving = any(ready) and not self._draining
        status = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        for service in SERVICES:
            await self.servicer.set(service, status)

    async def drain(self) -> None:
        """Say NOT_SERVING from now on."""
        self._draining = True
        await self.servicer.enter_graceful_shutdown()
