"""Messages between the gateway and a pool process: a length, then JSON. What a process says is data, never code.

Next: gateway/media/child.py
"""

import asyncio
import json
import socket
import struct
from typing import Any

ALIGNMENT = 64  # bytes, of a result in shared memory
MAX_MESSAGE_BYTES = 1 << 20
_LENGTH = struct.Struct("<I")


def pack(message: dict[str, Any]) -> bytes:
    """The bytes of a message."""
    body = json.dumps(message).encode()
    assert len(body) <= MAX_MESSAGE_BYTES
    return _LENGTH.pack(len(body)) + body


def send(channel: socket.socket, message: dict[str, Any]) -> None:
    """Send a message, blocking."""
    channel.sendall(pack(message))


def receive(channel: socket.socket) -> dict[str, Any] | None:
    """The next message, blocking; None at the channel's end."""
    head = _receive_exactly(channel, _LENGTH.size)
    body = head and _receive_exactly(channel, _LENGTH.unpack(head)[0])
    return json.loads(body) if body else None


def _receive_exactly(channel: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        piece = channel.recv(size - len(data))
        if not piece:
            return b""
        data += piece
    return bytes(data)


async def asend(channel: socket.socket, message: dict[str, Any]) -> None:
    """Send a message over a channel that does not block.

    Raises:
        OSError: The other end is gone.
    """
    await asyncio.get_running_loop().sock_sendall(channel, pack(message))


async def areceive(channel: socket.socket) -> dict[str, Any]:
    """The next message of a channel that does not block.

    Raises:
        EOFError: The channel's end.
        ValueError: Not a message: too long, or not a JSON object.
    """
    (size,) = _LENGTH.unpack(await _areceive_exactly(channel, _LENGTH.size))
    if size > MAX_MESSAGE_BYTES:
        raise ValueError(f"a message of {size} bytes")
    message = json.loads(await _areceive_exactly(channel, size))
    if not isinstance(message, dict):
        raise ValueError("a message that is no object")
    return message


async def _areceive_exactly(channel: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        piece = await asyncio.get_running_loop().sock_recv(channel, size - len(data))
        if not piece:
            raise EOFError
        data += piece
    return bytes(data)
