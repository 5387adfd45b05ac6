"""Submissions are checked field by field before the engine sees them."""

import dataclasses

import pytest

from tessera.errors import FailedPrecondition, InvalidArgument, Unimplemented
from tessera.v1 import types_pb2 as types
from tessera.v1 import worker_service_pb2 as pb
from tests.unit.worker.engine.fakes import PLACEHOLDER, VOCAB_SIZE, FakeModel
from worker.submission import SubmitReader

INFO = FakeModel().info
HASH = b"\1" * 32


def span(offset, length):
    return types.PlaceholderRange(offset=offset, length=length)


def item(*ranges, grid=(1, 2, 4), modality=types.MODALITY_IMAGE, content_hash=HASH):
    h = types.GridThw(t=grid[0], h=grid[1], w=grid[2])
    return types.MultimodalItem(
        modality=modality, content_hash=content_hash, grid_thw=h, ranges=[span(*pair) for pair in ranges]
    )


def submit(**fields):
    defaults = {
        "request_id": "a",
        "prompt_token_ids": [1, PLACEHOLDER, PLACEHOLDER, 2, 3],
        "sampling": types.SamplingParams(max_tokens=4, n=2, seed=5, temperature=0.5, top_k=-1),
    }
    return pb.Submit(**(defaults | fields))


def read(message, info=INFO):
    return SubmitReader(info, 64).read(message, owner=3, now_s=10.0)


def test_a_right_submission():
    """Every field arrives: ids, items with their ranges, parameters, deadline, epoch, salt, choices, emitted tokens."""
    group = read(
        submit(
            items=[item((1, 2))],
            epoch=2,
            timeout_ms=1500,
            priority=-4,
            cache_salt=b"s",
            choices=[1],
            emitted=[types.TokenIds(), types.TokenIds(ids=[7, 8])],
        )
    )
    assert group.prompt_ids == (1, PLACEHOLDER, PLACEHOLDER, 2, 3)
    assert group.items[0].ranges == ((1, 2),)
    assert (group.items[0].content_hash, group.items[0].grid_thw) == (HASH, (1, 2, 4))
    assert (group.owner, group.epoch, group.priority, group.deadline_s, group.cache_salt) == (3, 2, -4, 11.5, b"s")
    assert (group.choices, group.emitted) == ((1,), ((7, 8),))
    assert (group.params.max_tokens, group.params.seed, group.params.temperature) == (4, 5, 0.5)
    assert group.params.top_k == 0


def test_what_is_unset():
    """No choices means all; no max_tokens, what the context leaves; no timeout, no deadline."""
    group = read(submit(sampling=types.SamplingParams(n=3)))
    assert (group.choices, group.params.max_tokens, group.deadline_s) == ((0, 1, 2), 59, None)
    assert group.params.greedy


