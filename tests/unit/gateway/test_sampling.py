"""gateway/sampling.py: parameters are checked once and leave complete."""

from __future__ import annotations

import math

import pytest

from gateway.sampling import FLOATS, INTS, fit_max_tokens, resolve_sampling_params
from tessera.errors import InvalidArgument
from tessera.v1 import types_pb2 as types

NONE = types.SamplingParams()


def resolve(asked: types.SamplingParams, defaults: types.SamplingParams = NONE) -> types.SamplingParams:
    return resolve_sampling_params(asked, defaults, vocab_size=100, draw_seed=lambda: 7)


def test_every_scalar_is_set_where_nothing_is_asked() -> None:
    """The worker decides nothing: all but max_tokens is set, greedy, with a drawn seed."""
    resolved = resolve(NONE)
    unset = [name for name in (*FLOATS, *INTS, "seed", "ignore_eos", "logprobs") if not resolved.HasField(name)]
    assert unset == []
    assert (resolved.temperature, resolved.top_p, resolved.n, resolved.seed) == (0, 1, 1, 7)
    assert not resolved.HasField("max_tokens")


def test_the_checkpoints_defaults_hold_where_the_request_is_silent() -> None:
    """Unset takes generation_config; zero means zero."""
    defaults = types.SamplingParams(temperature=0.7, top_k=20, top_p=0.8)
    resolved = resolve(types.SamplingParams(temperature=0.0, top_p=0.5), defaults)
    assert resolved.temperature == 0.0
    assert resolved.top_k == 20
    assert math.isclose(resolved.top_p, 0.5)


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        (types.SamplingParams(temperature=float("nan")), "temperature"),
        (types.SamplingParams(temperature=-1), "temperature"),
        (types.SamplingParams(temperature=float("inf")), "temperature"),
        (types.SamplingParams(top_p=0), "top_p"),
        (types.SamplingParams(top_p=1.5), "top_p"),
        (types.SamplingParams(top_k=-2), "top_k"),
        (types.SamplingParams(min_p=1.1), "min_p"),
        (types.SamplingParams(presence_penalty=3), "presence_penalty"),
        (types.SamplingParams(frequency_penalty=-3), "frequency_penalty"),
        (types.SamplingParams(repetition_penalty=0), "repetition_penalty"),
        (types.SamplingParams(n=0), "n"),
        (types.SamplingParams(n=2**31 - 1), "n"),
        (types.SamplingParams(logprobs=True, top_logprobs=21), "top_logprobs"),
        (types.SamplingParams(top_logprobs=2), "top_logprobs"),
        (types.SamplingParams(priority=101), "priority"),
        (types.SamplingParams(max_tokens=0), "max_tokens"),
        (types.SamplingParams(stop=[""]), "stop[0]"),
        (types.SamplingParams(stop=["x", "y" * 257]), "stop[1]"),
        (types.SamplingParams(stop=["x"] * 17), "stop"),
        (types.SamplingParams(stop_token_ids=[3, 100]), "stop_token_ids[1]"),
        (types.SamplingParams(stop_token_ids=[-1]), "stop_token_ids[0]"),
        (types.SamplingParams(logit_bias={100: 1.0}), "logit_bias[100]"),
        (types.SamplingParams(logit_bias={1: float("nan")}), "logit_bias[1]"),
        (types.SamplingParams(logit_bias={1: 101.0}), "logit_bias[1]"),
    ],
)
def test_a_value_out_of_bounds_names_its_field(asked: types.SamplingParams, field: str) -> None:
    """Each parameter out of its bounds is INVALID_ARGUMENT with its path."""
    with pytest.raises(InvalidArgument) as caught:
        resolve(asked)
    assert caught.value.field == f"sampling.{field}"


def test_max_tokens_fills_the_context() -> None:
    """Unset max_tokens is what the context leaves; one too many is refused, as is a prompt that fills it."""
    resolved = resolve(NONE)
    fit_max_tokens(resolved, 10, 16, "messages")
    assert resolved.max_tokens == 6
    with pytest.raises(InvalidArgument) as caught:
        fit_max_tokens(types.SamplingParams(max_tokens=7), 10, 16, "messages")
    assert (caught.value.reason, caught.value.field) == ("CONTEXT_EXCEEDED", "sampling.max_tokens")
    with pytest.raises(InvalidArgument) as caught:
        fit_max_tokens(types.SamplingParams(), 16, 16, "messages")
    assert (caught.value.reason, caught.value.field) == ("PROMPT_TOO_LONG", "messages")
