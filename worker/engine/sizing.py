"""From what the user asked for and what the machine has to an EngineConfig, before anything is allocated.

The worst legal item sizes the encoder cache; what steps need is left free; of the rest, recurrent states come first,
then KV blocks.

Next: worker/engine/state_sizing.py
"""

from dataclasses import dataclass, replace

import structlog

from worker.engine.config import EngineConfig
from worker.engine.memory_needs import MemoryNeeds, StepLimits, check_fit, check_room, estimated_needs
from worker.engine.state_sizing import SizingError, StateSlots, affordable_seats, size_states
from worker.models.base import CausalLM

__all__ = ["EngineOptions", "SizingError", "checked_options", "size_engine", "step_limits", "worst_item_tokens"]

log = structlog.get_logger(__name__)

CUDA_SHARE = 0.9
CPU_SHARE = 0.25
_MAX_SEQUENCES = 64
# On the CPU, where memory is shared with everyone else: room for this much at once, unless more is asked for.
_CPU_SEQUENCE_TOKENS = 512
_CPU_FULL_SEQUENCES = 4
_ENCODER_CACHE_BYTES = 256 << 20


@dataclass(frozen=True)
class EngineOptions:
    """What the user asked for; None = computed.

    Args:
        max_model_len: most tokens of a sequence; None = the model's, cut to what the KV cache holds.
        max_sequences: most running sequences; None = 64, fewer where their recurrent states would take all memory.
        max_batched_tokens: most tokens of a step.
        block_size: tokens of a KV block.
        num_blocks: KV blocks, before the next two.
        kv_cache_bytes: bytes of the KV cache and the recurrent states.
        kv_cache_share: share of the free memory for them, if what steps need leaves that.
        state_checkpoints: recurrent states that are kept for reuse, of a model that has such.
        state_passing_share: share of them that answers may take while they grow.
        encoder_cache_bytes: of encoded items; 0 = no more than running requests need.
        prefix_cache: reuse blocks of equal prefixes.
        retain_encoded: keep encoded items after their requests.
        staged_bytes: of items that wait to be encoded.
        staged_ttl_s: seconds that an unwanted one is kept.
        async_scheduling: "on", "off", or "auto": where the device works while the host goes on.
    """

    max_model_len: int | None = None
    max_sequences: int | None = None
    max_batched_tokens: int = 2048
    block_size: int = 16
    num_blocks: int | None = None
    kv_cache_bytes: int | None = None
    kv_cache_share: float | None = None
    state_checkpoints: int | None = None
    state_passing_share: float = 0.5
    encoder_cache_bytes: int | None = None
    prefix_cache: bool = True
    retain_encoded: bool = True
    staged_bytes: int = 1 << 30
    staged_ttl_s: float = 300.0
    async_scheduling: str = "auto"


