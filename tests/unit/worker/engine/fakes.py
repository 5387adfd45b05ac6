"""A model whose next token is a pure function of its whole context, read back through the block tables.

A token that lands in a wrong slot, an item's row at a wrong place, a wrong position, a block shared too long or
copied too late: each changes what comes next.
"""

import math
import zlib
from collections.abc import Sequence

import numpy as np
import torch

from tessera.items import MultimodalItem
from tessera.modality import Modality, PayloadKind
from tests.fakes.clock import ManualClock
from tests.positions import positions_of
from worker.engine.config import EngineConfig
from worker.engine.engine import Engine
from worker.engine.output import Logprob, SequenceUpdate, StepOutput
from worker.engine.sampling_params import SamplingParams
from worker.engine.sequence import SequenceGroup, SequenceItem, TokenSpan
from worker.layers.kv_cache import KVCache
from worker.models.base import (
    CausalLM,
    EncoderInput,
    EncoderOutput,
    ForwardBatch,
    GenerationDefaults,
    ItemLayout,
    ItemSize,
    ModelInfo,
)

VOCAB_SIZE = 97
HIDDEN = 4
PLACEHOLDER = 90
EOS = 96
_PRIME = (1 << 31) - 1


def _powers(count: int) -> np.ndarray:
    values = [1]
    for _ in range(count):
        values.append(values[-1] * 48271 % _PRIME)
    return np.array(values, np.int64)


_POWERS = _powers(4096)


