"""Admission: how many requests, and how many bytes of media, run at once.

Next: placement.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tessera.errors import ResourceExhausted


class Admission:
    """Counts what runs and refuses what would be too much.

    Args:
        max_requests: requests at once.
        max_bytes: bytes of media that they hold together.
    """

    def __init__(self, max_requests: int, max_bytes: int) -> None:
        self.max_requests = max_requests
        self.max_bytes = max_bytes
        self.requests = 0
        self.bytes = 0

    @contextmanager
    def request(self, size_bytes: int) -> Iterator[Ticket]:
        """Let a request in for the length of the `with`.

        Args:
            size_bytes: of the request message.

        Raises:
            ResourceExhausted: OVERLOADED, with a time after which to try again.
        """
        if self.requests >= self.max_requests:
            raise ResourceExhausted(
                f"{self.max_requests} requests are running; try again.", reason="OVERLOADED", retry_after_s=1.0
            )
        self.requests += 1
        ticket = Ticket(self)
        try:
            ticket.add_bytes(size_bytes)
            yield ticket
        finally:
            self.requests -= 1
            self.bytes -= ticket.bytes


class Ticket:
    """What one request holds."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self.bytes = 0

    def add_bytes(self, size_bytes: int) -> None:
        """Count bytes that the request holds from now on.

        Raises:
            ResourceExhausted: OVERLOADED; alone it is let through, so that no request waits for ever.
        """
        admission = self._admission
        if admission.bytes + size_bytes > admission.max_bytes and admission.bytes > self.bytes:
            raise ResourceExhausted(
                "The media of running requests fill the server's memory budget; try again.",
                reason="OVERLOADED",
                retry_after_s=1.0,
            )
        self.bytes += size_bytes
        admission.bytes += size_bytes
