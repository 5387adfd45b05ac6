"""The block pool keeps its books."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from worker.engine.block_pool import BlockPool, block_key, root_key

H1, H2 = b"\1" * 32, b"\2" * 32


def test_keys_hold_everything_that_keys_and_values_depend_on():
    """Two blocks share a key only if parent, tokens, items, their offsets and rows are all equal."""
    root = root_key(b"")
    keys = [
        block_key(root, (1, 2)),
        block_key(root_key(b"salt"), (1, 2)),
        block_key(block_key(root, (1, 2)), (1, 2)),
        block_key(root, (1, 3)),
        block_key(root, (1, 2), [(H1, 0, 2, 0)]),
        block_key(root, (1, 2), [(H2, 0, 2, 0)]),
        block_key(root, (1, 2), [(H1, 1, 2, 0)]),
        block_key(root, (1, 2), [(H1, 0, 2, 1)]),
        block_key(root, (1, 2), [(H1, 0, 1, 0)]),
        block_key(root, (1, 2), [(H1, 0, 1, 0), (H1, 1, 1, 1)]),
    ]
    assert len(set(keys)) == len(keys)
    assert {len(key) for key in keys} == {32}
    assert keys[0] == block_key(root_key(b""), [1, 2])


def test_the_tail_of_the_oldest_chain_is_forgotten_first():
    """Cached blocks go in the order of their release, and within a table from its end."""
    pool = BlockPool(4)
    old, new = [pool.allocate(), pool.allocate()], [pool.allocate(), pool.allocate()]
    for number, block in enumerate(old + new):
        pool.register(block, bytes([number]))
    pool.release(old)
    pool.release(new)
    assert [pool.allocate() for _ in range(4)] == [old[1], old[0], new[1], new[0]]


def test_a_hit_takes_a_block_out_of_the_queue():
    """A cached block that is shared again is not given away, and keeps its key."""
    pool = BlockPool(2)
    kept, other = pool.allocate(), pool.allocate()
    pool.register(kept, b"k")
    pool.register(other, b"o")
    pool.release([other, kept])
    pool.share(kept)
    assert pool.allocate() == other
    assert pool.find(b"k") == kept
    assert pool.find(b"o") is None


def test_a_second_block_of_the_same_key_stays_anonymous():
    """The first block of a prefix is the one that is found; the other goes straight back to the free ones."""
    pool = BlockPool(2)
    first, second = pool.allocate(), pool.allocate()
    pool.register(first, b"k")
    pool.register(second, b"k")
    pool.release([second])
    assert (pool.find(b"k"), pool.num_free, pool.num_cached) == (first, 1, 0)


class PoolMachine(RuleBasedStateMachine):
    """Random holders of random blocks against a model of who holds what."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(6)
        self.tables: list[list[int]] = []
        self.contents: dict[int, bytes] = {}

    @precondition(lambda self: self.pool.num_available)
    @rule(start_new=st.booleans())
    def allocate(self, start_new):
        block = self.pool.allocate()
        assert all(block not in table for table in self.tables)
        self.contents.pop(block, None)
        if start_new or not self.tables:
            self.tables.append([])
        self.tables[-1].append(block)

    @precondition(lambda self: self.tables)
    @rule(data=st.data(), key=st.binary(min_size=1, max_size=1))
    def register(self, data, key):
        block = data.draw(st.sampled_from(data.draw(st.sampled_from(self.tables))))
        if block not in self.contents and key not in self.contents.values():
            self.contents[block] = key
        self.pool.register(block, key)

    @precondition(lambda self: self.contents)
    @rule(data=st.data())
    def hit(self, data):
        key = data.draw(st.sampled_from(sorted(self.contents.values())))
        block = self.pool.find(key)
        assert self.contents[block] == key
        self.pool.share(block)
        self.tables.append([block])

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def release(self, data):
        table = self.tables.pop(data.draw(st.integers(0, len(self.tables) - 1)))
        self.pool.release(table)
        for block in table:
            if block not in self.contents and not any(block in other for other in self.tables):
                assert self.pool.is_idle(block)

    @invariant()
    def books_agree(self):
        held = {block for table in self.tables for block in table}
        assert self.pool.num_used == len(held)
        assert self.pool.num_free + self.pool.num_cached + self.pool.num_used == self.pool.num_blocks
        assert self.pool.num_cached == len(set(self.contents) - held)
        for block in range(self.pool.num_blocks):
            assert self.pool.ref_count(block) == sum(table.count(block) for table in self.tables)


PoolMachine.TestCase.settings = settings(max_examples=15, stateful_step_count=30, deadline=None)
TestPoolMachine = PoolMachine.TestCase
