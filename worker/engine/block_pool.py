"""KV blocks: who holds which, and which prefix each full one stands for.

A block is free (holds nothing), cached (holds a reusable prefix, nobody's sequence) or used (reference count > 0);
free + cached + used = total, always.

Next: worker/engine/scheduler.py
"""

import hashlib
import struct
from array import array
from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence

KEY_BYTES = 32


def block_key(parent: bytes, token_ids: Sequence[int], item_runs: Iterable[tuple[bytes, int, int, int]] = ()) -> bytes:
    """Return the key of a full block: 256 bits over all that its keys and values depend on.

    Args:
        parent: key of the block before, or `root_key` of the first one.
        token_ids: the block's tokens.
        item_runs: for each range that touches the block: the item's content hash, the range's offset relative to
            the block (negative where it began before), its length, and the item's row at which it begins. Ids alone
            do not tell: a placeholder id outside any range is an ordinary token.
    """
    digest = hashlib.blake2b(parent, digest_size=KEY_BYTES)
    digest.update(array("q", token_ids).tobytes())
    for content_hash, offset, length, row in item_runs:
        digest.update(struct.pack("<32sqqq", content_hash, offset, length, row))
    return digest.digest()


def root_key(cache_salt: bytes) -> bytes:
    """Return the key that the first block's chain hangs on: different salts never share."""
    return hashlib.blake2b(cache_salt, digest_size=KEY_BYTES, person=b"tessera-prefix").digest()


class BlockPool:
    """Reference-counted blocks with a prefix cache, least recently used first out.

    Args:
        num_blocks: blocks in all.
        enable_prefix_cache: keep full blocks for reuse after their sequences have gone.
    """

    def __init__(self, num_blocks: int, enable_prefix_cache: bool = True) -> None:
        self.num_blocks = num_blocks
        self.enable_prefix_cache = enable_prefix_cache
        self._ref_counts = [0] * num_blocks
        self._free: deque[int] = deque(range(num_blocks))
        self._cached: OrderedDict[int, None] = OrderedDict()
        self._key_of: dict[int, bytes] = {}
        self._block_of: dict[bytes, int] = {}

    @property
    def num_free(self) -> int:
        """Blocks that hold nothing."""
        return len(self._free)

    @property
    def num_cached(self) -> int:
        """Blocks that hold a prefix and nobody's sequence."""
        return len(self._cached)

    @property
    def num_used(self) -> int:
        """Blocks that sequences hold."""
        return self.num_blocks - len(self._free) - len(self._cached)

    @property
    def num_available(self) -> int:
        """Blocks that `allocate` can give: free ones, then cached ones."""
        return len(self._free) + len(self._cached)

    def ref_count(self, block: int) -> int:
        """Return how many sequences hold a block."""
        return self._ref_counts[block]

    def is_idle(self, block: int) -> bool:
        """Return whether nobody holds a block."""
        return self._ref_counts[block] == 0

    def allocate(self) -> int:
        """Return a block for one sequence, forgetting the prefix that was used longest ago where none is free."""
        if self._free:
            block = self._free.popleft()
        else:
            assert self._cached, "allocate() without an available block"
            block, _ = self._cached.popitem(last=False)
            del self._block_of[self._key_of.pop(block)]
        self._ref_counts[block] = 1
        return block

    def find(self, key: bytes) -> int | None:
        """Return the block that holds a prefix, or None."""
        return self._block_of.get(key)

    def share(self, block: int) -> None:
        """Give a block one holder more."""
        if self._ref_counts[block] == 0:
            del self._cached[block]
        self._ref_counts[block] += 1

    def register(self, block: int, key: bytes) -> None:
        """Make a full, computed block findable; a second block of the same key stays anonymous."""
        if self.enable_prefix_cache and key not in self._block_of and block not in self._key_of:
            self._block_of[key] = block
            self._key_of[block] = key

    def release(self, blocks: Sequence[int]) -> None:
        """Take one holder from each block; a chain's last block is forgotten first.

        Args:
            blocks: a sequence's block table, or a part of it.
        """
        for block in reversed(blocks):
            assert self._ref_counts[block] > 0, "a block was released twice"
            self._ref_counts[block] -= 1
            if self._ref_counts[block] == 0:
                if block in self._key_of:
                    self._cached[block] = None
                else:
                    self._free.append(block)
