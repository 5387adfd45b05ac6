"""The engine: `step()` is schedule, prepare, run, sample, publish.

With asynchronous scheduling a step is launched before the tokens of the one before are known: those stay on the device,
where the new step takes them from, and are fetched while it runs. A sequence that turns out to have ended has then run
one token too many, which nobody sees.

One thread calls everything here; what other threads bring goes through the bridge (and, for bytes, the item store).

Next: worker/engine/scheduler.py
"""

import time
from collections.abc import Callable

import structlog

from tessera.errors import InvalidArgument, error_for_code
from worker.engine.block_pool import BlockPool
from worker.engine.config import EngineConfig
from worker.engine.encoder_cache import EncoderCache, ItemKey
from worker.engine.failures import failure_of
from worker.engine.item_store import ItemStore
from worker.engine.model_runner import ModelRunner
from worker.engine.output import (
    CANCELLED,
    DEADLINE_EXCEEDED,
    INTERNAL,
    FinishReason,
    LoadReport,
    SequenceFailure,
    SequenceUpdate,
    StepOutput,
)
from worker.engine.refusal import refusal_of
from worker.engine.sampler import Draw, Flight, Sampler, rows_to_sample
from worker.engine.schedule import Chunk, EncodeTask, Schedule
from worker.engine.scheduler import Scheduler
from worker.engine.sequence import Sequence, SequenceGroup, Status
from worker.engine.state_pool import StatePool
from worker.models.base import CausalLM

log = structlog.get_logger(__name__)
Group = tuple[int, str, int]


