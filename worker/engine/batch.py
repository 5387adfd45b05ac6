"""From a schedule to the model's ForwardBatch: ids, positions, slots, block tables, and the items' rows.

Buffers are kept between steps and filled with numpy, since a decode step must cost microseconds here.

Next: worker/engine/model_runner.py
"""

from collections.abc import Callable, Iterable

import numpy as np
import torch

from tessera_kernels import ops
from worker.engine.chunk_map import item_rows
from worker.engine.config import EngineConfig
from worker.engine.encoder_cache import ItemKey
from worker.engine.schedule import Chunk
from worker.engine.sequence import Sequence
from worker.engine.upload import Upload
from worker.layers.positions import cut_segments
from worker.models.base import EncoderOutput, ForwardBatch

EncodedItem = Callable[[ItemKey], EncoderOutput]
Merged = tuple[torch.Tensor | None, np.ndarray, torch.Tensor | None]
Segment = tuple[int, int, int, int, int, int]
"""A row of what `ops.mrope_positions` takes."""
_NO_RANGES = np.zeros((2, 0, 2), np.int64)


class BatchBuilder:
    """Builds one batch at a time; a batch is valid until the next one is built.

    Args:
        config: limits.
        device: where the model runs.
        has_state: whether the model keeps recurrent state.
    """

    def __init__(self, config: EngineConfig, device: torch.device, has_state: bool = False) -> None:
        self._has_state = has_state
        self._block_size = config.block_size
        self._upload = Upload(device)
        self._max_blocks = config.blocks_for(config.max_model_len)
        tokens, sequences = config.max_batched_tokens, config.max_sequences
        self._input_ids = np.zeros(tokens, np.int64)
        self._slots = np.zeros(tokens, np.int64)
        self._tables = np.zeros(sequences * self._max_blocks, np.int32)
        self._state_slots = np.zeros(sequences, np.int64)

    def build(self, chunks: Iterable[Chunk], encoded: EncodedItem, drawn: torch.Tensor | None = None) -> ForwardBatch:
        """Flatten the chunks.

        Args:
            chunks: in the order that they take in the batch; at most the configured tokens and sequences.
            encoded: gives an item's embeddings; called for the items that a chunk touches.
            drawn: int (rows,), on the device: tokens that are pending; needed where a chunk has one.

        Returns:
            The batch, on the model's device.
        """
        chunks = list(chunks)
        query_lens = tuple([chunk.end - chunk.start for chunk in chunks])
        starts = np.zeros(len(chunks) + 1, np.int32)
        np.cumsum(query_lens, out=starts[1:])
        num_tokens = int(starts[-1])
        rows = starts[:-1].tolist()
        found, tables, wanted, pending = self._fill(chunks, rows)
        embeds, ranges, deepstack = self._gather(chunks, rows, encoded)
        kv_lens = tuple([chunk.end for chunk in chunks])
        input_ids, segments, slots, blocks, context_lens, query_start, indices, states, item_ranges, places = (
            self._upload(
                [
                    self._input_ids[:num_tokens],
                    np.array(found, np.int64),
                    self._slots[:num_tokens],
                    self._block_tables(tables),
                    np.array(kv_lens, np.int32),
                    starts,
                    np.array(wanted, np.int64),
                    self._states(chunks),
                    ranges,
                    np.array(pending, np.int64).reshape(-1, 2).T,
                ]
            )
        )
        if pending:
            assert drawn is not None
            input_ids.index_copy_(0, places[0], drawn[places[1]].long())
        return ForwardBatch(
            input_ids=input_ids,
            positions=ops.mrope_positions(segments, num_tokens),
            slot_mapping=slots,
            block_tables=blocks,
            context_lens=context_lens,
            query_start=query_start,
            logits_indices=indices,
            query_lens=query_lens,
            kv_lens=kv_lens,
            state_slots=states if self._has_state else None,
            mm_embeds=embeds,
            mm_source=None if embeds is None else item_ranges[0],
            mm_target=None if embeds is None else item_ranges[1],
            mm_deepstack=deepstack,
        )

    def _fill(
        self, chunks: list[Chunk], rows: list[int]
    ) -> tuple[list[Segment], list[np.ndarray], list[int], list[tuple[int, int]]]:
        """Put the chunks' ids and slots where they belong.

        Returns:
            Segments; block tables; rows that logits are wanted of; (row, row of the draws) of pending tokens.
        """
        segments: list[Segment] = []
        tables, wanted, pending = [], [], []
        size = self._block_size
        for chunk, row in zip(chunks, rows, strict=True):
            sequence, start, end = chunk.sequence, chunk.start, chunk.end
            table = self._table_row(sequence)
            tables.append(table)
            last = row + end - start
            if end - start == 1:
                self._input_ids[row] = sequence.token_ids[start]
                self._slots[row] = sequence.block_table[start // size] * size + start % size
            else:
                self._input_ids[row:last] = sequence.token_ids[start:end]
                index = np.arange(start, end)
                np.multiply(table[index // size], size, out=self._slots[row:last])
                self._slots[row:last] += index % size
            if start >= sequence.num_prompt:
                segments.append((row, end - start, start + sequence.position_delta, 0, 0, 0))
            else:
                segments += _prompt_segments(chunk, row)
            if end == len(sequence.token_ids):
                wanted.append(last - 1)
                if sequence.pending >= 0:
                    pending.append((last - 1, sequence.pending))
        return segments, tables, wanted, pending

    def _table_row(self, sequence: Sequence) -> np.ndarray:
        """Return the sequence's blocks as an array, appending to the one of the step before."""
        table = sequence.block_table
        held = sequence.table_row
        if held is None or held[0] != sequence.table_version:
            held = sequence.table_row = [sequence.table_version, 0, np.zeros(self._max_blocks, np.int32)]
        if held[1] < len(table):
            held[2][held[1] : len(table)] = table[held[1] :]
            held[1] = len(table)
        return held[2][: held[1]]

    def _block_tables(self, rows: list[np.ndarray]) -> np.ndarray:
        """Return the tables side by side; what a row has too few of is filled up with a block of its own."""
        width = max([len(row) for row in rows])
        tables = self._tables[: len(rows) * width].reshape(len(rows), width)
        for number, row in enumerate(rows):
            count = len(row)
            tables[number, :count] = row
            if count < width:
                tables[number, count:] = row[0]
        return tables

    def _states(self, chunks: list[Chunk]) -> np.ndarray:
        if not self._has_state:
            return self._state_slots[:0]
        slots = self._state_slots[: len(chunks)]
        slots[:] = [chunk.sequence.state_slot for chunk in chunks]
        return slots

    def _gather(self, chunks: list[Chunk], rows: list[int], encoded: EncodedItem) -> Merged:
        """Return embeddings, ranges of theirs and of the batch's rows, and deepstack features of all placeholders."""
        embeds, spans, deepstack = [], [], []
        count = 0
        for chunk, first in zip(chunks, rows, strict=True):
            for index in sorted(chunk.sequence.pinned) if chunk.sequence.pinned else ():
                runs = item_rows(chunk.start, chunk.end, chunk.sequence.items[index].ranges)
                output = encoded(chunk.sequence.item_key(index)) if runs else None
                for run in runs:
                    assert output is not None
                    embeds.append(output.embeddings[run.source : run.source + run.length])
                    spans.append((first + run.destination, count, run.length))
                    count += run.length
                    if output.deepstack is not None:
                        deepstack.append(output.deepstack[:, run.source : run.source + run.length])
        if not embeds:
            return None, _NO_RANGES, None
        targets, sources, lengths = np.array(sorted(spans), np.int64).T  # runs of several items may take turns
        ranges = np.stack([np.stack((first, first + lengths), axis=1) for first in (sources, targets)])
        return torch.cat(embeds), ranges, torch.cat(deepstack, dim=1) if deepstack else None


def _prompt_segments(chunk: Chunk, row: int) -> list[Segment]:
    """Return where the tokens of a chunk, which begins in the prompt, stand, as segments of the step."""
    sequence, start, end = chunk.sequence, chunk.start, chunk.end
    num_prompt = sequence.num_prompt
    segments = list(map(tuple, cut_segments(sequence.segments, start, min(end, num_prompt), row).tolist()))
    if end > num_prompt:  # after a preemption
        first = row + num_prompt - start
        segments.append((first, end - num_prompt, num_prompt + sequence.position_delta, 0, 0, 0))
    return segments