def size_engine(
    model: CausalLM, options: EngineOptions, free_bytes: int, measured: MemoryNeeds | None = None
) -> EngineConfig:
    """Return the limits of an engine.

    Args:
        model: loaded; its weights are not in `free_bytes` any more.
        options: what was asked for.
        free_bytes: memory that caches and steps may take.
        measured: what steps of `step_limits` took; None = what the model estimates.

    Raises:
        SizingError: a limit is out of range, or one sequence of full length does not fit.
    """
    options = checked_options(options)
    wanted = _wanted_len(model, options)
    needs = measured
    if needs is None:
        limits = StepLimits(wanted, _seats(options), options.max_batched_tokens, options.block_size)
        may_be_cut = model.device.type == "cpu" and options.max_model_len is None
        needs = estimated_needs(model, limits, may_be_cut=may_be_cut)
    cache_bytes = _cache_bytes(model, options, wanted, free_bytes, needs)
    states = size_states(model, options.max_sequences, _seats(options), _checkpoints(options), cache_bytes)
    num_blocks = _num_blocks(model, options, wanted, cache_bytes, states)
    length = _served_len(model, options, wanted, num_blocks, states)
    encoder_bytes, retain = _encoder_cache(model, options, length)
    if needs.is_measured:
        caches = num_blocks * model.kv_block_bytes(options.block_size) + states.size_bytes
        check_fit(caches, encoder_bytes, needs, free_bytes)
    return EngineConfig(
        max_model_len=length,
        num_blocks=num_blocks,
        block_size=options.block_size,
        max_sequences=states.max_sequences,
        max_batched_tokens=options.max_batched_tokens,
        encoder_cache_bytes=encoder_bytes,
        retain_encoded=retain,
        item_token_bytes=model.encoder_token_bytes,
        enable_prefix_cache=options.prefix_cache and (model.state_shape is None or states.checkpoints > 0),
        staged_bytes=options.staged_bytes,
        staged_ttl_s=options.staged_ttl_s,
        state_checkpoints=states.checkpoints,
        state_passing_share=options.state_passing_share,
        async_scheduling=options.async_scheduling == "on"
        or (options.async_scheduling == "auto" and model.device.type != "cpu"),
    )


def step_limits(model: CausalLM, options: EngineOptions, free_bytes: int) -> StepLimits:
    """Return the limits of the largest steps that `size_engine` may allow.

    Args:
        model: loaded.
        options: checked.
        free_bytes: as `size_engine` will get them, or more.

    Raises:
        SizingError: the context is out of range.
    """
    length, seats, cache_bytes = _wanted_len(model, options), _seats(options), options.kv_cache_bytes or free_bytes
    # Limits that nobody named are cut to what memory holds at all.
    if options.max_model_len is None:
        num_blocks = options.num_blocks or cache_bytes // model.kv_block_bytes(options.block_size)
        length = max(1, min(length, num_blocks * options.block_size))
    if model.state_shape is not None and options.max_sequences is None and options.num_blocks is None:
        seats = affordable_seats(model.state_shape, seats, cache_bytes)
    return StepLimits(length, seats, options.max_batched_tokens, options.block_size)


