"""Continuous batching: every step, decodes first, then prefill chunks, then new sequences, under one token budget.

Sequences are served by rank: higher priority, then earlier arrival. Where blocks run out, the last in rank gives its
own up and recomputes them later (prompt and generated tokens alike), so that the first always advances. What a model
with recurrent state needs besides is the state ledger's business; without one, nothing of it costs anything.

Next: worker/engine/batch.py
"""

from bisect import insort
from collections.abc import Container

from worker.engine.block_pool import BlockPool
from worker.engine.config import EngineConfig
from worker.engine.deadlines import Deadlines
from worker.engine.encoder_cache import EncoderCache
from worker.engine.item_ledger import ItemLedger
from worker.engine.item_store import ItemStore
from worker.engine.schedule import Chunk, Schedule
from worker.engine.sequence import Sequence, Status
from worker.engine.state_ledger import StateLedger
from worker.engine.state_pool import StatePool


def _rank(sequence: Sequence) -> tuple[int, int, int]:
    return sequence.rank


class Scheduler:
    """Decides what runs; owns waiting and running sequences.

    Args:
        config: limits.
        pool: KV blocks.
        cache: encoded items.
        store: staged items.
        states: slots of recurrent state, for a model that keeps one.
    """

    def __init__(
        self,
        config: EngineConfig,
        pool: BlockPool,
        cache: EncoderCache,
        store: ItemStore,
        states: StatePool | None = None,
    ) -> None:
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self.num_preemptions = 0
        self.deadlines = Deadlines()
        self._config = config
        self._pool = pool
        self._cache = cache
        self._items = ItemLedger(config, cache, store)
        self._states = StateLedger(config, states) if states is not None else None
        # Sequences whose owners have not been asked yet for what is missing.
        self._new: list[Sequence] = []
        # Those of a failed step that are still to run alone, by rank.
        self._suspects: list[Sequence] = []

    # --- what comes and goes

    def add(self, sequence: Sequence) -> None:
        """Take a sequence into the queue."""
        self._items.want_all(sequence)
        self.deadlines.watch(sequence)
        insort(self.waiting, sequence, key=_rank)
        self._new.append(sequence)

    def attach(self, sequence: Sequence, lead: Sequence) -> None:
        """Let a sequence wait for its lead's prompt, to fork from it."""
        sequence.lead = lead
        lead.forks.append(sequence)
        self.deadlines.watch(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Free all that a sequence holds, wherever it stands; the next of its forks waits in its place."""
        if sequence.lead is not None:
            sequence.lead.forks.remove(sequence)
            sequence.lead = None
        elif sequence.status is Status.RUNNING:
            self.running.remove(sequence)
            self._free_room(sequence)
        else:
            self.waiting.remove(sequence)
        if sequence.trial_end is not None:
            self._suspects.remove(sequence)
        sequence.status = Status.FINISHED
        self._items.release_all(sequence)
        self._promote_fork(sequence)

    # --- one step

    def schedule(self) -> Schedule:
        """Return what the next step runs; blocks are allocated and items pinned for it."""
        plan = Schedule()
        self._ask_for_items(plan)
        none_is_held_up = self._run_suspect(plan)
        if not plan.chunks:
            self._continue_decodes(plan)
            self._continue_prefills(plan)
            if none_is_held_up:
                self._admit(plan)
        while not plan and len(self.running) > 1 and not any(map(self._awaits_end, self.running)):
            # Each waits for room that another one's pins or blocks take: the last in rank makes way.
            self._preempt(self.running[-1], plan)
            plan.cache_is_full = False
            self._run_suspect(plan)
            if not plan.chunks:
                self._continue_prefills(plan)
        # A preemption may have dropped what was to be encoded for its sake.
        plan.encodes = {key: task for key, task in plan.encodes.items() if key in self._cache}
        return plan

    def complete(self, chunk: Chunk, plan: Schedule) -> None:
        """Note that a chunk has run: its full blocks can be found, its passed items are let go, its state is saved."""
        sequence = chunk.sequence
        sequence.num_computed = chunk.end
        num_full = chunk.end // self._config.block_size
        if self._pool.enable_prefix_cache:
            for index in range(sequence.num_registered, num_full):
                key = sequence.block_key(index, self._config.block_size)
                self._pool.register(sequence.block_table[index], key)
            sequence.num_registered = num_full
        if self._states is not None:
            self._states.complete(chunk, plan)
            if sequence.trial_end is not None and chunk.end >= sequence.trial_end:
                sequence.trial_end = None
                self._suspects.remove(sequence)
        self._items.release_passed(sequence)

    def loaded(self, plan: Schedule) -> None:
        """Note that the step's state loads have run."""
        if self._states is not None:
            self._states.loaded(plan)

    def saved(self, plan: Schedule, failed: bool = False) -> None:
        """Note that the step's state saves have run, or failed."""
        if self._states is not None:
            (self._states.not_saved if failed else self._states.saved)(plan)

    def suspect(self, chunk: Chunk, plan: Schedule) -> bool:
        """Take a sequence back whose step has failed, to run it alone later; False where it has just run alone.

        Its state may be half updated and is given up: it resumes from a checkpoint, or from its first token.
        """
        sequence = chunk.sequence
        plan.drop(sequence)
        plan.has_failed = True
        if sequence.trial_end is not None:
            return False
        self._stop(sequence)
        sequence.trial_end = chunk.end
        insort(self._suspects, sequence, key=_rank)
        return True

    def fork(self, lead: Sequence, plan: Schedule, drawn: Container[Sequence]) -> list[Sequence]:
        """Give the forks of a sequence, whose prompt has just been computed, its blocks; return them.

        The partly filled last block is shared too: whoever writes to it first while others hold it gets a copy.
        A fork that nothing was drawn for, or that finds no seat, waits and recomputes.
        """
        forks, lead.forks = lead.forks, []
        for fork in forks:
            fork.lead = None
            fork.block_keys = list(lead.block_keys)
            if fork not in drawn or len(self.running) >= self._config.max_sequences:
                self._items.want_all(fork)
                insort(self.waiting, fork, key=_rank)
                continue
            for block in lead.block_table:
                self._pool.share(block)
            fork.block_table = list(lead.block_table)
            fork.num_computed, fork.num_registered = lead.num_computed, lead.num_registered
            fork.status = Status.RUNNING
            if self._states is not None:
                self._states.fork(lead, fork, plan)
            insort(self.running, fork, key=_rank)
        return forks

    def _continue_decodes(self, plan: Schedule) -> None:
        for sequence in tuple(self.running):
            if self._can_go_on(sequence) and sequence.num_computed == sequence.num_tokens - 1:
                # A prompt's last token may stand inside an item, like any other of it.
                if sequence.wanted and self._items.chunk_end(sequence, sequence.num_tokens, plan) < sequence.num_tokens:
                    continue
                self._run(sequence, sequence.num_computed + 1, plan)

    def _continue_prefills(self, plan: Schedule) -> None:
        for sequence in tuple(self.running):
            if plan.num_tokens >= self._config.max_batched_tokens:
                return
            if sequence not in plan.chunks and self._can_go_on(sequence):
                self._continue_prefill(sequence, plan)

    def _continue_prefill(self, sequence: Sequence, plan: Schedule) -> None:
        end = self._chunk_end(sequence, plan)
        if end > sequence.num_computed:
            self._run(sequence, end, plan)
        elif self._items.missing(sequence, sequence.num_computed):
            # The item was encoded for someone else when this one was admitted, and has been evicted since.
            self._preempt(sequence, plan)

    def _awaits_end(self, sequence: Sequence) -> bool:
        """Return whether a sequence ends as soon as its pending token is known."""
        return sequence.pending >= 0 and sequence.is_full

    def _can_go_on(self, sequence: Sequence) -> bool:
        """Return whether one of those that ran when the step began was not preempted since, and has more to compute."""
        return sequence.status is Status.RUNNING and (sequence.pending < 0 or not sequence.is_full)

    def _run_suspect(self, plan: Schedule) -> bool:
        """Run the first of a failed step's sequences that can, alone; False where one finds no room.

        Where none can, each lacks an item or room for it, which the others' chunks of this step do not change.
        """
        none_is_held_up = True
        for sequence in tuple(self._suspects):
            if sequence.status is Status.RUNNING:
                self._continue_prefill(sequence, plan)
            elif not self._admit_one(sequence, plan):
                none_is_held_up = False
            if plan.chunks:
                break
        return none_is_held_up

    def _chunk_end(self, sequence: Sequence, plan: Schedule) -> int:
        """Return how far the rest of the budget takes a sequence; the items on the way are pinned."""
        budget = self._config.max_batched_tokens - plan.num_tokens
        end = min(sequence.num_computed + budget, sequence.num_tokens)
        if self._states is not None:
            end = self._states.chunk_end(sequence, end)
        return self._items.chunk_end(sequence, end, plan)

    def _run(self, sequence: Sequence, end: int, plan: Schedule) -> None:
        if self._allocate(sequence, end, plan):
            plan.add(Chunk(sequence, sequence.num_computed, end))

    def _ask_for_items(self, plan: Schedule) -> None:
        new, self._new = self._new, []
        for sequence in new:
            if sequence.wanted:
                start = len(self._cached_blocks(sequence)) * self._config.block_size
                self._items.ask_for(sequence, self._items.missing(sequence, start), plan)

    def _admit(self, plan: Schedule) -> None:
        for sequence in tuple(self.waiting):
            budget = self._config.max_batched_tokens - plan.num_tokens
            if budget <= 0 or not (self._has_seat(sequence) or self._outranks_last(sequence)):
                return
            if not self._awaits_end(sequence) and not self._admit_one(sequence, plan):
                return

    def _admit_one(self, sequence: Sequence, plan: Schedule) -> bool:
        """Let a sequence run if what it needs is here; False where it finds no room."""
        hits = self._cached_blocks(sequence)
        missing = self._items.missing(sequence, len(hits) * self._config.block_size)
        if missing:
            self._items.ask_for(sequence, missing, plan)
            self._items.encode_ahead(sequence, plan)
            return True
        if not self._make_way(sequence, hits, plan):
            return False
        self._start(sequence, hits, plan)
        end = self._chunk_end(sequence, plan)
        if end > sequence.num_computed:
            self._run(sequence, end, plan)
        else:
            plan.drop(sequence)
            self._stop(sequence)
        return True

    def _make_way(self, sequence: Sequence, hits: list[int], plan: Schedule) -> bool:
        """Preempt lower priorities until a sequence finds seat and blocks; False where that is not enough."""
        while not (self._has_seat(sequence) and self._has_room(sequence, hits)):
            if not self._outranks_last(sequence):
                return False
            self._preempt(self.running[-1], plan)
        return True

    def _outranks_last(self, sequence: Sequence) -> bool:
        return bool(self.running) and self.running[-1].group.priority < sequence.group.priority

    def _has_seat(self, sequence: Sequence) -> bool:
        """Return whether a sequence and its forks may run beside those that do."""
        taken = sum(1 + len(other.forks) for other in self.running)
        return not self.running or taken + 1 + len(sequence.forks) <= self._config.max_sequences

    def _has_room(self, sequence: Sequence, hits: list[int]) -> bool:
        """Return whether all its tokens find blocks, beside those that running sequences have yet to take."""
        if not self.running:
            return True
        blocks_for = self._config.blocks_for
        claimed = sum(blocks_for(other.num_tokens) - len(other.block_table) for other in self.running)
        if sequence.num_preemptions:
            # Whoever was preempted comes back when the others have a block to spare each, lest it goes again.
            claimed += len(self.running)
        available = self._pool.num_available - sum(self._pool.is_idle(block) for block in hits)
        return blocks_for(sequence.num_tokens) - len(hits) + claimed <= available

    # --- blocks

    def _allocate(self, sequence: Sequence, end: int, plan: Schedule) -> bool:
        """Make the blocks of [num_computed, end) writable; False where the sequence itself had to make way."""
        pool, table, block_size = self._pool, sequence.block_table, self._config.block_size
        while True:
            last = sequence.num_computed // block_size
            must_copy = last < len(table) and pool.ref_count(table[last]) > 1
            num_new = -(-end // block_size) - len(table)
            if num_new <= 0 and not must_copy:
                return True
            if pool.num_available >= num_new + must_copy:
                break
            victim = self.running[-1]
            self._preempt(victim, plan)
            if victim is sequence:
                return False
        if must_copy:
            copy = pool.allocate()
            plan.copies[copy] = table[last]
            pool.release([table[last]])
            table[last] = copy
            sequence.table_version += 1
        table += [pool.allocate() for _ in range(num_new)]
        return True

    def _cached_blocks(self, sequence: Sequence) -> list[int]:
        """Return the blocks that hold the sequence's longest cached prefix; one token at least is left to compute."""
        hits: list[int] = []
        if self._pool.enable_prefix_cache:
            for index in range((sequence.num_tokens - 1) // self._config.block_size):
                block = self._pool.find(sequence.block_key(index, self._config.block_size))
                if block is None:
                    break
                hits.append(block)
        return hits if self._states is None else self._states.usable(sequence, hits)

    def _start(self, sequence: Sequence, hits: list[int], plan: Schedule) -> None:
        for block in hits:
            self._pool.share(block)
        sequence.block_table = list(hits)
        sequence.table_version += 1
        sequence.num_computed = len(hits) * self._config.block_size
        sequence.num_registered = len(hits)
        sequence.status = Status.RUNNING
        self.waiting.remove(sequence)
        insort(self.running, sequence, key=_rank)
        self._items.release_passed(sequence)
        if self._states is not None:
            self._states.start(sequence, plan)
        if sequence.num_cached is None:
            sequence.num_cached = min(sequence.num_computed, sequence.num_prompt)

    def _stop(self, sequence: Sequence) -> None:
        """Put a running sequence back into the queue; it keeps its tokens and nothing else."""
        self._free_room(sequence)
        self._items.release_all(sequence)
        self._items.want_all(sequence)
        sequence.status = Status.WAITING
        sequence.requested.clear()
        self.running.remove(sequence)
        insort(self.waiting, sequence, key=_rank)

    def _preempt(self, sequence: Sequence, plan: Schedule) -> None:
        plan.drop(sequence)
        self._stop(sequence)
        sequence.num_preemptions += 1
        self.num_preemptions += 1

    def _free_room(self, sequence: Sequence) -> None:
        if self._states is not None:
            self._states.release(sequence)
        self._pool.release(sequence.block_table)
        sequence.block_table = []
        sequence.table_version += 1
        sequence.num_computed = sequence.num_registered = 0

    def _promote_fork(self, sequence: Sequence) -> None:
        if sequence.forks:
            first, *rest = sequence.forks
            sequence.forks = []
            first.lead, first.forks = None, rest
            for fork in rest:
                fork.lead = first
            self._items.want_all(first)
            insort(self.waiting, first, key=_rank)
