"""Sampling parameters: checked once, and made complete.

Unset fields take the checkpoint's generation_config (which the workers
describe), else the defaults of types.proto. What leaves here has every scalar
set, so that the worker decides nothing.

Next: request.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from tessera.errors import InvalidArgument
from tessera.v1 import types_pb2 as types

MAX_STOP_STRINGS = 16
MAX_STOP_CHARS = 256
MAX_STOP_TOKENS = 64
MAX_BIASES = 1024
MAX_CHOICES = 64
MAX_TOP_LOGPROBS = 20


@dataclass(frozen=True)
class Bound:
    """A scalar's legal interval and its default."""

    low: float
    high: float
    default: float
    open_low: bool = False

    def holds(self, value: float) -> bool:
        """Return whether a value is finite and inside."""
        above = value > self.low if self.open_low else value >= self.low
        return math.isfinite(value) and above and value <= self.high

    def __str__(self) -> str:
        return f"{'(' if self.open_low else '['}{self.low:g}, {self.high:g}]"


FLOATS = {
    "temperature": Bound(0, 100, 0),
    "top_p": Bound(0, 1, 1, open_low=True),
    "min_p": Bound(0, 1, 0),
    "presence_penalty": Bound(-2, 2, 0),
    "frequency_penalty": Bound(-2, 2, 0),
    "repetition_penalty": Bound(0, 100, 1, open_low=True),
}
INTS = {
    "top_k": Bound(-1, 2**31 - 1, 0),
    "n": Bound(1, MAX_CHOICES, 1),
    "top_logprobs": Bound(0, MAX_TOP_LOGPROBS, 0),
    "priority": Bound(-100, 100, 0),
}


def resolve_sampling_params(
    asked: types.SamplingParams,
    defaults: types.SamplingParams,
    *,
    vocab_size: int,
    draw_seed: Callable[[], int],
) -> types.SamplingParams:
    """Return the parameters with every scalar set but max_tokens, which the prompt's length decides.

    Args:
        asked: the request's.
        defaults: the checkpoint's generation_config.
        vocab_size: ids are in [0, vocab_size).
        draw_seed: returns a seed in [0, 2**64) where none is given.

    Raises:
        InvalidArgument: a value is out of its bounds; field "sampling.…".
    """
    _check_lists(asked, vocab_size)
    resolved = types.SamplingParams()
    for name, bound in (FLOATS | INTS).items():
        setattr(resolved, name, _scalar(asked, defaults, name, bound))
    resolved.ignore_eos = asked.ignore_eos
    resolved.logprobs = asked.logprobs
    if resolved.top_logprobs and not asked.logprobs:
        raise _invalid("top_logprobs", "top_logprobs goes with logprobs = true")
    resolved.seed = asked.seed if asked.HasField("seed") else draw_seed()
    resolved.stop.extend(asked.stop)
    resolved.stop_token_ids.extend(asked.stop_token_ids)
    for token, bias in asked.logit_bias.items():
        resolved.logit_bias[token] = bias
    if asked.HasField("max_tokens"):
        if asked.max_tokens < 1:
            raise _invalid("max_tokens", f"max_tokens is at least 1, not {asked.max_tokens}")
        resolved.max_tokens = asked.max_tokens
    return resolved


def fit_max_tokens(params: types.SamplingParams, prompt_tokens: int, max_model_len: int, prompt_field: str) -> None:
    """Set max_tokens to what fits where it is unset, in place.

    Args:
        params: of the request.
        prompt_tokens: of the expanded prompt.
        max_model_len: tokens of prompt and answer together.
        prompt_field: path of the prompt in the request, for the error.

    Raises:
        InvalidArgument: the prompt, or the prompt with max_tokens, does not fit the context.
    """
    room = max_model_len - prompt_tokens
    if room < 1:
        raise InvalidArgument(
            f"The prompt has {prompt_tokens} tokens; the context holds {max_model_len}, the answer included.",
            reason="PROMPT_TOO_LONG",
            field=prompt_field,
        )
    if not params.HasField("max_tokens"):
        params.max_tokens = room
    elif params.max_tokens > room:
        raise InvalidArgument(
            f"max_tokens {params.max_tokens} does not fit: the prompt has {prompt_tokens} tokens and the context "
            f"holds {max_model_len}, which leaves {room}.",
            reason="CONTEXT_EXCEEDED",
            field="sampling.max_tokens",
        )


def _scalar(asked: types.SamplingParams, defaults: types.SamplingParams, name: str, bound: Bound) -> float | int:
    if asked.HasField(name):
        value = getattr(asked, name)
        if not bound.holds(value):
            raise _invalid(name, f"{name} is in {bound}, not {value:g}")
        return value
    if defaults.HasField(name):
        return getattr(defaults, name)
    return int(bound.default) if name in INTS else bound.default


def _check_lists(asked: types.SamplingParams, vocab_size: int) -> None:
    if len(asked.stop) > MAX_STOP_STRINGS:
        raise _invalid("stop", f"at most {MAX_STOP_STRINGS} stop strings, not {len(asked.stop)}")
    for index, stop in enumerate(asked.stop):
        if not 1 <= len(stop) <= MAX_STOP_CHARS:
            raise _invalid(f"stop[{index}]", f"a stop string has 1 to {MAX_STOP_CHARS} characters, not {len(stop)}")
    if len(asked.stop_token_ids) > MAX_STOP_TOKENS:
        raise _invalid("stop_token_ids", f"at most {MAX_STOP_TOKENS} stop tokens, not {len(asked.stop_token_ids)}")
    for index, token in enumerate(asked.stop_token_ids):
        _check_token(f"stop_token_ids[{index}]", token, vocab_size)
    if len(asked.logit_bias) > MAX_BIASES:
        raise _invalid("logit_bias", f"at most {MAX_BIASES} biases, not {len(asked.logit_bias)}")
    for token, bias in asked.logit_bias.items():
        _check_token(f"logit_bias[{token}]", token, vocab_size)
        if not -100 <= bias <= 100:  # NaN fails too
            raise _invalid(f"logit_bias[{token}]", f"a bias is in [-100, 100], not {bias:g}")


def _check_token(field: str, token: int, vocab_size: int) -> None:
    if not 0 <= token < vocab_size:
        raise InvalidArgument(
            f"Token id {token} is not in the vocabulary of {vocab_size}.",
            reason="TOKEN_OUT_OF_VOCABULARY",
            field=f"sampling.{field}",
        )


def _invalid(field: str, message: str) -> InvalidArgument:
    return InvalidArgument(f"{message}.", reason="SAMPLING_PARAMS_INVALID", field=f"sampling.{field}")
