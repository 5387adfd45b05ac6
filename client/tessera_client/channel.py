"""Where the server is, and how a channel to it is kept.

Next: sync_client.py and async_client.py.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tessera.grpc_options import channel_options
from tessera.v1 import inference_service_pb2_grpc as rpc

DEFAULT_PORT = 50051
DEFAULT_ADDRESS = f"localhost:{DEFAULT_PORT}"

# A server advertises 100 streams a connection by default; more would queue silently.
CALLS_PER_CHANNEL = 90

# The keepalive of every channel; a server that is being started is found soon; and each channel has its own
# connection, so that a second one really doubles the streams.
CHANNEL_OPTIONS: tuple[tuple[str, int], ...] = (
    *channel_options(),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.use_local_subchannel_pool", 1),
)


def normalize_address(address: str | None) -> str:
    """Return "host:port" of what a user typed: a scheme is taken off, a missing port is 50051.

    Raises:
        ValueError: the port is not a number.
    """
    text = (address or DEFAULT_ADDRESS).strip().rstrip("/")
    if text.startswith(("unix:", "dns:", "ipv4:", "ipv6:")):
        return text
    for scheme in ("grpc://", "http://"):
        text = text.removeprefix(scheme)
    if text.count(":") > 1 and not text.startswith("["):
        text = f"[{text}]"
    if text.endswith("]") or ":" not in text:
        return f"{text}:{DEFAULT_PORT}"
    host, _, port = text.rpartition(":")
    if not port.isdigit() or not 0 < int(port) < 65536:
        raise ValueError(f"{address!r} is not an address: use host:port")
    return f"{host or 'localhost'}:{port}"


@dataclass
class Lane:
    """A channel, its stub, and how many calls it carries now."""

    channel: Any
    stub: rpc.InferenceServiceStub
    in_flight: int = 0


class ChannelPool:
    """Opens another channel when each open one carries as many calls as a server takes.

    Args:
        open_channel: makes a grpc or a grpc.aio channel.
        limit: calls a channel.
    """

    def __init__(self, open_channel: Callable[[], Any], limit: int = CALLS_PER_CHANNEL) -> None:
        self._open_channel = open_channel
        self._limit = limit
        self._lock = threading.Lock()
        self._closed = False
        self.lanes: list[Lane] = []

    @contextmanager
    def lane(self) -> Iterator[rpc.InferenceServiceStub]:
        """Hold the stub of a channel that has room, for the length of one call.

        Raises:
            RuntimeError: the pool is closed.
        """
        lane = self._take()
        try:
            yield lane.stub
        finally:
            with self._lock:
                lane.in_flight -= 1

    def _take(self) -> Lane:
        with self._lock:
            if self._closed:
                raise RuntimeError("The client is closed.")
            lane = next((lane for lane in self.lanes if lane.in_flight < self._limit), None)
            if lane is None:
                channel = self._open_channel()
                lane = Lane(channel, rpc.InferenceServiceStub(channel))
                self.lanes.append(lane)
            lane.in_flight += 1
            return lane

    def drain(self) -> list[Any]:
        """Refuse further calls and return the channels, for their owner to close."""
        with self._lock:
            self._closed = True
            channels = [lane.channel for lane in self.lanes]
            self.lanes.clear()
            return channels
