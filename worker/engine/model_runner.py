"""Runs what was scheduled: copies blocks and states, encodes items, builds the batch, calls the model.

Next: worker/engine/sampler.py
"""

from collections.abc import Collection, Iterable

import numpy as np
import torch
from torch.profiler import record_function

from tessera.errors import InvalidArgument
from tessera.items import MultimodalItem
from tessera_kernels.sampling import SampledRows
from worker.engine.batch import BatchBuilder
from worker.engine.config import EngineConfig
from worker.engine.encoder_cache import EncoderCache
from worker.engine.schedule import Chunk, EncodeTask
from worker.engine.sequence import SequenceGroup
from worker.layers.graph import Recorder, recorder_for
from worker.models.base import CausalLM, EncoderInput, EncoderOutput, ForwardBatch, ItemLayout
from worker.models.decode_graph import DecodeGraphs

TORCH_DTYPES = {"U8": torch.uint8, "F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}


class ModelRunner:
    """Owns the model, its KV cache and its recurrent states.

    Args:
        config: limits.
        model: what runs.
        cache: encoded items.
    """

    def __init__(self, config: EngineConfig, model: CausalLM, cache: EncoderCache) -> None:
        self.model = model
        has_state = model.state_shape is not None
        num_slots = config.max_sequences + config.state_checkpoints if has_state else 0
        self.kv_cache = model.make_kv_cache(config.num_blocks, config.block_size, num_slots)
        self._cache = cache
        self._builder = BatchBuilder(config, model.device, has_state)
        self._config = config
        self._decode_graphs: DecodeGraphs | None = None

    @torch.inference_mode()
    def record(self, record: Recorder | None = None) -> None:
        """Record decode steps of all common sizes, where the device does; steps run as they are until then.

        Args:
            record: what records; None: what the device has.
        """
        record = record or recorder_for(self.model.device)
        if record is not None:
            self._decode_graphs = DecodeGraphs(
                self.model.forward, self.kv_cache, self._config.max_sequences, self._config.max_model_len, record
            )
            self._decode_graphs.prepare()

    def positions(self, group: SequenceGroup) -> tuple[np.ndarray, int]:
        """Return where the prompt's tokens stand, segments (count, 6), and what to add to a later token's index.

        Raises:
            InvalidArgument: the items' ranges do not fit their grids.
        """
        layouts = [ItemLayout(item.modality, item.ranges, item.grid_thw) for item in group.items]
        segments, following = self.model.prompt_positions(len(group.prompt_ids), layouts)
        return segments, following - len(group.prompt_ids)

    def copy_blocks(self, copies: dict[int, int]) -> None:
        """Copy KV blocks, destination by source, in order."""
        if not copies:
            return
        pairs = [(source, destination) for destination, source in copies.items()]
        if copies.keys() & set(copies.values()):
            # A block that was copied from was freed and became another copy's destination in the same step.
            for pair in pairs:
                self.kv_cache.copy_blocks([pair])
        else:
            self.kv_cache.copy_blocks(pairs)

    @torch.inference_mode()
    def copy_states(self, pairs: Collection[tuple[int, int]]) -> None:
        """Copy recurrent states, (source slot, destination slot); no slot is both."""
        if pairs:
            assert self.kv_cache.states is not None
            self.kv_cache.states.copy(tuple(pairs))

    @torch.inference_mode()
    def encode(self, tasks: list[EncodeTask]) -> None:
        """Encode items in one batch and put them into the encoder cache.

        Raises:
            InvalidArgument: an item owns other tokens than its ranges cover; nothing was encoded.
        """
        if not tasks:
            return
        inputs = [encoder_input(task.item) for task in tasks]  # type: ignore[arg-type]
        for task, item in zip(tasks, inputs, strict=True):
            self._check_tokens(task, item)
        with record_function("encode"):
            outputs = self.model.encode(inputs)
        for task, output in zip(tasks, outputs, strict=True):
            assert output.embeddings.shape[0] == task.num_tokens, "the encoder returned a wrong number of rows"
            self._cache.put(task.key, _owned(output))

    def _check_tokens(self, task: EncodeTask, item: EncoderInput) -> None:
        """Compare what a submission said of an item, before its bytes were here, with the bytes."""
        owned = item.tensor.shape[0] if item.kind == "embeddings" else self.model.item_tokens(item.size)
        if owned != task.num_tokens:
            raise InvalidArgument(
                f"An item owns {owned} tokens; its ranges cover {task.num_tokens}.",
                reason="RANGE_LENGTH",
                field="items",
            )

    def prepare(self, chunks: Iterable[Chunk], drawn: SampledRows | None = None) -> ForwardBatch:
        """Return the batch of some chunks, whose items have been encoded; their pending tokens are among the drawn."""
        return self._builder.build(chunks, self._cache.get, None if drawn is None else drawn.tokens)

    @torch.inference_mode()
    def run(self, batch: ForwardBatch) -> torch.Tensor:
        """Return the logits, float (num_logits, vocab_size); keys and values are in the cache afterwards.

        They hold until the next call.
        """
        decodes = DecodeGraphs.takes(batch)
        with record_function("decode" if decodes else "prefill"):
            if decodes and self._decode_graphs is not None:
                return self._decode_graphs(batch)
            return self.model.forward(batch, self.kv_cache)


def encoder_input(item: MultimodalItem) -> EncoderInput:
    """Return an item as the model takes it; the tensors share the item's memory where it is writable."""
    assert item.array is not None and item.payload_kind is not None
    return EncoderInput(
        modality=str(item.modality),
        kind=str(item.payload_kind),
        tensor=_to_tensor(item.array, item.dtype),
        grid_thw=item.grid_thw,
        sampling_rate_hz=item.sampling_rate_hz,
        side={name: _to_tensor(side.array, side.dtype) for name, side in item.side_arrays.items()},
    )


def _to_tensor(values: np.ndarray, dtype: str) -> torch.Tensor:
    if not values.flags.writeable or not values.flags.c_contiguous:
        values = values.copy()
    if dtype == "BF16":
        return torch.from_numpy(values.view(np.int16)).view(torch.bfloat16)
    tensor = torch.from_numpy(values)
    assert tensor.dtype is TORCH_DTYPES[dtype]
    return tensor


def _owned(output: EncoderOutput) -> EncoderOutput:
    """Return an output that keeps no larger tensor alive, as a slice of a whole batch's result would."""

    def own(tensor: torch.Tensor) -> torch.Tensor:
        whole = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
        return tensor if whole else tensor.clone(memory_format=torch.contiguous_format)

    return EncoderOutput(own(output.embeddings), None if output.deepstack is None else own(output.deepstack))
