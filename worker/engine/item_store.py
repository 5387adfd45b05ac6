"""Staged items: bytes that a gateway has sent, until they are encoded or forgotten.

The one structure of the engine that two threads use: the RPC thread brings items, the engine thread takes them. Every
method is short and holds the lock.

Next: worker/engine/scheduler.py
"""

import threading
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol


class StagedItem(Protocol):
    """What the store needs of an item; `tessera.items.MultimodalItem` is one."""

    @property
    def content_hash(self) -> bytes:
        """32 bytes."""

    @property
    def size_bytes(self) -> int:
        """Bytes of all its arrays."""


@dataclass(slots=True)
class _Entry:
    item: StagedItem
    touched_s: float


class ItemStore:
    """Items by content hash, with a byte budget and a time to live.

    Items that a live sequence wants are neither evicted nor expired.

    Args:
        capacity_bytes: most bytes of items and of uploads under way.
        ttl_s: seconds after which an unwanted item is forgotten.
        clock: seconds, monotonic.
    """

    def __init__(self, capacity_bytes: int, ttl_s: float, clock: Callable[[], float]) -> None:
        self.capacity_bytes = capacity_bytes
        self._ttl_s = ttl_s
        self._clock = clock
        self._lock = threading.Lock()
        self._entries: OrderedDict[bytes, _Entry] = OrderedDict()
        self._wanted: Counter[bytes] = Counter()
        self._used_bytes = 0
        self._reserved_bytes = 0

    @property
    def used_bytes(self) -> int:
        """Bytes of items and of uploads under way."""
        return self._used_bytes + self._reserved_bytes

    @property
    def num_wanted(self) -> int:
        """Different items that live sequences want."""
        return len(self._wanted)

    def is_wanted(self, content_hash: bytes) -> bool:
        """Return whether a live sequence wants an item."""
        return content_hash in self._wanted

    def __contains__(self, content_hash: bytes) -> bool:
        return content_hash in self._entries

    def reserve(self, size_bytes: int) -> bool:
        """Set bytes aside for an upload, forgetting unwanted items where needed; False where there is no room."""
        with self._lock:
            self._expire()
            while self.used_bytes + size_bytes > self.capacity_bytes:
                victim = next((h for h in self._entries if h not in self._wanted), None)
                if victim is None:
                    return False
                self._forget(victim)
            self._reserved_bytes += size_bytes
            return True

    def unreserve(self, size_bytes: int) -> None:
        """Give back what `reserve` set aside."""
        with self._lock:
            self._reserved_bytes -= size_bytes

    def put(self, item: StagedItem, reserved_bytes: int = 0) -> None:
        """Keep an item whose bytes were verified, giving back its reservation; the same item twice is kept once."""
        with self._lock:
            self._reserved_bytes -= reserved_bytes
            if item.content_hash not in self._entries:
                self._used_bytes += item.size_bytes
                self._entries[item.content_hash] = _Entry(item, self._clock())
            self._touch(item.content_hash)

    def get(self, content_hash: bytes) -> StagedItem | None:
        """Return an item and make it the most recently used, or None."""
        with self._lock:
            return self._entries[content_hash].item if self._touch(content_hash) else None

    def touch(self, content_hash: bytes) -> bool:
        """Make an item the most recently used; False where it is not held."""
        with self._lock:
            return self._touch(content_hash)

    def want(self, content_hash: bytes) -> None:
        """Keep an item, now or as soon as it comes, until `unwant`."""
        with self._lock:
            self._wanted[content_hash] += 1

    def unwant(self, content_hash: bytes) -> None:
        """Take back one `want`."""
        with self._lock:
            assert self._wanted[content_hash] > 0, "an item was unwanted twice"
            self._wanted[content_hash] -= 1
            if not self._wanted[content_hash]:
                del self._wanted[content_hash]

    def expire(self) -> None:
        """Forget unwanted items whose time has passed."""
        with self._lock:
            self._expire()

    def _touch(self, content_hash: bytes) -> bool:
        entry = self._entries.get(content_hash)
        if entry is None:
            return False
        entry.touched_s = self._clock()
        self._entries.move_to_end(content_hash)
        return True

    def _expire(self) -> None:
        limit = self._clock() - self._ttl_s
        stale = []
        for content_hash, entry in self._entries.items():  # least recently touched first
            if entry.touched_s > limit:
                break
            if content_hash not in self._wanted:
                stale.append(content_hash)
        for content_hash in stale:
            self._forget(content_hash)

    def _forget(self, content_hash: bytes) -> None:
        self._used_bytes -= self._entries.pop(content_hash).item.size_bytes