NAN = float("nan")
WRONG = [
    ({"request_id": ""}, "FIELD_REQUIRED", "request_id"),
    ({"prompt_token_ids": []}, "FIELD_REQUIRED", "prompt_token_ids"),
    ({"prompt_token_ids": [1, VOCAB_SIZE]}, "TOKEN_OUT_OF_VOCABULARY", "prompt_token_ids[1]"),
    ({"prompt_token_ids": [-1]}, "TOKEN_OUT_OF_VOCABULARY", "prompt_token_ids[0]"),
    ({"timeout_ms": -1}, "TIMEOUT_INVALID", "timeout_ms"),
    ({"cache_salt": b"x" * 2000}, "SALT_SIZE", "cache_salt"),
    ({"choices": [0, 0]}, "CHOICES_INVALID", "choices"),
    ({"choices": [2]}, "CHOICES_INVALID", "choices"),
    ({"emitted": [types.TokenIds()] * 3}, "EMITTED_COUNT", "emitted"),
    ({"emitted": [types.TokenIds(ids=[VOCAB_SIZE])]}, "TOKEN_OUT_OF_VOCABULARY", "emitted[0].ids[0]"),
    ({"items": [item((1, 2)), item((1, 2))]}, "RANGE_ORDER", "items[1].ranges[0]"),
    ({"items": [item((2, 1), grid=(1, 2, 2)), item((1, 1), grid=(1, 2, 2))]}, "RANGE_ORDER", "items[1].ranges[0]"),
    ({"items": [item()]}, "RANGE_COUNT", "items[0].ranges"),
    ({"items": [item((1, 1))]}, "RANGE_LENGTH", "items[0].ranges"),
    ({"items": [item((0, 2))]}, "RANGE_TOKENS", "items[0].ranges[0]"),
    ({"items": [item((4, 2))]}, "RANGE_BOUNDS", "items[0].ranges[0]"),
    ({"items": [item((-1, 2))]}, "RANGE_BOUNDS", "items[0].ranges[0]"),
    ({"items": [item((1, 0))]}, "RANGE_BOUNDS", "items[0].ranges[0]"),
    ({"items": [item((1, 1), (1, 1))]}, "RANGE_ORDER", "items[0].ranges[1]"),
    ({"items": [item((1, 2), grid=(1, 3, 4))]}, "GRID_INVALID", "items[0].grid_thw"),
    ({"items": [item((1, 2), grid=(0, 2, 4))]}, "GRID_INVALID", "items[0].grid_thw"),
    ({"items": [item((1, 2), content_hash=b"short")]}, "HASH_SIZE", "items[0].content_hash"),
    ({"items": [types.MultimodalItem(modality=1)]}, "HASH_REQUIRED", "items[0].content_hash"),
    ({"items": [item((1, 2), modality=0)]}, "FIELD_REQUIRED", "items[0].modality"),
    ({"sampling": types.SamplingParams(n=2**31 - 1)}, "SAMPLING_PARAMETER", "sampling.n"),
    ({"sampling": types.SamplingParams(max_tokens=0)}, "SAMPLING_PARAMETER", "sampling.max_tokens"),
    ({"sampling": types.SamplingParams(temperature=NAN)}, "SAMPLING_PARAMETER", "sampling.temperature"),
    ({"sampling": types.SamplingParams(top_p=0)}, "SAMPLING_PARAMETER", "sampling.top_p"),
    ({"sampling": types.SamplingParams(repetition_penalty=0)}, "SAMPLING_PARAMETER", "sampling.repetition_penalty"),
    ({"sampling": types.SamplingParams(top_logprobs=99)}, "SAMPLING_PARAMETER", "sampling.top_logprobs"),
    ({"sampling": types.SamplingParams(stop_token_ids=[-3])}, "TOKEN_OUT_OF_VOCABULARY", "sampling.stop_token_ids[0]"),
    ({"sampling": types.SamplingParams(stop_token_ids=[1] * 65)}, "SAMPLING_PARAMETER", "sampling.stop_token_ids"),
    ({"sampling": types.SamplingParams(logit_bias={99: 1.0})}, "TOKEN_OUT_OF_VOCABULARY", "sampling.logit_bias[0]"),
    ({"sampling": types.SamplingParams(logit_bias={1: NAN})}, "SAMPLING_PARAMETER", "sampling.logit_bias"),
]


@pytest.mark.parametrize(("fields", "reason", "path"), WRONG, ids=[f"{path} {reason}" for _, reason, path in WRONG])
def test_wrong_fields(fields, reason, path):
    """Each malformed field is INVALID_ARGUMENT with a reason and its path inside Submit."""
    with pytest.raises(InvalidArgument) as caught:
        read(submit(**fields))
    assert (caught.value.reason, caught.value.field) == (reason, path)


def test_modalities_that_are_not_served():
    """A model whose encoder was left out says VISION_DISABLED; what it never had is UNIMPLEMENTED."""
    blind = dataclasses.replace(INFO, modalities=(), vision_disabled=True)
    with pytest.raises(FailedPrecondition) as disabled:
        read(submit(items=[item((1, 2))]), blind)
    assert (disabled.value.reason, disabled.value.field) == ("VISION_DISABLED", "items[0].modality")
    for modality in (types.MODALITY_TIME_SERIES, types.MODALITY_AUDIO):
        with pytest.raises(Unimplemented) as unknown:
            read(submit(items=[item((1, 2), modality=modality)]))
        assert unknown.value.field == "items[0].modality"
