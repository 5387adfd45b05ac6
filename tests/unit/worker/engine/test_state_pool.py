"""Slots of recurrent state: books that always agree, pins that hold, two classes of checkpoints."""

import random

import pytest

from worker.engine.state_pool import StatePool


def save(pool, name, passing=False, instead_of=None):
    slot = pool.reserve(name, passing, instead_of)
    if slot is not None:
        pool.publish(name)
    return slot


def agree(pool):
    return pool.num_free + pool.num_running + pool.num_checkpoints == pool.num_slots


def test_running_sequences_never_wait_for_checkpoints():
    """However many checkpoints there are, each running sequence finds a slot, and no two the same."""
    pool = StatePool(max_running=3, max_checkpoints=2, max_passing=2)
    for number in range(5):
        assert save(pool, b"%d" % number) is not None
    slots = [pool.take() for _ in range(3)]
    assert len(set(slots)) == 3
    assert (pool.num_free, pool.num_running, pool.num_checkpoints) == (0, 3, 2)
    for slot in slots:
        pool.give_back(slot)
    assert pool.num_free == 3


def test_the_least_recently_used_checkpoint_goes_first():
    """A full pool forgets what was used longest ago; a touch counts as use."""
    pool = StatePool(1, 2, 2)
    save(pool, b"a")
    save(pool, b"b")
    assert pool.touch(b"a", keep=False)
    save(pool, b"c")
    assert [pool.has(name) for name in (b"a", b"b", b"c")] == [True, False, True]


def test_a_checkpoint_is_found_only_when_it_has_been_copied():
    """What is reserved counts, but nobody finds it before it is published; a discarded one leaves nothing."""
    pool = StatePool(1, 2, 2)
    pool.reserve(b"a", passing=False)
    pool.reserve(b"b", passing=True)
    assert not pool.has(b"a")
    assert (pool.num_checkpoints, pool.num_passing, pool.num_pinned) == (2, 1, 2)
    pool.publish(b"a")
    pool.discard(b"b")
    assert pool.has(b"a")
    assert (pool.num_checkpoints, pool.num_passing, pool.num_pinned) == (1, 0, 0)


def test_pinned_checkpoints_stay():
    """What is being copied from or to is never given away; where all is pinned there is no room."""
    pool = StatePool(1, 2, 2)
    first = save(pool, b"a")
    assert pool.pin(b"a", keep=True) == first
    pool.pin(b"a", keep=True)
    second = pool.reserve(b"b", passing=True)
    assert pool.reserve(b"c", passing=False) is None
    assert pool.reserve(b"c", passing=True, instead_of=b"b") is None
    pool.publish(b"b")
    pool.unpin(b"a")
    assert pool.reserve(b"c", passing=False) == second
    assert pool.has(b"a")
    with pytest.raises(AssertionError):
        pool.unpin(b"a") or pool.unpin(b"a")


def test_a_passing_checkpoint_moves():
    """A sequence's next passing checkpoint takes the slot of its last one, unless that has been kept meanwhile."""
    pool = StatePool(1, 4, 4)
    slot = save(pool, b"a", passing=True)
    assert save(pool, b"b", passing=True, instead_of=b"a") == slot
    assert not pool.has(b"a")
    assert pool.num_checkpoints == 1
    assert pool.touch(b"b", keep=True)
    assert save(pool, b"c", passing=True, instead_of=b"b") != slot
    assert pool.has(b"b")
    assert pool.num_passing == 1


def test_passing_checkpoints_have_a_share():
    """Passing checkpoints push each other out, not the kept ones, once they have their share."""
    pool = StatePool(1, 4, 2)
    save(pool, b"prompt")
    for number in range(5):
        save(pool, b"%d" % number, passing=True)
    assert pool.has(b"prompt")
    assert pool.num_passing == 2
    assert StatePool(1, 0, 0).reserve(b"a", passing=True) is None
    assert StatePool(1, 0, 0).reserve(b"a", passing=False) is None


@pytest.mark.parametrize("seed", range(5))
def test_the_books_agree(seed):
    """After any sequence of calls free, running and checkpoints add up, and slots are held by one each."""
    rng = random.Random(seed)
    pool = StatePool(4, 5, 2)
    running, pinned, open_ = [], [], []
    for _ in range(600):
        what, key = rng.randrange(6), b"%d" % rng.randrange(12)
        if what == 0 and len(running) < 4:
            running.append(pool.take())
        elif what == 1 and running:
            pool.give_back(running.pop(rng.randrange(len(running))))
        elif what == 2 and pool.has(key):
            pool.pin(key, keep=rng.random() < 0.3)
            pinned.append(key)
        elif what == 3 and pinned:
            pool.unpin(pinned.pop(rng.randrange(len(pinned))))
        elif what == 4 and not pool.touch(key, keep=False):
            slot = pool.reserve(key, rng.random() < 0.5, rng.choice([None, b"%d" % rng.randrange(12)]))
            if slot is not None:
                assert slot not in running
                open_.append(key)
        elif what == 5 and open_:
            (pool.publish if rng.random() < 0.8 else pool.discard)(open_.pop())
        assert agree(pool)
        assert all(pool.has(key) for key in pinned)
        assert pool.num_passing <= 2
