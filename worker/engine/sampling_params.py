"""How the tokens of a sequence are drawn, resolved: nothing is unset any more.

Next: worker/engine/sequence.py
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """Resolved sampling parameters; ranges are those of types.proto and are checked before.

    Args:
        max_tokens: most generated tokens, those of an earlier epoch included.
        temperature: 0 = greedy.
        top_p: nucleus mass in (0, 1].
        top_k: 0 = all tokens.
        min_p: share of the likeliest token's probability, in [0, 1].
        presence_penalty: subtracted once for each generated token.
        frequency_penalty: subtracted for each time that a token was generated.
        repetition_penalty: divides positive and multiplies negative logits of seen tokens.
        seed: of the random numbers, 64 bits.
        stop_token_ids: ids that end the sequence.
        ignore_eos: go on after the model's own end-of-sequence ids.
        n: choices of the request.
        logprobs: return the raw log probability of each generated token.
        top_logprobs: and those of this many likeliest tokens.
        logit_bias: (token id, bias) pairs.
    """

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0
    stop_token_ids: frozenset[int] = frozenset()
    ignore_eos: bool = False
    n: int = 1
    logprobs: bool = False
    top_logprobs: int = 0
    logit_bias: tuple[tuple[int, float], ...] = ()

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is taken."""
        return self.temperature == 0.0

    @property
    def has_penalties(self) -> bool:
        """Whether any penalty changes the logits."""
        return bool(self.presence_penalty or self.frequency_penalty) or self.repetition_penalty != 1.0

    @property
    def has_filter(self) -> bool:
        """Whether top-k, top-p or min-p cuts tokens off."""
        return self.top_k > 0 or self.top_p < 1.0 or self.min_p > 0.0

    @property
    def is_plain(self) -> bool:
        """Whether one argmax over the raw logits is all that is asked for."""
        return self.greedy and not self.has_penalties and not self.logit_bias and not self.logprobs
