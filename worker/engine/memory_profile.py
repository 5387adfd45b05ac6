"""Runs the largest steps that the limits allow, with dummy media, to see how much memory they take.

They run before there are caches: all sequences share two blocks and two slots of state, of which their tables make the
longest context. What is measured is what the same tensors take later, whatever stands in them.

Next: worker/engine/sizing.py
"""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from tessera_kernels import sampling
from tessera_kernels.sampling import CHANGE, ROW, TOKEN_VALUE, SamplingBatch
from worker.engine.memory_needs import MemoryNeeds, StepLimits
from worker.engine.state_sizing import SizingError
from worker.layers.graph import EagerGraph, recording_stream
from worker.memory import Meter, Usage
from worker.models.base import CausalLM, ForwardBatch, ItemSize
from worker.models.decode_graph import DecodeGraphs

NUM_BLOCKS = NUM_SLOTS = 2  # one to copy from, one to copy to
TOP_LOGPROBS = 20  # as many as a request may ask for


@torch.inference_mode()
def profile_memory(model: CausalLM, limits: StepLimits, meter: Meter, *, records: bool) -> MemoryNeeds:
    """Run the largest steps, each under the meter, and return what they took; nothing of them stays.

    Args:
        model: loaded; what its encoders record is recorded.
        limits: of a step.
        meter: of the model's device.
        records: whether decode steps will be recorded.

    Raises:
        SizingError: one of them runs out of memory; the text names the flags to lower.
    """
    steps = WorstSteps(model, limits)
    flags = "--max-batched-tokens or --max-model-len"
    encodes = [
        _measure(meter, partial(steps.encode, size), f"the largest item of modality {size.modality}", flags)
        for size in model.worst_items(limits.max_model_len)
    ]
    flags = "--max-batched-tokens, --max-sequences or --max-model-len"
    forwards = [
        _measure(meter, partial(steps.step, lens), f"a step of {sum(lens)} tokens", flags)
        for lens in steps.query_lens()
    ]
    forwards.append(_measure(meter, steps.copy, "copies of blocks and states", "--max-sequences"))
    recordings = []
    if records:
        what = f"recorded steps of {limits.max_sequences} sequences"
        recordings.append(_measure(meter, steps.rehearse, what, "--max-sequences or --max-model-len"))
    return MemoryNeeds(
        encode_bytes=max((usage.peak_bytes for usage in encodes), default=0),
        step_bytes=max(usage.peak_bytes for usage in forwards),
        recordings_bytes=sum(usage.peak_bytes for usage in recordings),
        libraries_bytes=sum(usage.kept_bytes for usage in (*encodes, *forwards, *recordings)),
        is_measured=True,
    )


def _measure(meter: Meter, run: Callable[[], object], what: str, flags: str) -> Usage:
    try:
        return meter.measure(run)
    except torch.OutOfMemoryError:
        raise SizingError(f"there is not enough memory for {what} beside the model: lower {flags}") from None