class FakeModel(CausalLM):
    """Hashes its context; logits are a table look-up of the hash.

    Args:
        eos_token_ids: ids that end a sequence.
    """

    def __init__(self, eos_token_ids: tuple[int, ...] = ()) -> None:
        self.info = ModelInfo(
            architecture="Fake",
            dtype="float64",
            vocab_size=VOCAB_SIZE,
            max_position_embeddings=4096,
            hidden_size=HIDDEN,
            eos_token_ids=eos_token_ids,
            generation=GenerationDefaults(),
            image_token_id=PLACEHOLDER,
            spatial_merge_size=2,
            modalities=("image", "video"),
        )
        self.num_layers, self.num_kv_heads, self.head_dim = 1, 1, 2
        self.dtype, self.device = torch.float64, torch.device("cpu")
        self.encoded: list[int] = []
        self.batches: list[tuple[int, ...]] = []
        self.broken_tokens: set[int] = set()
        self.broken_items: set[int] = set()

    @property
    def weight_bytes(self) -> int:
        return 0

    def item_tokens(self, size: ItemSize) -> int:
        return math.prod(size.grid_thw) // 4

    def worst_items(self, max_tokens: int) -> list[ItemSize]:
        return [ItemSize("image", (1, 2, 2 * min(max_tokens, 40)))]

    def dummy_input(self, size: ItemSize) -> EncoderInput:
        _, height, width = size.grid_thw
        return EncoderInput(size.modality, "pixels_u8", torch.zeros(1, height, width, 3).byte(), size.grid_thw)

    def encoder_workspace_bytes(self, size: ItemSize) -> int:
        return 100

    def forward_workspace_bytes(self, num_tokens: int, num_logits: int) -> int:
        return 100

    @property
    def encoder_token_bytes(self) -> int:
        return HIDDEN * 8

    def prompt_positions(self, prompt_len: int, items: Sequence[ItemLayout]) -> tuple[np.ndarray, int]:
        # Each token is a segment of its own, and none stands where its index says.
        segments = np.zeros((prompt_len, 6), np.int64)
        segments[:, 0], segments[:, 1] = np.arange(prompt_len), 1
        segments[:, 2] = 2 * np.arange(prompt_len) + len(items)
        return segments, prompt_len + 5 * len(items)

    def logits_alone(self, context: np.ndarray) -> np.ndarray:
        """Return the logits after a context of (value, position) rows, computed at once."""
        return logits_of(context)

    def encode(self, inputs: Sequence[EncoderInput]) -> list[EncoderOutput]:
        outputs = []
        for item in inputs:
            name = item_name(item.tensor.numpy())
            if name in self.broken_items:
                raise RuntimeError("broken item")
            self.encoded.append(name)
            rows = self.item_tokens(item.size)
            outputs.append(EncoderOutput(embedding_rows(item.tensor.numpy(), rows), None))
        return outputs

    def forward(self, batch: ForwardBatch, kv_cache: KVCache) -> torch.Tensor:
        self.batches.append(batch.query_lens)
        ids = batch.input_ids.numpy().copy()
        if self.broken_tokens & set(ids.tolist()):
            raise RuntimeError("broken token")
        if batch.mm_embeds is not None:
            assert batch.mm_source is not None and batch.mm_target is not None
            for (start, end), (first, last) in zip(batch.mm_target.tolist(), batch.mm_source.tolist(), strict=True):
                ids[start:end] = batch.mm_embeds[first:last, 0].long().numpy()
        where = (batch.positions * torch.tensor([[1], [3], [7]])).sum(0).numpy()
        keys, _ = kv_cache.layer(0)
        flat = keys.view(-1, 2).numpy()
        flat[batch.slot_mapping.numpy()] = np.stack([ids, where], axis=1)
        starts = batch.query_start.tolist()
        wanted = set(batch.logits_indices.tolist())
        logits = []
        for number, kv_len in enumerate(batch.kv_lens):
            assert batch.context_lens[number] == kv_len
            for row in range(starts[number], starts[number + 1]):
                if row in wanted:
                    length = kv_len - (starts[number + 1] - row - 1)
                    index = np.arange(length)
                    table = batch.block_tables[number].numpy()
                    slots = table[index // kv_cache.block_size] * kv_cache.block_size + index % kv_cache.block_size
                    logits.append(logits_of(flat[slots]))
        return torch.tensor(np.array(logits).reshape(len(logits), VOCAB_SIZE), dtype=torch.float32)


def logits_of(context: np.ndarray) -> np.ndarray:
    """Return the logits after a context of (value, position) rows."""
    mixed = (context[:, 0] * 1009 + context[:, 1] * 31 + 7).astype(np.int64)
    digest = int((mixed * _POWERS[: len(mixed)] % _PRIME).sum() % _PRIME)
    table = (np.arange(1, VOCAB_SIZE + 1, dtype=np.int64) * (digest % 1_000_003) + digest) % 10_007
    return table.astype(np.float64) / 1000.0


def item_name(pixels: np.ndarray) -> int:
    """Return a number for an item's bytes."""
    return zlib.crc32(pixels.tobytes()) % 5000


def embedding_rows(pixels: np.ndarray, rows: int) -> torch.Tensor:
    """Return an item's embeddings: the first column names item and row."""
    values = torch.zeros(rows, HIDDEN, dtype=torch.float64)
    values[:, 0] = 1000 + (item_name(pixels) + torch.arange(rows) * 13) % 7919
    return values


def make_item(number: int, tokens: int = 4) -> MultimodalItem:
    """Return a staged item of so many tokens; different numbers are different items."""
    pixels = np.full((1, 2, 2 * tokens, 3), number % 251, np.uint8)
    item = MultimodalItem(Modality.IMAGE, PayloadKind.PIXELS_U8, b"", "U8", pixels, grid_thw=(1, 2, 2 * tokens))
    return MultimodalItem(
        item.modality, item.payload_kind, item.compute_hash(), item.dtype, item.array, grid_thw=item.grid_thw
    )


def place(item: MultimodalItem, *spans: tuple[int, int]) -> SequenceItem:
    """Return an item at some (offset, length) runs of a prompt."""
    return SequenceItem("image", item.content_hash, tuple(TokenSpan(*span) for span in spans), item.grid_thw)


def greedy_tokens(
    prompt: Sequence[int],
    items: Sequence[tuple[MultimodalItem, SequenceItem]] = (),
    num_tokens: int = 8,
    model: FakeModel | None = None,
) -> list[int]:
    """Return what `FakeModel`, or another, answers greedily, computed without any engine."""
    model = model or FakeModel()
    values = list(prompt)
    for item, placed in items:
        rows = embedding_rows(item.array, placed.num_tokens)[:, 0].long().tolist()  # type: ignore[arg-type]
        for span in placed.ranges:
            values[span.offset : span.end], rows = rows[: span.length], rows[span.length :]
    layouts = [ItemLayout("image", placed.ranges, (1, 1, 1)) for _, placed in items]
    segments, following = model.prompt_positions(len(prompt), layouts)
    positions = positions_of(segments, len(prompt))
    where = (positions * np.array([[1], [3], [7]])).sum(0).tolist()
    tokens: list[int] = []
    for step in range(num_tokens):
        context = np.array([values, where], np.float64).T
        tokens.append(int(model.logits_alone(context).argmax()))
        values.append(tokens[-1])
        where.append((following + step) * 11)
    return tokens


class Harness:
    """An engine on the fake model, whose invariants are checked after every step.

    Args:
        model: default: one that never ends by itself.
        overrides: fields of EngineConfig.

    Attributes:
        async_scheduling: where `overrides` do not say.
    """

    async_scheduling = False

    def __init__(self, model: FakeModel | None = None, **overrides) -> None:  # type: ignore[no-untyped-def]
        defaults = {
            "max_model_len": 64,
            "num_blocks": 64,
            "block_size": 4,
            "max_sequences": 8,
            "max_batched_tokens": 32,
            "encoder_cache_bytes": 64 * 32,
            "item_token_bytes": 32,
            "staged_bytes": 1 << 20,
            "staged_ttl_s": 60.0,
            "async_scheduling": self.async_scheduling,
        }
        self.model = model or FakeModel()
        self.clock = ManualClock()
        self.config = EngineConfig(**(defaults | overrides))  # type: ignore[arg-type]
        self.engine = Engine(self.config, self.model, self.clock)
        self.tokens: dict[tuple[str, int], list[int]] = {}
        self.logprobs: dict[tuple[str, int], list[Logprob]] = {}
        self.ends: dict[tuple[str, int], SequenceUpdate] = {}
        self.needs: list[tuple[str, bytes]] = []
        self.cached: dict[str, int] = {}

    def add(
        self,
        request_id: str,
        prompt: Sequence[int],
        items: Sequence[SequenceItem] = (),
        *,
        max_tokens: int = 8,
        choices: tuple[int, ...] = (0,),
        sampling: dict | None = None,
        **fields,  # type: ignore[no-untyped-def]
    ) -> None:
        """Submit a request."""
        params = SamplingParams(max_tokens=max_tokens, n=len(choices), **(sampling or {}))
        self.engine.add(SequenceGroup(request_id, tuple(prompt), params, tuple(items), choices=choices, **fields))

    def stage(self, *items: MultimodalItem) -> None:
        """Bring items' bytes."""
        for item in items:
            self.engine.items.put(item)

    def step(self) -> StepOutput:
        """Run one step, note its news and check the invariants."""
        output = self.engine.step()
        for update in output.updates:
            key = (update.request_id, update.choice)
            assert key not in self.ends, "news after the end"
            self.tokens.setdefault(key, []).extend(update.token_ids)
            self.logprobs.setdefault(key, []).extend(update.logprobs)
            if update.cached_tokens:
                assert update.request_id not in self.cached
                self.cached[update.request_id] = update.cached_tokens
            if update.finish_reason is not None:
                self.ends[key] = update
        self.needs += [(need.request_id, need.content_hash) for need in output.need_items]
        self.check()
        return output

    def run(self, max_steps: int = 2000) -> dict[tuple[str, int], list[int]]:
        """Step until all requests have ended; return their tokens."""
        for _ in range(max_steps):
            if self.engine.is_idle:
                self.check_idle()
                return self.tokens
            self.step()
        raise AssertionError("the engine does not come to an end")

    def check(self) -> None:
        """Check that the pool's books agree with the block tables, and the pins with the sequences."""
        pool, scheduler = self.engine.pool, self.engine.scheduler
        assert pool.num_free + pool.num_cached + pool.num_used == pool.num_blocks
        held = [block for sequence in scheduler.running for block in sequence.block_table]
        assert [pool.ref_count(block) for block in range(pool.num_blocks)] == [
            held.count(block) for block in range(pool.num_blocks)
        ]
        assert pool.num_used == len(set(held))
        assert not any(sequence.block_table or sequence.pinned for sequence in scheduler.waiting)
        pinned = {s.item_key(index) for s in scheduler.running for index in s.pinned}
        assert self.engine.encoder_cache.num_pinned == len(pinned)
        assert self.engine.encoder_cache.used_bytes <= self.config.encoder_cache_bytes
        assert len(scheduler.running) <= self.config.max_sequences
        self.check_states()
        assert sum(self.model.batches[-1]) <= self.config.max_batched_tokens if self.model.batches else True

    def check_states(self) -> None:
        """Check that the slots of recurrent state agree with the sequences, and that no copy is left half done."""
        pool, scheduler = self.engine.states, self.engine.scheduler
        if pool is None:
            return
        assert pool.num_free + pool.num_running + pool.num_checkpoints == pool.num_slots
        slots = [sequence.state_slot for sequence in scheduler.running]
        assert len(set(slots)) == len(slots) == pool.num_running
        assert pool.num_checkpoints <= self.config.state_checkpoints
        assert pool.num_passing <= self.config.passing_checkpoints
        assert pool.num_pinned == 0
        assert not any(s.state_source for s in (*scheduler.waiting, *scheduler.running))
        assert all(sequence.state_slot == -1 for sequence in scheduler.waiting)

    def check_idle(self) -> None:
        """Check that nothing is held when nothing runs."""
        load = self.engine.load()
        assert (load.waiting, load.running, load.used_blocks, load.pinned_items) == (0, 0, 0, 0)
        assert load.free_blocks + load.cached_blocks == load.total_blocks
        assert load.running_state_slots == 0
        assert self.engine.items.num_wanted == 0
