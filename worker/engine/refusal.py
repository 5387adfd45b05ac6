"""Which requests can never run here, whatever else does.

Next: worker/engine/engine.py
"""

from worker.engine.config import EngineConfig
from worker.engine.output import FailureCode, SequenceFailure
from worker.engine.sequence import SequenceGroup, SequenceItem


def refusal_of(group: SequenceGroup, config: EngineConfig) -> SequenceFailure | None:
    """Return why a request can never run within the limits, or None."""
    prompt, most = len(group.prompt_ids), group.params.max_tokens
    if prompt >= config.max_model_len:
        return SequenceFailure(
            FailureCode.INVALID_ARGUMENT,
            "PROMPT_TOO_LONG",
            f"The prompt has {prompt} tokens; the context holds {config.max_model_len}, the answer included.",
            "prompt_token_ids",
        )
    if prompt + most > config.max_model_len:
        return SequenceFailure(
            FailureCode.INVALID_ARGUMENT,
            "CONTEXT_EXCEEDED",
            f"A prompt of {prompt} tokens and max_tokens = {most} exceed the context of {config.max_model_len}.",
            "sampling.max_tokens",
        )
    alive: list[SequenceItem] = []
    for index, item in enumerate(group.items):
        alive = [other for other in alive if other.end > item.ranges[0].offset] + [item]
        together = sum(other.num_tokens for other in alive)
        if together * config.item_token_bytes > config.encoder_cache_bytes:
            return SequenceFailure(
                FailureCode.INVALID_ARGUMENT,
                "ITEM_TOO_LARGE",
                f"An item has {together} tokens; this worker encodes at most {config.max_item_tokens}.",
                f"items[{index}]",
            )
    return None