def checked_options(options: EngineOptions) -> EngineOptions:
    """Return what was asked for, with no more sequences than a step has tokens.

    Raises:
        SizingError: a limit is out of range.
    """
    for name in ("max_sequences", "max_batched_tokens", "block_size", "num_blocks", "staged_bytes"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise SizingError(f"--{name.replace('_', '-')} {value}: at least 1")
    if options.kv_cache_share is not None and not 0 < options.kv_cache_share <= 1:
        raise SizingError(f"--kv-cache-share {options.kv_cache_share}: above 0, at most 1")
    if options.state_checkpoints is not None and options.state_checkpoints < 0:
        raise SizingError(f"--state-checkpoints {options.state_checkpoints}: at least 0")
    if not 0 <= options.state_passing_share <= 1:
        raise SizingError(f"--state-passing-share {options.state_passing_share}: 0 to 1")
    if options.max_sequences is not None and options.max_sequences > options.max_batched_tokens:
        log.info("max_sequences_lowered", asked=options.max_sequences, max_batched_tokens=options.max_batched_tokens)
        return replace(options, max_sequences=options.max_batched_tokens)
    return options


def _wanted_len(model: CausalLM, options: EngineOptions) -> int:
    """Return the longest context that is served if memory allows."""
    most = model.info.max_position_embeddings
    if options.max_model_len is not None and not 1 <= options.max_model_len <= most:
        raise SizingError(f"--max-model-len {options.max_model_len}: this model takes 1 to {most} tokens")
    return options.max_model_len or most


def _served_len(model: CausalLM, options: EngineOptions, wanted: int, num_blocks: int, states: StateSlots) -> int:
    """Return the longest context that the blocks hold, if it was not asked for; else it is an error."""
    held = num_blocks * options.block_size
    if held >= wanted:
        return wanted
    block_bytes = model.kv_block_bytes(options.block_size)
    if options.max_model_len is not None:
        needed = -(-wanted // options.block_size)
        beside = f" beside {states.size_bytes >> 20} MiB of recurrent states" if states.size_bytes else ""
        fewer = ", --max-sequences or --state-checkpoints" if states.size_bytes else ""
        raise SizingError(
            f"the KV cache has {num_blocks} blocks{beside} and one sequence of --max-model-len {wanted} needs "
            f"{needed} ({needed * block_bytes >> 20} MiB): raise --kv-cache-bytes or "
            f"--kv-cache-share, or lower --max-model-len to {held}{fewer}"
        )
    if held == 0:
        raise SizingError(f"no memory for one KV block of {block_bytes} bytes: raise --kv-cache-bytes")
    log.warning("max_model_len_clamped", model=wanted, served=held, remedy="raise --kv-cache-bytes for more")
    return held


def worst_item_tokens(model: CausalLM, max_model_len: int) -> int:
    """Return the tokens of the largest legal item of all modalities; 0 where the model takes text alone."""
    return max(map(model.item_tokens, model.worst_items(max_model_len)), default=0)


def _encoder_cache(model: CausalLM, options: EngineOptions, max_model_len: int) -> tuple[int, bool]:
    """Return the bytes of the encoder cache, and whether entries outlive their requests."""
    least = worst_item_tokens(model, max_model_len) * model.encoder_token_bytes
    if options.encoder_cache_bytes is None:
        return max(least, _ENCODER_CACHE_BYTES), options.retain_encoded
    if 0 < options.encoder_cache_bytes < least:
        log.info("encoder_cache_raised", asked=options.encoder_cache_bytes, worst_item=least)
    return max(least, options.encoder_cache_bytes), options.retain_encoded and options.encoder_cache_bytes > 0


def _seats(options: EngineOptions) -> int:
    """Return the running sequences that are served if memory allows."""
    return options.max_sequences or min(_MAX_SEQUENCES, options.max_batched_tokens)


def _checkpoints(options: EngineOptions) -> int | None:
    """Return how many recurrent states are kept; None where memory decides. Without KV blocks they are of no use."""
    return options.state_checkpoints if options.prefix_cache else 0


def _cache_bytes(
    model: CausalLM, options: EngineOptions, max_model_len: int, free_bytes: int, needs: MemoryNeeds
) -> int | None:
    """Return the bytes for KV blocks and recurrent states; None where the number of blocks is given."""
    if options.num_blocks is not None:
        return None
    if options.kv_cache_bytes is not None:
        return options.kv_cache_bytes
    share = options.kv_cache_share or (CPU_SHARE if model.device.type == "cpu" else CUDA_SHARE)
    encoder_bytes = _encoder_cache(model, options, max_model_len)[0]
    if needs.is_measured:
        check_room(model.kv_block_bytes(options.block_size), encoder_bytes, needs, free_bytes)
    return max(min(int(free_bytes * share), free_bytes - encoder_bytes - needs.total_bytes), 0)


def _num_blocks(
    model: CausalLM, options: EngineOptions, max_model_len: int, cache_bytes: int | None, states: StateSlots
) -> int:
    if options.num_blocks is not None:
        return options.num_blocks
    assert cache_bytes is not None
    num_blocks = (cache_bytes - states.size_bytes) // model.kv_block_bytes(options.block_size)
    if options.kv_cache_bytes is not None:
        return num_blocks
    blocks_of_one = -(-max_model_len // options.block_size)
    useful = states.max_sequences * blocks_of_one
    if model.device.type == "cpu" and options.kv_cache_share is None:
        short = states.max_sequences * -(-_CPU_SEQUENCE_TOKENS // options.block_size)
        useful = min(useful, max(_CPU_FULL_SEQUENCES * blocks_of_one, short))
    return min(num_blocks, useful)
