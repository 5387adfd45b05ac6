"""Recurrent state of sequences: which slot each holds, where prefill stops for a checkpoint, what is copied when.

A prefix is worth something only where its KV blocks *and* the state after it are here. States cannot be cut back, so
they are saved while a sequence passes a block boundary:

- *kept* where its prompt's last full block ends (the same prompt again, the next turn), and where its prompt parts
  from another one, which the KV blocks tell: they match further than any checkpoint. Prefill chunks end there.
- *passing*, at every other boundary that a chunk ends on, decodes included: one for each sequence, which moves along.
  A preempted sequence resumes from it; after the last token it is what the next turn of a conversation continues. Only
  the newest is of use to either, and older ones would push out prompts.

A copy costs about one step's reading of the state, every `block_size` tokens.

Next: worker/engine/scheduler.py
"""

from worker.engine.config import EngineConfig
from worker.engine.schedule import Chunk, Schedule
from worker.engine.sequence import Sequence
from worker.engine.state_pool import StatePool


class StateLedger:
    """Keeps sequences, state pool and schedule in step.

    Args:
        config: limits.
        pool: slots.
    """

    def __init__(self, config: EngineConfig, pool: StatePool) -> None:
        self._pool = pool
        self._block_size = config.block_size
        self._saves = config.enable_prefix_cache and pool.max_checkpoints > 0

    # --- before a step runs

    def usable(self, sequence: Sequence, hits: list[int]) -> list[int]:
        """Return the part of a cached chain of blocks that ends at a checkpoint; note how far the whole chain goes."""
        sequence.num_shared = len(hits) * self._block_size
        if not self._saves:
            return []
        for count in range(len(hits), 0, -1):
            if self._pool.has(sequence.block_key(count - 1, self._block_size)):
                return hits[:count]
        return []

    def start(self, sequence: Sequence, plan: Schedule) -> None:
        """Give a sequence that begins to run a slot, and what it has found; without a prefix it starts from zero."""
        sequence.state_slot = slot = self._pool.take()
        if sequence.num_computed:
            key = sequence.block_key(sequence.num_computed // self._block_size - 1, self._block_size)
            # Its own, after a preemption, goes on moving with it; one of somebody else has proved of use to others.
            sequence.state_source = key
            plan.state_loads[sequence] = (self._pool.pin(key, keep=key != sequence.passing_key), slot)
        last_block = (sequence.num_prompt - 1) // self._block_size * self._block_size
        sequence.state_stops = (
            sorted({stop for stop in (sequence.num_shared, last_block) if stop > sequence.num_computed})
            if self._saves
            else []
        )

    def chunk_end(self, sequence: Sequence, end: int) -> int:
        """Return where a chunk of [num_computed, end) stops, so that the state can be saved there."""
        if not self._saves or end - sequence.num_computed <= 1:
            return end
        for stop in sequence.state_stops:
            if sequence.num_computed < stop < end:
                return stop
        if end < sequence.num_tokens:
            # Unless the budget is smaller than a block.
            whole = end // self._block_size * self._block_size
            return whole if whole > sequence.num_computed else end
        return end

    def loaded(self, plan: Schedule) -> None:
        """Note that the checkpoints, which sequences start from, have been copied."""
        for sequence in plan.state_loads:
            self._unpin(sequence)

    def release(self, sequence: Sequence) -> None:
        """Take a sequence's slot back, and let go of what was to be copied into it."""
        self._unpin(sequence)
        self._pool.give_back(sequence.state_slot)
        sequence.state_slot = -1

    # --- after it has run

    def complete(self, chunk: Chunk, plan: Schedule) -> None:
        """Plan the checkpoint of a chunk that ended on a block boundary."""
        if chunk.end % self._block_size or not self._saves:
            return
        sequence = chunk.sequence
        keep = chunk.end in sequence.state_stops
        key = sequence.block_key(chunk.end // self._block_size - 1, self._block_size)
        if self._pool.touch(key, keep):
            return
        slot = self._pool.reserve(key, passing=not keep, instead_of=sequence.passing_key)
        if slot is None:
            return
        if not keep:
            sequence.passing_key = key
        plan.state_saves.append((sequence.state_slot, slot))
        plan.checkpoints.append(key)

    def fork(self, lead: Sequence, fork: Sequence, plan: Schedule) -> None:
        """Give a fork a slot, to get a copy of its lead's state."""
        fork.state_slot = self._pool.take()
        plan.state_saves.append((lead.state_slot, fork.state_slot))

    def saved(self, plan: Schedule) -> None:
        """Note that the new checkpoints have been copied."""
        for key in plan.checkpoints:
            self._pool.publish(key)

    def not_saved(self, plan: Schedule) -> None:
        """Note that the copies have failed."""
        for key in plan.checkpoints:
            self._pool.discard(key)

    def _unpin(self, sequence: Sequence) -> None:
        if sequence.state_source is not None:
            self._pool.unpin(sequence.state_source)
            sequence.state_source = None
