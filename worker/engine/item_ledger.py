"""Which items each sequence still has to read, where they are, and when they are encoded.

An item is *wanted* from the submission until the sequence's computed tokens have passed its last range (and again
after a preemption); it is *pinned* in the encoder cache from the first chunk that touches it until then.

Next: worker/engine/scheduler.py
"""

from worker.engine.config import EngineConfig
from worker.engine.encoder_cache import EncoderCache
from worker.engine.item_store import ItemStore
from worker.engine.output import NeedItem
from worker.engine.schedule import EncodeTask, Schedule
from worker.engine.sequence import Sequence


class ItemLedger:
    """Keeps sequences, encoder cache and item store in step.

    Args:
        config: limits.
        cache: encoded items.
        store: staged items.
    """

    def __init__(self, config: EngineConfig, cache: EncoderCache, store: ItemStore) -> None:
        self._config = config
        self._cache = cache
        self._store = store

    def want_all(self, sequence: Sequence) -> None:
        """Want every item of a sequence that has computed nothing (yet, or any more)."""
        for index, item in enumerate(sequence.items):
            if index not in sequence.wanted:
                sequence.wanted.add(index)
                self._store.want(item.content_hash)

    def release_passed(self, sequence: Sequence) -> None:
        """Let go of the items that the computed tokens have passed."""
        if sequence.wanted:
            self._release(sequence, [i for i in sequence.wanted if sequence.items[i].end <= sequence.num_computed])

    def release_all(self, sequence: Sequence) -> None:
        """Let go of every item; one that comes back into the queue wants them all again."""
        self._release(sequence, list(sequence.wanted))

    def missing(self, sequence: Sequence, start: int) -> list[int]:
        """Return the wanted items that tokens from `start` on need and that are neither encoded nor staged."""
        return [
            index
            for index in sorted(sequence.wanted)
            if sequence.items[index].end > start
            and sequence.items[index].content_hash not in self._store
            and sequence.item_key(index) not in self._cache
        ]

    def ask_for(self, sequence: Sequence, missing: list[int], plan: Schedule) -> None:
        """Ask the sequence's owner, once, for items that are missing."""
        for index in missing:
            content_hash = sequence.items[index].content_hash
            if content_hash not in sequence.requested:
                sequence.requested.add(content_hash)
                plan.need_items.append(NeedItem(sequence.group.owner, sequence.group.request_id, content_hash))

    def chunk_end(self, sequence: Sequence, end: int, plan: Schedule) -> int:
        """Pin the items that [num_computed, end) touches; return the end, cut before the first that cannot be had."""
        for index in sorted(sequence.wanted - sequence.pinned):
            first = sequence.items[index].first_token_from(sequence.num_computed)
            if first < end and not self._pin(sequence, index, plan):
                end = first
        return end

    def encode_ahead(self, sequence: Sequence, plan: Schedule) -> None:
        """Encode what has come of a sequence that waits for more, where there is room that nobody else wants."""
        if not self._cache.retain:
            return
        for index in sorted(sequence.wanted):
            size = sequence.items[index].num_tokens * self._config.item_token_bytes
            if sequence.item_key(index) not in self._cache and size <= self._cache.free_bytes:
                self._encode(sequence, index, plan)

    def _pin(self, sequence: Sequence, index: int, plan: Schedule) -> bool:
        key = sequence.item_key(index)
        if self._cache.pin(key) or (self._encode(sequence, index, plan) and self._cache.pin(key)):
            sequence.pinned.add(index)
            return True
        return False

    def _encode(self, sequence: Sequence, index: int, plan: Schedule) -> bool:
        """Plan the encode of a staged item; False where budget, room or bytes are lacking."""
        key, num_tokens = sequence.item_key(index), sequence.items[index].num_tokens
        if plan.cache_is_full or (plan.encodes and plan.encode_tokens + num_tokens > self._config.max_batched_tokens):
            return False
        item = self._store.get(key.content_hash)
        if item is None:
            return False
        if not self._cache.reserve(key, num_tokens * self._config.item_token_bytes):
            plan.cache_is_full = True
            return False
        plan.encodes[key] = EncodeTask(key, item, num_tokens)
        plan.encode_tokens += num_tokens
        return True

    def _release(self, sequence: Sequence, indices: list[int]) -> None:
        for index in indices:
            if index in sequence.pinned:
                sequence.pinned.discard(index)
                self._cache.unpin(sequence.item_key(index))
            sequence.wanted.discard(index)
            self._store.unwant(sequence.items[index].content_hash)
