"""How many slots of recurrent state a hybrid model gets: they are counted before KV blocks.

A slot takes as much as the keys and values of a thousand tokens and more, whatever the length of its sequence.

Next: worker/engine/engine.py
"""

from typing import NamedTuple

import structlog

from worker.layers.state_cache import StateShape
from worker.models.base import CausalLM

log = structlog.get_logger(__name__)

# Unless more was asked for: running sequences take no more than half of the memory, checkpoints a quarter of the rest.
_RUNNING_SHARE = 2
_CHECKPOINT_SHARE = 4


class SizingError(Exception):
    """The engine does not fit; the text says which flag mends it."""


class StateSlots(NamedTuple):
    """What recurrent states take.

    Args:
        max_sequences: most running sequences, each with a slot.
        checkpoints: slots that keep states for reuse.
        size_bytes: of all of them; 0 for a model without state.
    """

    max_sequences: int
    checkpoints: int
    size_bytes: int


def affordable_seats(shape: StateShape, seats: int, cache_bytes: int) -> int:
    """Return the running sequences whose states leave memory for KV blocks, at least one.

    Args:
        shape: of a slot.
        seats: as many as are wanted.
        cache_bytes: for states and KV blocks together.
    """
    return max(1, min(seats, cache_bytes // shape.slot_bytes // _RUNNING_SHARE))


def size_states(
    model: CausalLM, asked_sequences: int | None, seats: int, checkpoints: int | None, cache_bytes: int | None
) -> StateSlots:
    """Return the slots of a model; without state, just its seats.

    Args:
        model: loaded.
        asked_sequences: most running sequences, if they were named.
        seats: as many running sequences as would be served if memory allows.
        checkpoints: as asked for; None = two for each sequence, one that moves along with it and one for its prompt.
        cache_bytes: for states and KV blocks together; None = no limit.

    Raises:
        SizingError: what was asked for does not fit.
    """
    if model.state_shape is None:
        return StateSlots(seats, 0, 0)
    slot_bytes = model.state_shape.slot_bytes
    if cache_bytes is None:
        checkpoints = 2 * seats if checkpoints is None else checkpoints
        return StateSlots(seats, checkpoints, (seats + checkpoints) * slot_bytes)
    fitting = cache_bytes // slot_bytes
    if asked_sequences is None:
        lowered = affordable_seats(model.state_shape, seats, cache_bytes)
        if lowered < seats:
            log.warning("max_sequences_lowered", wanted=seats, served=lowered, remedy="raise --kv-cache-bytes for more")
        seats = lowered
    if seats > fitting:
        lower = f"lower --max-sequences to {fitting} or less, or " if fitting else ""
        raise SizingError(
            f"--max-sequences {seats} needs {seats * slot_bytes >> 20} MiB of recurrent state and there are "
            f"{cache_bytes >> 20} MiB: {lower}raise --kv-cache-bytes or --kv-cache-share"
        )
    if checkpoints is None:
        checkpoints = min(2 * seats, (fitting - seats) // _CHECKPOINT_SHARE)
    elif seats + checkpoints > fitting:
        raise SizingError(
            f"--state-checkpoints {checkpoints} needs {checkpoints * slot_bytes >> 20} MiB and there are "
            f"{(cache_bytes - seats * slot_bytes) >> 20} MiB: lower it to {fitting - seats} or less, or raise "
            "--kv-cache-bytes or --kv-cache-share"
        )
    return StateSlots(seats, checkpoints, (seats + checkpoints) * slot_bytes)
