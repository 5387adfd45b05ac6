"""What steps take beside weights and caches: estimated from shapes on the CPU, measured elsewhere.

Next: worker/engine/memory_profile.py
"""

from dataclasses import dataclass

import structlog

from worker.engine.state_sizing import SizingError
from worker.models.base import CausalLM

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class StepLimits:
    """The largest steps that may come.

    Args:
        max_model_len: longest context.
        max_sequences: most sequences of a step.
        max_batched_tokens: most tokens of a step.
        block_size: tokens of a KV block.
    """

    max_model_len: int
    max_sequences: int
    max_batched_tokens: int
    block_size: int


@dataclass(frozen=True)
class MemoryNeeds:
    """What has to stay free beside caches.

    Args:
        encode_bytes: of encoding the items of a step, while it lasts.
        step_bytes: of a forward with its draws, while they last.
        recordings_bytes: of recorded decode steps, for good.
        libraries_bytes: what loaded modules and libraries took for good meanwhile; it is gone from the free bytes.
        is_measured: whether steps were run, so that what does not fit would run out of memory.
    """

    encode_bytes: int
    step_bytes: int
    recordings_bytes: int = 0
    libraries_bytes: int = 0
    is_measured: bool = False

    @property
    def total_bytes(self) -> int:
        """Bytes that have to stay free: encoding and a forward take turns."""
        return max(self.encode_bytes, self.step_bytes) + self.recordings_bytes


def estimated_needs(model: CausalLM, limits: StepLimits, *, may_be_cut: bool) -> MemoryNeeds:
    """Return what the model says of itself, from shapes alone.

    Args:
        model: loaded.
        limits: of a step.
        may_be_cut: whether the context is cut to what memory holds: then its worst item must not decide how far.
    """
    encode = max(map(model.encoder_workspace_bytes, model.worst_items(limits.max_model_len)), default=0)
    step = model.forward_workspace_bytes(limits.max_batched_tokens, limits.max_sequences)
    return MemoryNeeds(min(encode, step) if may_be_cut else encode, step)


def check_room(least_bytes: int, encoder_bytes: int, needs: MemoryNeeds, free_bytes: int) -> None:
    """Check that steps leave room for caches.

    Args:
        least_bytes: of the smallest cache.
        encoder_bytes: of encoded items.
        needs: measured.
        free_bytes: memory that all of it may take.

    Raises:
        SizingError: they do not.
    """
    if free_bytes - encoder_bytes - needs.total_bytes < least_bytes:
        raise SizingError(
            f"the largest steps take {_mib(needs.total_bytes)} and encoded items {_mib(encoder_bytes)}, which leaves "
            f"no KV block of the {_mib(free_bytes)} that are free: lower --max-batched-tokens, --max-sequences or "
            "--max-model-len"
        )


def check_fit(cache_bytes: int, encoder_bytes: int, needs: MemoryNeeds, free_bytes: int) -> None:
    """Check caches that the user sized; those that leave too little for the largest steps are worth a warning.

    Args:
        cache_bytes: of KV blocks and recurrent states.
        encoder_bytes: of encoded items.
        needs: measured.
        free_bytes: memory that all of it may take.

    Raises:
        SizingError: they cannot be allocated.
    """
    if cache_bytes + needs.recordings_bytes > free_bytes:
        raise SizingError(
            f"KV blocks and recurrent states take {_mib(cache_bytes)} and recorded steps "
            f"{_mib(needs.recordings_bytes)}, and {_mib(free_bytes)} are free: lower --num-blocks, --kv-cache-bytes or "
            "--max-sequences"
        )
    short = cache_bytes + encoder_bytes + needs.total_bytes - free_bytes
    if short > 0:
        remedy = "lower --num-blocks or --kv-cache-bytes; the largest steps would run out of memory"
        log.warning("memory_overcommitted", caches=_mib(cache_bytes), short=_mib(short), remedy=remedy)


def _mib(size_bytes: int) -> str:
    return f"{-(-size_bytes >> 20)} MiB"