class WorstSteps:
    """What an engine does in a step, as large as the limits allow.

    Args:
        model: what runs.
        limits: of a step.
    """

    def __init__(self, model: CausalLM, limits: StepLimits) -> None:
        self._model = model
        self._limits = limits
        self._cache = model.make_kv_cache(NUM_BLOCKS, limits.block_size, NUM_SLOTS)
        self._cache.blocks.zero_()  # what is read here was never written, and numbers should be numbers
        if self._cache.states is not None:
            self._cache.states.conv.zero_()
            self._cache.states.recurrent.zero_()

    def encode(self, size: ItemSize) -> object:
        """Encode as many items of a size as a step encodes at once."""
        count = max(1, self._limits.max_batched_tokens // max(1, self._model.item_tokens(size)))
        return self._model.encode([self._model.dummy_input(size)] * count)

    def query_lens(self) -> list[list[int]]:
        """Return the new tokens of each sequence, in the fewest sequences that fill a step, and in the most."""
        limits = self._limits
        fewest = min(-(-limits.max_batched_tokens // limits.max_model_len), limits.max_sequences)
        shapes = []
        for count in sorted({fewest, limits.max_sequences}):
            tokens = min(limits.max_batched_tokens, count * limits.max_model_len)
            shapes.append([tokens // count + (number < tokens % count) for number in range(count)])
        return shapes

    def step(self, query_lens: list[int]) -> object:
        """Run the ends of longest contexts, and draw for all sequences."""
        batch = self._batch(query_lens)
        logits = self._model.forward(batch, self._cache)
        return batch, logits, sampling.sample(logits, self._draw(len(query_lens))).fetch()

    def copy(self) -> None:
        """Copy a block and a state for each sequence."""
        pairs = [(0, 1)] * self._limits.max_sequences
        self._cache.copy_blocks(pairs)
        if self._cache.states is not None:
            self._cache.states.copy(pairs)

    def rehearse(self) -> object:
        """Do what recording decode steps does, but for the smaller ones, which share the memory of the largest."""
        runs: list[Callable[[], object]] = []

        def defer(run: Callable[[], object], pool: object) -> EagerGraph[object]:
            runs.append(run)
            return EagerGraph(run, pool)

        limits = self._limits
        graphs = DecodeGraphs(self._model.forward, self._cache, limits.max_sequences, limits.max_model_len, defer)
        graphs.prepare()
        with recording_stream(self._model.device):
            return graphs, runs[0]()

    def _batch(self, query_lens: list[int]) -> ForwardBatch:
        model, limits = self._model, self._limits
        count, tokens, length = len(query_lens), sum(query_lens), limits.max_model_len
        ends = np.cumsum([0, *query_lens])

        def of(values: object, dtype: torch.dtype = torch.int64) -> torch.Tensor:
            return torch.as_tensor(np.asarray(values), dtype=dtype).to(model.device)

        table = np.arange(-(-length // limits.block_size)) % NUM_BLOCKS
        batch = ForwardBatch(
            input_ids=of(np.zeros(tokens)),
            positions=of(np.full((3, tokens), length - 1)),
            slot_mapping=of(np.arange(tokens) % (NUM_BLOCKS * limits.block_size)),
            block_tables=of(np.broadcast_to(table, (count, len(table))).copy(), torch.int32),
            context_lens=of(np.full(count, length), torch.int32),
            query_start=of(ends, torch.int32),
            logits_indices=of(ends[1:] - 1),
            query_lens=tuple(query_lens),
            kv_lens=(length,) * count,
            state_slots=of(np.arange(count) % NUM_SLOTS) if self._cache.states is not None else None,
        )
        if model.info.modalities:
            layers, width = model.info.num_deepstack_layers, model.hidden_size
            batch.mm_embeds = torch.zeros(tokens, width, dtype=model.dtype, device=model.device)
            batch.mm_source = batch.mm_target = of([[0, tokens]])
            if layers:
                batch.mm_deepstack = torch.zeros(layers, tokens, width, dtype=model.dtype, device=model.device)
        return batch

    def _draw(self, num_logits: int) -> SamplingBatch:
        """Return draws for all sequences, each with all that a request may ask for."""
        vocab_size, number = self._model.vocab_size, np.arange(self._limits.max_sequences)
        rows, changes = np.zeros(len(number), ROW), np.zeros(len(number), CHANGE)
        rows["source"] = changes["source"] = number % num_logits
        rows["changed"] = number
        rows["temperature"], rows["top_k"], rows["top_p"], rows["reach"] = 1.0, 50, 0.9, 10.0
        rows["num_top"] = min(TOP_LOGPROBS, vocab_size)
        changes["repetition"], changes["frequency"], changes["presence"] = 1.1, 0.5, 0.5
        changes["drawn"] = -1
        # each has seen as many different tokens as there are, or as its context holds
        seen = np.zeros((len(number), min(vocab_size, self._limits.max_model_len)), TOKEN_VALUE)
        seen["token"], seen["value"] = np.arange(seen.shape[1]), 1
        changes["seen_begin"], changes["seen_end"] = number * seen.shape[1], (number + 1) * seen.shape[1]
        changes["bias_begin"], changes["bias_end"] = number, number + 1
        return SamplingBatch(rows, changes, np.zeros(len(number), TOKEN_VALUE), seen.reshape(-1))
