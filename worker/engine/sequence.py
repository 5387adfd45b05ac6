"""What was submitted, and one running choice of it.

Next: worker/engine/scheduler.py
"""

import sys
from bisect import bisect_right
from dataclasses import dataclass, field
from enum import Enum, auto
from functools import cached_property
from typing import Any, NamedTuple

from worker.engine.block_pool import block_key, root_key
from worker.engine.encoder_cache import ItemKey
from worker.engine.output import FinishReason, SequenceFailure
from worker.engine.sampling_params import SamplingParams

PENDING = -1  # stands in `token_ids` for a token that has been drawn and is not known yet


class TokenSpan(NamedTuple):
    """Half-open run of prompt tokens: the engine's plain twin of `PlaceholderRange`, whose module needs grpc."""

    offset: int
    length: int

    @property
    def end(self) -> int:
        """First token after the run."""
        return self.offset + self.length


@dataclass(frozen=True)
class SequenceItem:
    """Where an item stands in a prompt.

    Args:
        modality: "image", "video", ...
        content_hash: 32 bytes.
        ranges: runs of placeholder tokens, ascending.
        grid_thw: (t, h, w) in patches; None for a series.
    """

    modality: str
    content_hash: bytes
    ranges: tuple[TokenSpan, ...]
    grid_thw: tuple[int, int, int] | None = None

    @property
    def num_tokens(self) -> int:
        """Embeddings of the item."""
        return sum(span.length for span in self.ranges)

    @property
    def end(self) -> int:
        """First prompt token after the item's last range."""
        return self.ranges[-1].end

    def first_token_from(self, start: int) -> int:
        """Return the item's first prompt token at or after `start`; `end` where there is none."""
        for span in self.ranges:
            if span.end > start:
                return max(span.offset, start)
        return self.end


@dataclass(frozen=True)
class SequenceGroup:
    """A submitted request: one prompt, one or more choices.

    Args:
        request_id: unique among its owner's running requests.
        prompt_ids: the expanded prompt, at least one id.
        params: resolved sampling parameters.
        items: ordered by first offset.
        owner: the gateway stream that news go to.
        epoch: carried through to the news.
        priority: higher runs first.
        deadline_s: on the engine's clock, or None.
        cache_salt: of the cache keys.
        choices: indices to run.
        emitted: for each of `choices`, tokens that an earlier epoch has emitted.
    """

    request_id: str
    prompt_ids: tuple[int, ...]
    params: SamplingParams
    items: tuple[SequenceItem, ...] = ()
    owner: int = 0
    epoch: int = 0
    priority: int = 0
    deadline_s: float | None = None
    cache_salt: bytes = b""
    choices: tuple[int, ...] = (0,)
    emitted: tuple[tuple[int, ...], ...] = ()

    @property
    def key(self) -> tuple[int, str, int]:
        """What the engine knows it by."""
        return (self.owner, self.request_id, self.epoch)

    @cached_property
    def item_runs(self) -> tuple[list[int], list[tuple[int, bytes, int, int]]]:
        """All ranges of all items in prompt order: their ends; their (offset, content hash, length, first row)."""
        runs = []
        for item in self.items:
            row = 0
            for span in item.ranges:
                runs.append((span.end, span.offset, item.content_hash, span.length, row))
                row += span.length
        runs.sort()
        return [run[0] for run in runs], [run[1:] for run in runs]

    def emitted_of(self, index: int) -> tuple[int, ...]:
        """Return what the choice at `choices[index]` has already emitted."""
        return self.emitted[index] if index < len(self.emitted) else ()


class Status(Enum):
    """Where a sequence stands."""

    WAITING = auto()
    RUNNING = auto()
    FINISHED = auto()


