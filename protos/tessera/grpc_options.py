"""Options of every channel and server: dead peers are found in seconds, floods are bounded.

grpc ignores keys that it does not know; tests check the behaviour, not these names.

Next: interceptors.py.
"""

from __future__ import annotations

KEEPALIVE_MS = 10_000
PING_TIMEOUT_MS = 5_000
MESSAGE_SLACK_BYTES = 1 << 20  # a message at its limit still arrives and is refused with a reason

Options = list[tuple[str, int]]


def server_options(max_receive_bytes: int, max_streams: int = 100) -> Options:
    """Return a server's options.

    Args:
        max_receive_bytes: largest message that is taken.
        max_streams: concurrent calls of one connection (bounds rapid-reset floods).
    """
    return [
        ("grpc.so_reuseport", 0),  # else two servers share a port in silence
        ("grpc.max_concurrent_streams", max_streams),
        ("grpc.max_receive_message_length", max_receive_bytes),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_metadata_size", 8192),
        ("grpc.absolute_max_metadata_size", 16384),
        ("grpc.http2.min_ping_interval_without_data_ms", PING_TIMEOUT_MS),
        # Else idle clients that ping, as ours do, are thrown out after some seconds.
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.max_connection_idle_ms", 300_000),
        ("grpc.server_handshake_timeout_ms", 5_000),
        *_keepalive(),
    ]


def channel_options(max_receive_bytes: int = -1) -> Options:
    """Return a channel's options; -1 takes messages of any size."""
    return [
        ("grpc.max_receive_message_length", max_receive_bytes),
        ("grpc.max_send_message_length", -1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.keepalive_permit_without_calls", 1),
        *_keepalive(),
    ]


def _keepalive() -> Options:
    # Without ping_timeout_ms a frozen peer is noticed only after a minute.
    return [
        ("grpc.keepalive_time_ms", KEEPALIVE_MS),
        ("grpc.keepalive_timeout_ms", PING_TIMEOUT_MS),
        ("grpc.http2.ping_timeout_ms", PING_TIMEOUT_MS),
    ]
