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


@dataclass(frozen=True)
class _Recording:
    """One size: its inputs, all of them on the device, and what runs on them."""

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
        _fill(recording.batch, batch)
        return recording.graph.replay()[: batch.num_seqs]

    def _recording(self, size: int, context: int) -> _Recording:
        key = (size, context)
        if key not in self._recordings:
            batch = self._padding(size, context)
            graph = self._record(lambda: self._run(batch), self._pool)
            self._recordings[key] = _Recording(batch, graph)
        return self._recordings[key]

    def _run(self, batch: ForwardBatch) -> torch.Tensor:
        """Run a forward whose logits lie outside of the pool, where each recording would keep a place for its own."""
        logits = self._forward(batch, self._kv_cache)
        if self._logits is None:  # at a warm-up, not while recording
            self._logits = logits.new_empty(self._sizes[-1], logits.shape[1])
        return self._logits[: batch.num_seqs].copy_(logits)

    def _padding(self, size: int, context: int) -> ForwardBatch:
        """Return a batch of padding alone, whose host lengths bound what a replay may hold."""
        blocks = -(-context // self._kv_cache.block_size)

        def zeros(*shape: int, dtype: torch.dtype = torch.int64) -> torch.Tensor:
            return torch.zeros(shape, dtype=dtype, device=self._kv_cache.device)

        return ForwardBatch(
            input_ids=zeros(size),
            positions=zeros(3, size),
            slot_mapping=zeros(size).fill_(-1),
            block_tables=zeros(size, blocks, dtype=torch.int32),
            context_lens=zeros(size, dtype=torch.int32),
            query_start=zeros(size + 1, dtype=torch.int32),
            logits_indices=torch.arange(size, device=self._kv_cache.device),
            query_lens=(1,) * size,
            kv_lens=(context,) * size,
            state_slots=zeros(size).fill_(-1) if self._kv_cache.states is not None else None,
        )


def _fill(padded: ForwardBatch, batch: ForwardBatch) -> None:
    """Copy a step's inputs in, and mark the rows that are left over as padding."""
    count = batch.num_seqs
    for name, padding in (("input_ids", 0), ("slot_mapping", -1), ("context_lens", 0), ("state_slots", -1)):
        target, source = getattr(padded, name), getattr(batch, name)
        if target is not None:
            target[:count].copy_(source)
            target[count:].fill_(padding)
    padded.positions[:, :count].copy_(batch.positions)
    padded.query_start[: count + 1].copy_(batch.query_start)
    padded.query_start[count + 1 :].fill_(count)
    width = min(batch.block_tables.shape[1], padded.block_tables.shape[1])  # more than the context takes is not read
    padded.block_tables[:count, :width].copy_(batch.block_tables[:, :width])
