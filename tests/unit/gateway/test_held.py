"""gateway/held.py: what is held, for how long, and for whom."""

from __future__ import annotations

import pytest

from gateway.held import HeldStore
from tessera.errors import ResourceExhausted
from tests.fakes.clock import ManualClock


def make(max_bytes: int = 100, owner: int = 60, ttl: float = 10.0) -> tuple[HeldStore[str], ManualClock]:
    clock = ManualClock()
    return HeldStore(max_bytes, owner, ttl, clock, "FULL"), clock


def test_a_value_is_held_until_its_time_to_live_after_the_last_use() -> None:
    """Each use renews the time to live; after it the value and its bytes are gone."""
    store, clock = make()
    store.put(b"a", "A", 10)
    clock.advance(9)
    assert store.get(b"a") == "A"
    clock.advance(9)
    assert store.get(b"a") == "A"
    clock.advance(10)
    assert store.get(b"a") is None
    assert store.size_bytes == 0


def test_holding_again_counts_once() -> None:
    """The same key put twice takes its bytes once."""
    store, _ = make()
    store.put(b"a", "A", 40)
    store.put(b"a", "A", 40)
    assert store.size_bytes == 40
    assert len(store) == 1


def test_one_caller_cannot_take_all() -> None:
    """A caller's own budget refuses before the store's does; another caller still fits."""
    store, _ = make()
    store.put(b"a", "A", 50, "x")
    with pytest.raises(ResourceExhausted) as caught:
        store.put(b"b", "B", 20, "x")
    assert caught.value.reason == "FULL"
    assert caught.value.retry_after_s == 10.0
    store.put(b"b", "B", 50, "y")
    with pytest.raises(ResourceExhausted):
        store.put(b"c", "C", 1, "z")


def test_a_budget_is_free_again_when_values_expire() -> None:
    """Expired bytes are given back to their owner."""
    store, clock = make()
    store.put(b"a", "A", 60, "x")
    clock.advance(11)
    store.put(b"b", "B", 60, "x")
    assert store.get(b"b") == "B"


def test_prepared_items_push_out_the_least_recently_used() -> None:
    """`put_evicting` makes room by last use, and does not hold what is larger than the whole budget."""
    store, _ = make(owner=100)
    for key in (b"a", b"b"):
        assert store.put_evicting(key, key.decode(), 50)
    assert store.get(b"a") == "a"
    assert store.put_evicting(b"c", "c", 50)
    assert store.get(b"b") is None
    assert store.get(b"a") == "a"
    assert not store.put_evicting(b"d", "d", 101)
