"""Encoded items by content hash and salt: a byte budget, pins, and least recently used first out.

The values are opaque here; the model runner puts tensors in.

Next: worker/engine/item_store.py
"""

from collections import Counter, OrderedDict
from dataclasses import dataclass
from typing import Any, NamedTuple


class ItemKey(NamedTuple):
    """What an encoded item is known by: tenants with different salts never share."""

    content_hash: bytes
    cache_salt: bytes


@dataclass(slots=True)
class _Entry:
    size_bytes: int
    pins: int = 0
    value: Any = None


class EncoderCache:
    """Room for encoded items.

    An entry is made when its encode is scheduled (`reserve`) and filled when it has run (`put`). Sequences pin the
    entries whose rows they still have to read; only unpinned ones are evicted.

    Args:
        capacity_bytes: most bytes of all entries.
        retain: keep unpinned entries for later requests; False drops an entry with its last pin.
    """

    def __init__(self, capacity_bytes: int, retain: bool = True) -> None:
        self.capacity_bytes = capacity_bytes
        self.retain = retain
        self.used_bytes = 0
        self._pinned_bytes = 0
        self._pinned_items = 0
        self._entries: OrderedDict[ItemKey, _Entry] = OrderedDict()
        self._hashes: Counter[bytes] = Counter()

    def __contains__(self, key: ItemKey) -> bool:
        return key in self._entries

    @property
    def num_pinned(self) -> int:
        """Entries that sequences hold."""
        return self._pinned_items

    @property
    def free_bytes(self) -> int:
        """Bytes that no entry takes."""
        return self.capacity_bytes - self.used_bytes

    def has_hash(self, content_hash: bytes) -> bool:
        """Return whether the item is held under any salt."""
        return content_hash in self._hashes

    def fits(self, size_bytes: int) -> bool:
        """Return whether an entry could be made by evicting unpinned ones."""
        return self._pinned_bytes + size_bytes <= self.capacity_bytes

    def reserve(self, key: ItemKey, size_bytes: int) -> bool:
        """Make an empty, unpinned entry, evicting where needed; False where pinned entries leave no room."""
        assert key not in self._entries
        if not self.fits(size_bytes):
            return False
        while self.used_bytes + size_bytes > self.capacity_bytes:
            self.discard(next(k for k, entry in self._entries.items() if not entry.pins))
        self._entries[key] = _Entry(size_bytes)
        self._hashes[key.content_hash] += 1
        self.used_bytes += size_bytes
        return True

    def pin(self, key: ItemKey) -> bool:
        """Hold an entry and make it the most recently used; False where there is none."""
        entry = self._entries.get(key)
        if entry is None:
            return False
        if not entry.pins:
            self._pinned_bytes += entry.size_bytes
            self._pinned_items += 1
        entry.pins += 1
        self._entries.move_to_end(key)
        return True

    def unpin(self, key: ItemKey) -> None:
        """Let an entry go that was pinned."""
        entry = self._entries[key]
        assert entry.pins > 0, "an encoded item was released twice"
        entry.pins -= 1
        if not entry.pins:
            self._pinned_bytes -= entry.size_bytes
            self._pinned_items -= 1
            if not self.retain:
                self.discard(key)

    def put(self, key: ItemKey, value: Any) -> None:
        """Fill an entry."""
        self._entries[key].value = value

    def get(self, key: ItemKey) -> Any:
        """Return what an entry holds; None until it was filled."""
        return self._entries[key].value

    def discard(self, key: ItemKey) -> None:
        """Forget an unpinned entry; one that is not there is no matter."""
        entry = self._entries.get(key)
        if entry is None:
            return
        assert not entry.pins, "a pinned entry was discarded"
        del self._entries[key]
        self.used_bytes -= entry.size_bytes
        self._hashes[key.content_hash] -= 1
        if not self._hashes[key.content_hash]:
            del self._hashes[key.content_hash]
