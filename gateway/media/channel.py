"""The gateway's end of a pool process's channel, on the event loop.

Next: gateway/media/child.py
"""

import asyncio
import json
import socket
from typing import Any

from gateway.media.wire import LENGTH, MAX_MESSAGE_BYTES, pack


async def send(channel: socket.socket, message: dict[str, Any]) -> None:
    """Send a message over a channel that does not block.

    Raises:
        OSError: The other end is gone.
    """
    await asyncio.get_running_loop().sock_sendall(channel, pack(message))


async def receive(channel: socket.socket) -> dict[str, Any]:
    """The next message of a channel that does not block.

    Raises:
        EOFError: The channel's end.
        ValueError: Not a message: too long, or not a JSON object.
    """
    (size,) = LENGTH.unpack(await _receive_exactly(channel, LENGTH.size))
    if size > MAX_MESSAGE_BYTES:
        raise ValueError(f"a message of {size} bytes")
    message = json.loads(await _receive_exactly(channel, size))
    if not isinstance(message, dict):
        raise ValueError("a message that is no object")
    return message


async def _receive_exactly(channel: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        piece = await asyncio.get_running_loop().sock_recv(channel, size - len(data))
        if not piece:
            raise EOFError
        data += piece
    return bytes(data)