@dataclass(eq=False, slots=True)
class Sequence:
    """One choice of a request: its tokens, its blocks, the items that it still has to read.

    Args:
        group: what was submitted.
        choice: index among the request's choices.
        token_ids: prompt and generated tokens; the last may be PENDING.
        arrival: counts submissions; earlier ones run first within a priority.
        segments: what the model said of the prompt's positions, int64 (count, 6); opaque here.
        position_delta: position of a generated token minus its index.
        most_tokens: tokens that end it by their number.
    """

    group: SequenceGroup
    choice: int
    token_ids: list[int]
    arrival: int
    segments: Any = None
    position_delta: int = 0
    most_tokens: int = sys.maxsize

    status: Status = Status.WAITING
    # Tokens whose keys and values are in the blocks.
    num_computed: int = 0
    block_table: list[int] = field(default_factory=list)
    # Changes with each change of the table that is not an append.
    table_version: int = 0
    # Keys of the full blocks, as far as they were needed; they depend on tokens alone, so they outlive a preemption.
    block_keys: list[bytes] = field(default_factory=list)
    num_registered: int = 0
    # Indices of the items whose rows are still to be read, and of those among them that are pinned.
    wanted: set[int] = field(default_factory=set)
    pinned: set[int] = field(default_factory=set)
    # Hashes that the owner was asked for.
    requested: set[bytes] = field(default_factory=set)
    # Choices that fork from this one when its prompt has been computed, and the choice that this one waits for.
    forks: list["Sequence"] = field(default_factory=list)
    lead: "Sequence | None" = None
    # Slot of the recurrent state while it runs, and the checkpoint that is to be copied there before its first chunk.
    state_slot: int = -1
    state_source: bytes | None = None
    # Ends of prefill chunks, and the checkpoint that moves along with it.
    state_stops: list[int] = field(default_factory=list)
    passing_key: bytes | None = None
    # Tokens whose keys and values were cached when it was last looked up, with state or without.
    num_shared: int = 0
    # Set while it is under suspicion of having failed a step: it runs alone until it has come so far.
    trial_end: int | None = None
    num_preemptions: int = 0
    # Row of its last token among the draws that are still on the device; -1 where all tokens are known.
    pending: int = -1
    # Prompt tokens found in the prefix cache when it first ran.
    num_cached: int | None = None
    finish_reason: FinishReason | None = None
    matched_stop_token_id: int | None = None
    failure: SequenceFailure | None = None
    # What batch and sampler remember of it between steps.
    table_row: Any = None
    logit_changes: Any = None

    @property
    def params(self) -> SamplingParams:
        """Sampling parameters of the request."""
        return self.group.params

    @property
    def items(self) -> tuple[SequenceItem, ...]:
        """Items of the prompt."""
        return self.group.items

    @property
    def num_prompt(self) -> int:
        """Tokens of the prompt."""
        return len(self.group.prompt_ids)

    @property
    def num_tokens(self) -> int:
        """Tokens so far."""
        return len(self.token_ids)

    @property
    def num_generated(self) -> int:
        """Generated tokens, those of earlier epochs included."""
        return len(self.token_ids) - len(self.group.prompt_ids)

    @property
    def is_full(self) -> bool:
        """Whether its last token, known or not, is the last that it may have."""
        return len(self.token_ids) >= self.most_tokens

    @property
    def rank(self) -> tuple[int, int, int]:
        """Order of service: priority, then arrival, then choice."""
        return (-self.group.priority, self.arrival, self.choice)

    def item_key(self, index: int) -> ItemKey:
        """Return what the encoder cache knows an item by."""
        return ItemKey(self.group.items[index].content_hash, self.group.cache_salt)

    def block_key(self, index: int, block_size: int) -> bytes:
        """Return the key of the full block `index`, computing those before it where needed."""
        while len(self.block_keys) <= index:
            number = len(self.block_keys)
            parent = self.block_keys[-1] if number else root_key(self.group.cache_salt)
            start = number * block_size
            tokens = self.token_ids[start : start + block_size]
            self.block_keys.append(block_key(parent, tokens, self._item_runs(start, start + block_size)))
        return self.block_keys[index]

    def _item_runs(self, start: int, end: int) -> list[tuple[bytes, int, int, int]]:
        ends, runs = self.group.item_runs
        touched = []
        for offset, content_hash, length, row in runs[bisect_right(ends, start) :]:
            if offset >= end:
                break
            touched.append((content_hash, offset - start, length, row))
        return touched
