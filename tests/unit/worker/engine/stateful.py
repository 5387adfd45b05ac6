"""The fake model with recurrent state: a hash of all tokens so far, moved on in place, in slots.

A token left out, taken twice or in another order, a state copied too early, too late or not at all: each changes every
token that comes after. It cannot be seen in the KV blocks, which alone would give the right answer.
"""

import random
from collections.abc import Sequence

import numpy as np
import torch

from tessera.items import MultimodalItem
from tests.unit.worker.engine.fakes import VOCAB_SIZE, FakeModel, Harness, greedy_tokens, logits_of
from worker.engine.schedule import Schedule
from worker.engine.sequence import SequenceItem
from worker.layers.kv_cache import KVCache
from worker.layers.state_cache import StateShape
from worker.models.base import ForwardBatch, ItemLayout

# Whole numbers below it are exact in fp32.
_PRIME = 16_777_213


class StatefulModel(FakeModel):
    """`FakeModel` whose logits depend on the state too."""

    def __init__(self, eos_token_ids: tuple[int, ...] = ()) -> None:
        super().__init__(eos_token_ids)
        self.state_shape = StateShape(2, 1, 1, 1, 1, 1, torch.float64)
        self.glitch = False

    def make_kv_cache(self, num_blocks: int, block_size: int, num_state_slots: int = 0) -> KVCache:
        cache = super().make_kv_cache(num_blocks, block_size, num_state_slots)
        assert cache.states is not None
        # What nobody wrote is of no use to anyone.
        cache.states.conv.fill_(5e5)
        cache.states.recurrent.fill_(7e5)
        return cache

    def prompt_positions(self, prompt_len: int, items: Sequence[ItemLayout]) -> tuple[np.ndarray, int]:
        # As in real families: what comes later changes nothing, and an answer's tokens stand where a prompt's would.
        segments = np.zeros((prompt_len, 6), np.int64)
        segments[:, 0] = segments[:, 2] = np.arange(prompt_len)
        segments[:, 1] = 1
        for item in items:
            last = item.ranges[-1]
            segments[last.offset + last.length :, 2] += 5
        return segments, prompt_len + 5 * len(items)

    def logits_alone(self, context: np.ndarray) -> np.ndarray:
        digest, _ = _moved_on((0, 0), context[:, 0].tolist())
        # Added up in the model's precision, so that equals are equal.
        return logits_of(context).astype(np.float32) + _table(digest).astype(np.float32)

    def forward(self, batch: ForwardBatch, kv_cache: KVCache) -> torch.Tensor:
        assert batch.state_slots is not None and kv_cache.states is not None
        assert len(set(batch.state_slots.tolist())) == batch.num_seqs
        ids = batch.input_ids.numpy().copy()
        if batch.mm_embeds is not None:
            assert batch.mm_source is not None and batch.mm_target is not None
            for (start, end), (first, last) in zip(batch.mm_target.tolist(), batch.mm_source.tolist(), strict=True):
                ids[start:end] = batch.mm_embeds[first:last, 0].long().numpy()
        starts, wanted = batch.query_start.tolist(), set(batch.logits_indices.tolist())
        rows = []
        for number, slot in enumerate(batch.state_slots.tolist()):
            is_fresh = batch.kv_lens[number] == batch.query_lens[number]
            conv, recurrent = kv_cache.states.layer(1)
            state = (0, 0) if is_fresh else (int(recurrent[slot]), int(conv[slot]))
            state = _moved_on(state, ids[starts[number] : starts[number + 1]].tolist())
            recurrent[slot], conv[slot] = float(state[0]), float(state[1])
            if starts[number + 1] - 1 in wanted:
                rows.append(_table(state[0]))
        # A step that fails has moved the states on.
        if self.glitch:
            self.glitch = False
            raise RuntimeError("glitch")
        logits = super().forward(batch, kv_cache)
        return logits + torch.tensor(np.array(rows).reshape(len(rows), VOCAB_SIZE), dtype=torch.float32)


def _moved_on(state: tuple[int, int], values: Sequence[int]) -> tuple[int, int]:
    digest, last = state
    for value in values:
        digest, last = (digest * 48271 + 31 * last + int(value) + 1) % _PRIME, int(value)
    return digest, last


def _table(digest: int) -> np.ndarray:
    return (np.arange(1, VOCAB_SIZE + 1, dtype=np.int64) * (digest % 999_983) + digest) % 10_007 / 1000.0


def stateful_tokens(
    prompt: Sequence[int], items: Sequence[tuple[MultimodalItem, SequenceItem]] = (), num_tokens: int = 8
) -> list[int]:
    """Return what `StatefulModel` answers greedily, computed without any engine."""
    return greedy_tokens(prompt, items, num_tokens, StatefulModel())


def text(length: int, seed: int = 0) -> list[int]:
    """Return random tokens, none of which is a placeholder."""
    rng = random.Random(seed)
    return [rng.randrange(80) for _ in range(length)]


class StatefulHarness(Harness):
    """An engine on the stateful fake model.

    Args:
        model: default: one that never ends by itself.
        overrides: fields of EngineConfig.
    """

    def __init__(self, model: StatefulModel | None = None, **overrides) -> None:  # type: ignore[no-untyped-def]
        super().__init__(model or StatefulModel(), **({"state_checkpoints": 16} | overrides))
        self._schedule, self.engine.scheduler.schedule = self.engine.scheduler.schedule, self._checked_schedule

    def _checked_schedule(self) -> Schedule:
        plan = self._schedule()
        assert plan.state_loads.keys() <= plan.chunks.keys()
        assert len(plan.chunks) <= 1 or not any(sequence.trial_end for sequence in plan.chunks)
        return plan

    @property
    def has_suspects(self) -> bool:
        """Whether sequences of a failed step are still to run alone."""
        scheduler = self.engine.scheduler
        return any(sequence.trial_end is not None for sequence in (*scheduler.running, *scheduler.waiting))
