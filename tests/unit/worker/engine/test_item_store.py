"""Staged items: budget, time to live, and what live sequences want."""

from dataclasses import dataclass

from tests.fakes.clock import ManualClock
from worker.engine.item_store import ItemStore


@dataclass(frozen=True)
class Item:
    content_hash: bytes
    size_bytes: int = 10


def make_store(capacity=30):
    clock = ManualClock()
    return ItemStore(capacity, 60.0, clock), clock


def test_uploads_count_against_the_budget():
    """Bytes on their way are counted, and an item takes the place of its reservation."""
    store, _ = make_store()
    assert store.reserve(20)
    assert not store.reserve(20)
    store.put(Item(b"a", 20), reserved_bytes=20)
    assert store.used_bytes == 20
    assert store.reserve(10)
    store.unreserve(10)
    assert store.used_bytes == 20


def test_unwanted_items_make_way_and_wanted_ones_do_not():
    """The least recently used item that no sequence wants is forgotten; where all are wanted there is no room."""
    store, _ = make_store()
    for name in (b"a", b"b", b"c"):
        store.put(Item(name))
    store.want(b"a")
    store.touch(b"b")
    assert store.reserve(10)
    assert [name in store for name in (b"a", b"b", b"c")] == [True, True, False]
    store.want(b"b")
    assert not store.reserve(10)


def test_items_expire_unless_wanted():
    """An item that nobody touched for its time to live is forgotten, but not under a live sequence."""
    store, clock = make_store()
    for name in (b"a", b"b", b"c"):
        store.put(Item(name))
    store.want(b"a")
    clock.advance(40)
    store.get(b"b")
    clock.advance(30)
    store.expire()
    assert [name in store for name in (b"a", b"b", b"c")] == [True, True, False]
    store.unwant(b"a")
    store.expire()
    assert b"a" not in store


def test_the_same_item_twice_is_kept_once():
    """Two gateways may bring the same item; its bytes count once."""
    store, _ = make_store()
    for _ in range(2):
        store.reserve(10)
        store.put(Item(b"a"), reserved_bytes=10)
    assert store.used_bytes == 10
