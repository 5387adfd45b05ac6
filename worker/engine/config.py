"""Limits of an engine, all resolved.

Next: worker/engine/sizing.py, which resolves them.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class EngineConfig:
    """What scheduler, caches and runner are built from.

    Args:
        max_model_len: most tokens of prompt and answer together.
        num_blocks: KV blocks.
        block_size: tokens of a block.
        max_sequences: most running sequences.
        max_batched_tokens: most tokens of a step, prefill and decode together.
        encoder_cache_bytes: most bytes of encoded items.
        retain_encoded: keep encoded items that nobody needs any more.
        item_token_bytes: bytes of one encoded token.
        enable_prefix_cache: reuse blocks of equal prefixes.
        staged_bytes: most bytes of staged items.
        staged_ttl_s: seconds that an unwanted staged item is kept.
        state_checkpoints: slots that keep recurrent state for reuse; of no matter where the model has none.
        state_passing_share: share of them that answers may take while they grow, the rest is for prompts.
        async_scheduling: launch a step before the tokens of the one before have been fetched.
    """

    max_model_len: int
    num_blocks: int
    block_size: int = 16
    max_sequences: int = 64
    max_batched_tokens: int = 2048
    encoder_cache_bytes: int = 1 << 28
    retain_encoded: bool = True
    item_token_bytes: int = 4
    enable_prefix_cache: bool = True
    staged_bytes: int = 1 << 30
    staged_ttl_s: float = 300.0
    state_checkpoints: int = 32
    state_passing_share: float = 0.5
    async_scheduling: bool = False

    def __post_init__(self) -> None:
        assert self.block_size > 0 and self.max_sequences > 0
        assert self.max_batched_tokens >= self.max_sequences, "every running sequence gets a token in every step"
        assert self.num_blocks >= self.blocks_for(self.max_model_len), "one sequence of full length fits"

    def blocks_for(self, num_tokens: int) -> int:
        """Return the blocks that so many tokens take."""
        return -(-num_tokens // self.block_size)

    @property
    def passing_checkpoints(self) -> int:
        """Most checkpoints that move along with running sequences, or were left by them at their ends."""
        return min(self.state_checkpoints, max(1, int(self.state_checkpoints * self.state_passing_share)))

    @property
    def max_item_tokens(self) -> int:
        """Most tokens of one item that the encoder cache can hold."""
        return min(self.encoder_cache_bytes // self.item_token_bytes, self.max_model_len)
