"""`python -m tessera.healthcheck HOST:PORT [SERVICE]`: exits 0 where the server says SERVING.

For containers: grpc.health.v1 asked once, with a short deadline.

Next: deploy/gateway.Dockerfile.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

TIMEOUT_S = 3.0


def check(address: str, service: str = "", timeout_s: float = TIMEOUT_S) -> str:
    """Return what a server says of itself: "SERVING", "NOT_SERVING", or why it said nothing.

    Args:
        address: "host:port".
        service: full name; "" = the server as a whole.
        timeout_s: seconds.
    """
    with grpc.insecure_channel(address) as channel:
        try:
            response = health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(service=service), timeout=timeout_s
            )
        except grpc.RpcError as error:
            return f"{error.code().name}: {error.details()}"  # type: ignore[attr-defined]
    return health_pb2.HealthCheckResponse.ServingStatus.Name(response.status)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the status; return 0 for SERVING, 1 for anything else, 2 for wrong use."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    if not 1 <= len(arguments) <= 2:
        print("usage: python -m tessera.healthcheck HOST:PORT [SERVICE]", file=sys.stderr)
        return 2
    status = check(arguments[0], arguments[1] if len(arguments) > 1 else "")
    print(status)
    return 0 if status == "SERVING" else 1


if __name__ == "__main__":
    sys.exit(main())
