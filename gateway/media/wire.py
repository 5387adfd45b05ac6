"""Messages between the gateway and a pool process: a length, then JSON. What a process says is data, never code.

Next: gateway/media/channel.py
"""

import json
import socket
import struct
from typing import Any

ALIGNMENT = 64  # bytes, of a result in shared memory
MAX_MESSAGE_BYTES = 1 << 20
LENGTH = struct.Struct("<I")


def pack(message: dict[str, Any]) -> bytes:
    """The bytes of a message."""
    body = json.dumps(message).encode()
    assert len(body) <= MAX_MESSAGE_BYTES
    return LENGTH.pack(len(body)) + body


def send(channel: socket.socket, message: dict[str, Any]) -> None:
    """Send a message, blocking."""
    channel.sendall(pack(message))


def receive(channel: socket.socket) -> dict[str, Any] | None:
    """The next message, blocking; None at the channel's end."""
    head = _receive_exactly(channel, LENGTH.size)
    body = head and _receive_exactly(channel, LENGTH.unpack(head)[0])
    return json.loads(body) if body else None


def _receive_exactly(channel: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        piece = channel.recv(size - len(data))
        if not piece:
            return b""
        data += piece
    return bytes(data)
