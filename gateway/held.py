"""What the gateway holds for later requests: uploads, and prepared items.

One store, two uses: files by the SHA-256 of their bytes, and items by content
hash. Bounded by bytes, for each caller too, with a time to live after the last
use. Plain Python with the clock passed in.

Next: uploads.py.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from tessera.errors import ResourceExhausted

T = TypeVar("T")


@dataclass
class _Entry(Generic[T]):
    value: T
    size_bytes: int
    owner: str
    expires_at: float


class HeldStore(Generic[T]):
    """Values by hash, under a byte budget and a time to live.

    Args:
        max_bytes: budget of all values.
        max_owner_bytes: budget of one caller's values.
        ttl_s: seconds after the last use.
        clock: monotonic seconds.
        reason: ErrorInfo reason when a budget is full.
    """

    def __init__(
        self, max_bytes: int, max_owner_bytes: int, ttl_s: float, clock: Callable[[], float], reason: str
    ) -> None:
        self.max_bytes = max_bytes
        self.max_owner_bytes = max_owner_bytes
        self.ttl_s = ttl_s
        self._clock = clock
        self._reason = reason
        self._entries: OrderedDict[bytes, _Entry[T]] = OrderedDict()
        self._owner_bytes: defaultdict[str, int] = defaultdict(int)
        self.size_bytes = 0

    def __contains__(self, key: bytes) -> bool:
        return self.get(key) is not None

    def __len__(self) -> int:
        self._expire()
        return len(self._entries)

    def get(self, key: bytes) -> T | None:
        """Return the value and renew its time to live, or None."""
        self._expire()
        entry = self._entries.get(key)
        if entry is None:
            return None
        entry.expires_at = self._clock() + self.ttl_s
        self._entries.move_to_end(key)
        return entry.value

    def put(self, key: bytes, value: T, size_bytes: int, owner: str = "") -> None:
        """Hold a value; holding it again renews it.

        Raises:
            ResourceExhausted: it does not fit the caller's budget, or the store's.
        """
        if key in self._entries:
            self._remove(key)
        self.check_room(size_bytes, owner)
        self._entries[key] = _Entry(value, size_bytes, owner, self._clock() + self.ttl_s)
        self._owner_bytes[owner] += size_bytes
        self.size_bytes += size_bytes

    def put_evicting(self, key: bytes, value: T, size_bytes: int) -> bool:
        """Hold a value, dropping the least recently used ones to make room.

        Returns:
            False where it is larger than the whole budget and is not held.
        """
        if key in self._entries:
            self._remove(key)
        if size_bytes > self.max_bytes:
            return False
        while self.size_bytes + size_bytes > self.max_bytes:
            self._remove(next(iter(self._entries)))
        self.put(key, value, size_bytes)
        return True

    def check_room(self, size_bytes: int, owner: str = "") -> None:
        """Raise ResourceExhausted where `size_bytes` more of a caller would not fit now."""
        self._expire()
        if self._owner_bytes[owner] + size_bytes > self.max_owner_bytes:
            raise ResourceExhausted(
                f"{size_bytes} bytes do not fit the caller's budget of {self.max_owner_bytes} bytes held at once.",
                reason=self._reason,
                retry_after_s=self.ttl_s,
            )
        if self.size_bytes + size_bytes > self.max_bytes:
            raise ResourceExhausted(
                f"{size_bytes} bytes do not fit the server's budget of {self.max_bytes} bytes held at once.",
                reason=self._reason,
                retry_after_s=self.ttl_s,
            )

    def _expire(self) -> None:
        # Entries stand in order of last use, hence of expiry.
        now = self._clock()
        while self._entries:
            key, entry = next(iter(self._entries.items()))
            if entry.expires_at > now:
                return
            self._remove(key)

    def _remove(self, key: bytes) -> None:
        entry = self._entries.pop(key)
        self.size_bytes -= entry.size_bytes
        self._owner_bytes[entry.owner] -= entry.size_bytes
        if not self._owner_bytes[entry.owner]:
            del self._owner_bytes[entry.owner]