class Engine:
    """Runs sequences on one model.

    Args:
        config: limits.
        model: what runs.
        clock: seconds, monotonic.
    """

    def __init__(self, config: EngineConfig, model: CausalLM, clock: Callable[[], float] = time.monotonic) -> None:
        self.config = config
        self.model = model
        self.pool = BlockPool(config.num_blocks, config.enable_prefix_cache)
        self.encoder_cache = EncoderCache(config.encoder_cache_bytes, config.retain_encoded)
        self.items = ItemStore(config.staged_bytes, config.staged_ttl_s, clock)
        self.states: StatePool | None = None
        if model.state_shape is not None:
            self.states = StatePool(config.max_sequences, config.state_checkpoints, config.passing_checkpoints)
        self.scheduler = Scheduler(config, self.pool, self.encoder_cache, self.items, self.states)
        self.runner = ModelRunner(config, model, self.encoder_cache)
        self.sampler = Sampler()
        self.num_steps = 0
        # Draws under way: of one step, but for those of a step that failed, which do not outlast it.
        self._flights: list[Flight] = []
        self._clock = clock
        self._eos = frozenset(model.info.eos_token_ids)
        self._arrivals = 0
        self._groups: dict[Group, list[Sequence]] = {}
        self._unannounced: set[Group] = set()
        self._updates: list[SequenceUpdate] = []
        # Asked for and not staged yet; replaced, never changed, since the RPC thread reads it too.
        self._requested: frozenset[bytes] = frozenset()

    # --- what comes in

    def add(self, group: SequenceGroup) -> None:
        """Take a request; its items may be staged before or after.

        Raises:
            InvalidArgument: it can never run here, or its id is in use; field inside Submit.
        """
        if group.key in self._groups:
            raise InvalidArgument("This request is running already.", reason="REQUEST_ID_IN_USE", field="request_id")
        refusal = refusal_of(group, self.config)
        if refusal is not None:
            raise error_for_code(refusal.code, refusal.message, reason=refusal.reason, field=refusal.field)
        segments, delta = self.runner.positions(group)
        self._arrivals += 1
        most_tokens = min(len(group.prompt_ids) + group.params.max_tokens, self.config.max_model_len)
        sequences = [
            Sequence(
                group,
                choice,
                [*group.prompt_ids, *group.emitted_of(index)],
                self._arrivals,
                segments,
                delta,
                most_tokens,
            )
            for index, choice in enumerate(group.choices)
        ]
        self._groups[group.key] = sequences
        self._unannounced.add(group.key)
        self._enqueue(tuple(sequences))

    def cancel(self, owner: int, request_id: str, epoch: int, choice: int | None = None) -> None:
        """End a request, or one choice of it, and free all that it holds; unknown ids are no matter."""
        for sequence in tuple(self._groups.get((owner, request_id, epoch), ())):
            if choice is None or sequence.choice == choice:
                self._end(sequence, FinishReason.CANCELLED, CANCELLED)

    def drop_owner(self, owner: int) -> None:
        """End all requests of a gateway that has gone; nothing is reported of them."""
        for key in [key for key in self._groups if key[0] == owner]:
            self.cancel(*key)
        self._updates = [update for update in self._updates if update.owner != owner]

    def drop_all(self) -> None:
        """End all requests as failed, after an exception that concerned all of them."""
        self._flights = []
        for sequences in tuple(self._groups.values()):
            for sequence in tuple(sequences):
                self._end(sequence, FinishReason.ERROR, INTERNAL)

    def fail(self, group: SequenceGroup, failure: SequenceFailure) -> None:
        """Report a request as failed that was never taken."""
        for choice in group.choices:
            update = SequenceUpdate(group.owner, group.request_id, group.epoch, choice)
            update.finish_reason, update.failure = FinishReason.ERROR, failure
            self.tell(update)

    def tell(self, update: SequenceUpdate) -> None:
        """Publish an update with the next step's."""
        self._updates.append(update)

    def has_item(self, content_hash: bytes) -> bool:
        """Return whether an item need not be staged; any thread may ask.

        An item that is encoded for one tenant alone counts, until another's sequence has asked for the bytes.
        """
        if self.items.touch(content_hash):
            return True
        return self.encoder_cache.has_hash(content_hash) and content_hash not in self._requested

    # --- one step

    def step(self) -> StepOutput:
        """Run one step and return all news since the last one.

        What is wrong with one sequence ends that sequence; an exception that comes out of here is about all of them.
        """
        plan = self._schedule()
        has_work = bool(plan or self._flights)
        self._encode(plan)
        flights, error = self._launch(plan)
        self._land(plan)
        if error is not None:
            flights = self._recover(plan, error)
        self._advance(plan, flights)
        self._flights = [flight.take_off() for flight in flights]
        if error is not None or not self.config.async_scheduling:
            self._land(plan)
        return self._publish(plan, has_work)

    @property
    def is_idle(self) -> bool:
        """Whether no sequence waits or runs and there is nothing to tell."""
        return not self._groups and not self._updates

    @property
    def has_news(self) -> bool:
        """Whether there is something to tell that no step has published yet."""
        return bool(self._updates)

    def next_deadline_s(self) -> float | None:
        """Return the earliest deadline of all sequences, on the engine's clock."""
        return self.scheduler.deadlines.next_s()

    def load(self) -> LoadReport:
        """Return how busy the engine is."""
        waiting = len(self.scheduler.waiting) + sum(
            len(s.forks) for s in (*self.scheduler.waiting, *self.scheduler.running)
        )
        return LoadReport(
            waiting=waiting,
            running=len(self.scheduler.running),
            total_blocks=self.pool.num_blocks,
            free_blocks=self.pool.num_free,
            cached_blocks=self.pool.num_cached,
            used_blocks=self.pool.num_used,
            pinned_items=self.encoder_cache.num_pinned,
            encoder_cache_bytes=self.encoder_cache.used_bytes,
            staged_bytes=self.items.used_bytes,
            total_state_slots=self.states.num_slots if self.states else 0,
            running_state_slots=self.states.num_running if self.states else 0,
            state_checkpoints=self.states.num_checkpoints if self.states else 0,
        )

    def _schedule(self) -> Schedule:
        self.items.expire()
        for sequence in self.scheduler.deadlines.expired(self._clock()):
            self._end(sequence, FinishReason.ERROR, DEADLINE_EXCEEDED)
        plan = self.scheduler.schedule()
        if self._requested or plan.need_items:
            asked = self._requested.union(need.content_hash for need in plan.need_items)
            self._requested = frozenset(h for h in asked if self.items.is_wanted(h) and h not in self.items)
        return plan

    def _encode(self, plan: Schedule) -> None:
        tasks = list(plan.encodes.values())
        try:
            self.runner.encode(tasks)
        except Exception:
            # One item must not take the others down: each gets its own try.
            for task in tasks:
                self._encode_alone(task, plan)

    def _encode_alone(self, task: EncodeTask, plan: Schedule) -> None:
        try:
            self.runner.encode([task])
        except Exception as error:
            log.error("encode_failed", num_tokens=task.num_tokens, exc_info=True)
            self._fail_readers(task.key, plan, error)
            self.encoder_cache.discard(task.key)

    def _fail_readers(self, key: ItemKey, plan: Schedule, error: Exception) -> None:
        for sequence in (*self.scheduler.running, *self.scheduler.waiting):
            if any(sequence.item_key(index) == key for index in sequence.wanted):
                plan.drop(sequence)
                self._fail(sequence, error)

    def _launch(self, plan: Schedule) -> tuple[list[Flight], Exception | None]:
        """Begin to compute what was scheduled and to draw; return the draws, or why it failed."""
        if not plan.chunks:
            return [], None
        self.runner.copy_blocks(plan.copies)
        self.runner.copy_states(plan.state_loads.values())
        self.scheduler.loaded(plan)
        try:
            return self._draw(list(plan.chunks.values())), None
        except Exception as error:
            log.error("step_failed", num_sequences=len(plan.chunks), num_tokens=plan.num_tokens, exc_info=True)
            return [], error

    def _recover(self, plan: Schedule, error: Exception) -> list[Flight]:
        """Do what a failed step can still do; sequences that cannot run are ended and dropped from the plan."""
        if self.states is None:
            return self._run_each(plan)
        self._suspect_all(plan, error)
        return []

    def _suspect_all(self, plan: Schedule, error: Exception) -> None:
        """Let each sequence of a failed step run alone, in steps to come; one that just did so is the one to blame.

        Running a chunk again at once would update states twice.
        """
        for chunk in tuple(plan.chunks.values()):
            if not self.scheduler.suspect(chunk, plan):
                log.error("sequence_failed", request_id=chunk.sequence.group.request_id)
                self._fail(chunk.sequence, error)

    def _run_each(self, plan: Schedule) -> list[Flight]:
        flights: list[Flight] = []
        for chunk in tuple(plan.chunks.values()):
            # Running a chunk again writes the same keys and values to the same slots.
            try:
                flights += self._draw([chunk])
            except Exception as error:
                log.error("sequence_failed", request_id=chunk.sequence.group.request_id, exc_info=True)
                plan.drop(chunk.sequence)
                self._fail(chunk.sequence, error)
        return flights

    def _draw(self, chunks: list[Chunk]) -> list[Flight]:
        drawn = self._flights[0].sampled if self._flights else None
        logits = self.runner.run(self.runner.prepare(chunks, drawn))
        rows = rows_to_sample(chunks, self.config.max_sequences - len(self.scheduler.running))
        return [Flight(self.sampler.start(logits, rows, drawn), rows)] if rows else []

    def _land(self, plan: Schedule) -> None:
        """Wait for the draws under way; a sequence that ends with its token is dropped from the plan."""
        flights, self._flights = self._flights, []
        for flight in flights:
            for (_, sequence), draw in zip(flight.rows, self.sampler.finish(*flight), strict=True):
                if sequence.status is not Status.FINISHED:
                    self._note(sequence, draw, plan)

    def _advance(self, plan: Schedule, flights: list[Flight]) -> None:
        for chunk in plan.chunks.values():
            prompt_is_computed = chunk.samples
            self.scheduler.complete(chunk, plan)
            if prompt_is_computed and chunk.sequence.forks:
                drawn = {sequence for flight in flights for _, sequence in flight.rows}
                self.scheduler.fork(chunk.sequence, plan, drawn)
        if plan.state_saves:
            self._save_states(plan)

    def _save_states(self, plan: Schedule) -> None:
        try:
            self.runner.copy_states(plan.state_saves)
        except Exception:
            self.scheduler.saved(plan, failed=True)
            raise
        self.scheduler.saved(plan)

    def _note(self, sequence: Sequence, draw: Draw, plan: Schedule) -> None:
        sequence.token_ids[-1], sequence.pending = draw.token_id, -1
        update = self._update(sequence)
        update.token_ids.append(draw.token_id)
        if draw.logprob is not None:
            update.logprobs.append(draw.logprob)
        reason = self._finish_reason(sequence)
        if reason is not None:
            plan.drop(sequence)
            self._end(sequence, reason, update=update)

    def _finish_reason(self, sequence: Sequence) -> FinishReason | None:
        """Return why a sequence ends with its last token, or None."""
        params, token = sequence.params, sequence.token_ids[-1]
        if token in params.stop_token_ids or (token in self._eos and not params.ignore_eos):
            sequence.matched_stop_token_id = token
            return FinishReason.STOP
        if sequence.is_full:
            return FinishReason.LENGTH
        return None

    # --- what ends and goes out

    def _enqueue(self, sequences: tuple[Sequence, ...]) -> None:
        """Queue new choices: those that have emitted nothing fork from one prefill, the others run alone."""
        lead: Sequence | None = None
        for sequence in sequences:
            if sequence.num_generated:
                self.scheduler.add(sequence)
                reason = self._finish_reason(sequence)
                if reason is not None:
                    self._end(sequence, reason)
            elif lead is None:
                lead = sequence
                self.scheduler.add(sequence)
            else:
                self.scheduler.attach(sequence, lead)

    def _fail(self, sequence: Sequence, error: Exception) -> None:
        failure = failure_of(error)
        for fork in tuple(sequence.forks):
            self._end(fork, FinishReason.ERROR, failure)
        self._end(sequence, FinishReason.ERROR, failure)

    def _end(
        self,
        sequence: Sequence,
        reason: FinishReason,
        failure: SequenceFailure | None = None,
        update: SequenceUpdate | None = None,
    ) -> None:
        if sequence.status is Status.FINISHED:
            return
        update = update or self._update(sequence)
        update.finish_reason, update.failure = reason, failure
        update.matched_stop_token_id = sequence.matched_stop_token_id
        self.scheduler.remove(sequence)
        key = sequence.group.key
        self._groups[key].remove(sequence)
        if not self._groups[key]:
            del self._groups[key]
            self._unannounced.discard(key)

    def _update(self, sequence: Sequence) -> SequenceUpdate:
        group = sequence.group
        update = SequenceUpdate(group.owner, group.request_id, group.epoch, sequence.choice)
        if self._unannounced and group.key in self._unannounced and sequence.num_cached is not None:
            self._unannounced.discard(group.key)
            update.cached_tokens = sequence.num_cached
        self._updates.append(update)
        return update

    def _publish(self, plan: Schedule, has_work: bool) -> StepOutput:
        self.num_steps += 1
        updates, self._updates = self._updates, []
        return StepOutput(self.num_steps, updates, plan.need_items, self.load(), worked=has_work or plan.has_failed)
