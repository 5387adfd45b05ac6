"""Decode steps recorded for common numbers of sequences and lengths of context.

A decode step has one token a sequence, so sizes of batch and context are all that it depends on; both are padded up to
the next recorded size. A padded row belongs to no sequence: it writes no cache, attends to nothing, and nobody reads
its logits. Steps with prefill in them run as they are: their launches hide behind their arithmetic.

Next: worker/layers/graph.py
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from worker.layers.graph import Graph, Recorder, new_pool
from worker.layers.kv_cache import KVCache
from worker.models.base import ForwardBatch

Forward = Callable[[ForwardBatch, KVCache], torch.Tensor]
# Every small size: a padded row of a mixture of experts reads the weights of experts that nobody else may have chosen.
BATCH_SIZES = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 56, 64, 80, 96, 128, 160, 192, 224, 256)
CONTEXTS = (1024, 4096, 16384, 65536)  # tokens; and the longest that is served


class _Inputs:
    """What recordings read, on the device: memory for the largest size, which all others take a part of.

    Args:
        cache: that steps use.
        max_sequences: most sequences of a step.
        max_blocks: most blocks of a sequence.
    """

    def __init__(self, cache: KVCache, max_sequences: int, max_blocks: int) -> None:
        def zeros(*shape: int, dtype: torch.dtype = torch.int64) -> torch.Tensor:
            return torch.zeros(shape, dtype=dtype, device=cache.device)

        self.input_ids, self.positions = zeros(max_sequences), zeros(3 * max_sequences)
        self.slots, self.state_slots = zeros(max_sequences), zeros(max_sequences) if cache.states is not None else None
        self.context_lens, self.query_start = (zeros(max_sequences + n, dtype=torch.int32) for n in (0, 1))
        self.tables = zeros(max_sequences * max_blocks, dtype=torch.int32)
        self.rows = torch.arange(max_sequences, device=cache.device)
        # What padded rows hold: no slot, no context, and no tokens behind those of each number of sequences.
        self._none, self._zeros = zeros(max_sequences) - 1, zeros(max_sequences)
        self._empty = zeros(max_sequences, dtype=torch.int32)
        self._ends = torch.arange(max_sequences, device=cache.device, dtype=torch.int32)[:, None].repeat(
            1, max_sequences
        )

    def part(self, size: int, context: int, blocks: int) -> ForwardBatch:
        """Return the inputs of a recording; its host lengths bound what a replay may hold."""
        return ForwardBatch(
            input_ids=self.input_ids[:size],
            positions=self.positions[: 3 * size].view(3, size),
            slot_mapping=self.slots[:size],
            block_tables=self.tables[: size * blocks].view(size, blocks),
            context_lens=self.context_lens[:size],
            query_start=self.query_start[: size + 1],
            logits_indices=self.rows[:size],
            query_lens=(1,) * size,
            kv_lens=(context,) * size,
            state_slots=None if self.state_slots is None else self.state_slots[:size],
        )

    def clear(self) -> None:
        """Make all rows padding."""
        for slots in (self.slots, self.state_slots):
            if slots is not None:
                slots.fill_(-1)
        for rest in (self.input_ids, self.positions, self.tables, self.context_lens, self.query_start):
            rest.zero_()

    def fill(self, part: ForwardBatch, batch: ForwardBatch) -> None:
        """Copy a step's inputs in and mark the rows that are left over as padding, by three launches."""
        count, size = batch.num_seqs, part.num_seqs
        pairs = [(part.input_ids[:count], batch.input_ids), (part.slot_mapping[:count], batch.slot_mapping)]
        pairs += [(part.positions[axis, :count], batch.positions[axis]) for axis in range(3)]
        lens = [(part.context_lens[:count], batch.context_lens), (part.query_start[: count + 1], batch.query_start)]
        if part.state_slots is not None:
            assert batch.state_slots is not None
            pairs.append((part.state_slots[:count], batch.state_slots))
        if rest := size - count:
            pairs += [(part.input_ids[count:], self._zeros[:rest]), (part.slot_mapping[count:], self._none[:rest])]
            lens += [
                (part.context_lens[count:], self._empty[:rest]),
                (part.query_start[count + 1 :], self._ends[count, :rest]),
            ]
            if part.state_slots is not None:
                pairs.append((part.state_slots[count:], self._none[:rest]))
        for several in (pairs, lens):
            targets, sources = zip(*several, strict=True)
            torch._foreach_copy_(targets, sources)
        width = min(batch.block_tables.shape[1], part.block_tables.shape[1])  # more than the context takes is not read
        part.block_tables[:count, :width].copy_(batch.block_tables[:, :width])


@dataclass(frozen=True)
class _Recording:
    """One size: its inputs, and what runs on them."""

    batch: ForwardBatch
    graph: Graph[torch.Tensor]


class DecodeGraphs:
    """Recordings of a model's decode steps, made by `prepare`, or when a size is first met.

    Args:
        forward: the model's.
        kv_cache: that all steps use.
        max_sequences: most sequences of a step.
        max_model_len: longest context.
        record: what records; see `worker.layers.graph`.
    """

    def __init__(
        self,
        forward: Forward,
        kv_cache: KVCache,
        max_sequences: int,
        max_model_len: int,
        record: Recorder,
    ) -> None:
        self._forward = forward
        self._kv_cache = kv_cache
        self._sizes = [size for size in BATCH_SIZES if size < max_sequences] + [max_sequences]
        self._contexts = [length for length in CONTEXTS if length < max_model_len] + [max_model_len]
        self._record = record
        self._recordings: dict[tuple[int, int], _Recording] = {}
        # One memory for all, and one for the logits of all: they are used up before the next step.
        self._pool = new_pool(kv_cache.device)
        self._logits: torch.Tensor | None = None
        self._inputs = _Inputs(kv_cache, max_sequences, self._blocks(max_model_len))

    @staticmethod
    def takes(batch: ForwardBatch) -> bool:
        """Tell whether a step decodes and nothing else."""
        return batch.mm_embeds is None and batch.num_tokens == batch.num_seqs == batch.logits_indices.shape[0]

    def prepare(self) -> None:
        """Record all sizes, the largest first, so that the others share its memory."""
        for size in reversed(self._sizes):
            for context in reversed(self._contexts):
                self._recording(size, context)

    def __call__(self, batch: ForwardBatch) -> torch.Tensor:
        """Run a step that `takes` said yes to; return its logits, which hold until the next call."""
        size = next(size for size in self._sizes if size >= batch.num_seqs)
        context = next(length for length in self._contexts if length >= max(batch.kv_lens))
        recording = self._recording(size, context)
        self._inputs.fill(recording.batch, batch)
        return recording.graph.replay()[: batch.num_seqs]

    def _recording(self, size: int, context: int) -> _Recording:
        key = (size, context)
        if key not in self._recordings:
            self._inputs.clear()  # what is recorded runs, and must find nothing of an earlier step
            batch = self._inputs.part(size, context, self._blocks(context))
            graph = self._record(lambda: self._run(batch), self._pool)
            self._recordings[key] = _Recording(batch, graph)
        return self._recordings[key]

    def _blocks(self, context: int) -> int:
        return -(-context // self._kv_cache.block_size)

    def _run(self, batch: ForwardBatch) -> torch.Tensor:
        """Run a forward whose logits lie outside of the pool, where each recording would keep a place for its own."""
        logits = self._forward(batch, self._kv_cache)
        if self._logits is None:  # at a warm-up, not while recording
            self._logits = logits.new_empty(self._sizes[-1], logits.shape[1])
        return self._logits[: batch.num_seqs].copy_(logits)
