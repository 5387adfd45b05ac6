"""The plan of one step: which tokens of which sequences, which items to encode, which blocks and states to copy.

Next: worker/engine/scheduler.py, which makes it.
"""

from dataclasses import dataclass, field

from worker.engine.encoder_cache import ItemKey
from worker.engine.item_store import StagedItem
from worker.engine.output import NeedItem
from worker.engine.sequence import Sequence


@dataclass(slots=True)
class Chunk:
    """Tokens [start, end) of a sequence."""

    sequence: Sequence
    start: int
    end: int

    @property
    def num_tokens(self) -> int:
        """Tokens of the chunk."""
        return self.end - self.start

    @property
    def samples(self) -> bool:
        """Whether the chunk reaches the last token, so that the next one is drawn."""
        return self.end == len(self.sequence.token_ids)


@dataclass(slots=True)
class EncodeTask:
    """An item to encode before the step's tokens run."""

    key: ItemKey
    item: StagedItem
    num_tokens: int


@dataclass(slots=True)
class Schedule:
    """What one step does.

    Args:
        chunks: by sequence, in order of service.
        encodes: items to encode first.
        copies: source block by destination block, to be copied before anything is written.
        state_loads: (source slot, destination slot) of recurrent state, to be copied before the step's tokens run.
        state_saves: likewise, afterwards: to forks, and to new checkpoints.
        checkpoints: keys of the latter.
        need_items: items that sequences wait for and that were not asked for yet.
        num_tokens: of all chunks.
        encode_tokens: of all encodes.
        cache_is_full: an item found no room in the encoder cache; later ones do not overtake it.
        has_failed: some of it was taken back, to run again in a later step.
    """

    chunks: dict[Sequence, Chunk] = field(default_factory=dict)
    encodes: dict[ItemKey, EncodeTask] = field(default_factory=dict)
    copies: dict[int, int] = field(default_factory=dict)
    state_loads: dict[Sequence, tuple[int, int]] = field(default_factory=dict)
    state_saves: list[tuple[int, int]] = field(default_factory=list)
    checkpoints: list[bytes] = field(default_factory=list)
    need_items: list[NeedItem] = field(default_factory=list)
    num_tokens: int = 0
    encode_tokens: int = 0
    cache_is_full: bool = False
    has_failed: bool = False

    def __bool__(self) -> bool:
        return bool(self.chunks or self.encodes)

    def add(self, chunk: Chunk) -> None:
        """Run a chunk."""
        self.chunks[chunk.sequence] = chunk
        self.num_tokens += chunk.num_tokens

    def drop(self, sequence: Sequence) -> None:
        """Do not run a sequence after all, whose blocks are being taken away."""
        chunk = self.chunks.pop(sequence, None)
        if chunk is not None:
            self.num_tokens -= chunk.num_tokens
        for block in sequence.block_table:
            self.copies.pop(block, None)
        self.state_loads.pop(sequence, None)
