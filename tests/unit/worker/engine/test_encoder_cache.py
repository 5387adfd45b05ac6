"""The encoder cache: budget, pins, eviction."""

import pytest

from worker.engine.encoder_cache import EncoderCache, ItemKey


def key(number, salt=b""):
    return ItemKey(bytes([number]) * 32, salt)


def test_least_recently_used_goes_first():
    """An entry is evicted when its room is needed, the one that was pinned longest ago first."""
    cache = EncoderCache(30)
    for number in range(3):
        assert cache.reserve(key(number), 10)
    cache.pin(key(0))
    cache.unpin(key(0))
    assert cache.reserve(key(3), 10)
    assert [key(n) in cache for n in range(4)] == [True, False, True, True]
    assert cache.used_bytes == 30


def test_pinned_entries_stay():
    """What is pinned is not evicted: the reservation fails and nothing has changed."""
    cache = EncoderCache(20)
    for number in range(2):
        cache.reserve(key(number), 10)
        cache.pin(key(number))
    assert not cache.reserve(key(2), 10)
    cache.unpin(key(0))
    assert cache.reserve(key(2), 10)
    assert key(0) not in cache
    assert cache.num_pinned == 1


def test_two_pins_need_two_unpins():
    """An entry stays as long as one sequence of several needs it."""
    cache = EncoderCache(10)
    cache.reserve(key(0), 10)
    cache.pin(key(0))
    cache.pin(key(0))
    cache.unpin(key(0))
    assert not cache.fits(1)
    cache.unpin(key(0))
    assert cache.fits(10)


def test_without_retention_an_entry_goes_with_its_last_pin():
    """With no budget beyond need, entries live only while sequences hold them."""
    cache = EncoderCache(10, retain=False)
    cache.reserve(key(0), 10)
    cache.pin(key(0))
    cache.put(key(0), "rows")
    assert cache.get(key(0)) == "rows"
    cache.unpin(key(0))
    assert key(0) not in cache
    assert cache.used_bytes == 0


def test_salts_are_apart_and_hashes_are_known():
    """The same item under two salts is two entries; `has_hash` sees either."""
    cache = EncoderCache(20)
    cache.reserve(key(0, b"a"), 10)
    assert key(0, b"b") not in cache
    cache.reserve(key(0, b"b"), 10)
    cache.discard(key(0, b"a"))
    assert cache.has_hash(key(0).content_hash)
    cache.discard(key(0, b"b"))
    assert not cache.has_hash(key(0).content_hash)


def test_a_double_release_is_our_bug():
    """Unpinning what nobody has pinned is caught."""
    cache = EncoderCache(10)
    cache.reserve(key(0), 10)
    with pytest.raises(AssertionError, match="twice"):
        cache.unpin(key(0))
