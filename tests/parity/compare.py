"""The contract's rule of equality, as assertions on what comes back over gRPC.

Next: tests/parity/test_grpc_chat.py
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from tessera.modality import Modality
from tessera.tensors import to_array
from tessera.v1 import inference_service_pb2 as pb
from tessera.v1 import types_pb2 as types
from tests.parity.oracle import MARGIN, Expected, first_difference, patchify

LOGPROB_TOLERANCE = 1e-3
PIXEL_TOLERANCE = 1e-6


def assert_items(expected: Expected, items: Sequence[types.MultimodalItem]) -> None:
    """Modality, grid, ranges and times of each item are transformers'."""
    assert [Modality.from_proto(item.modality) for item in items] == [item.modality for item in expected.items]
    for want, got in zip(expected.items, items, strict=True):
        assert (got.grid_thw.t, got.grid_thw.h, got.grid_thw.w) == want.grid_thw
        assert [(r.offset, r.length) for r in got.ranges] == [(r.offset, r.length) for r in want.ranges]
        np.testing.assert_allclose(got.timestamps, want.timestamps, rtol=0, atol=1e-12)


def assert_pixels(expected: Expected, items: Sequence[types.MultimodalItem], **patches: Any) -> None:
    """The pixels of each item, normalised and cut into patches, are transformers' patches."""
    for want, got in zip(expected.items, items, strict=True):
        assert got.payload_kind == types.PAYLOAD_KIND_PIXELS_U8
        pixels = patchify(to_array(got.tensor), **patches)
        np.testing.assert_allclose(pixels, want.patches, rtol=0, atol=PIXEL_TOLERANCE)


def assert_prepared(expected: Expected, response: pb.PrepareResponse, **patches: Any) -> None:
    """A prepared prompt is transformers': text, ids, items, pixels and counts."""
    assert response.rendered_prompt == expected.prompt
    assert tuple(response.token_ids) == expected.token_ids
    assert_items(expected, response.items)
    assert_pixels(expected, response.items, **patches)
    tokens = {"image": 0, "video": 0}
    for item in expected.items:
        tokens[item.modality] += sum(r.length for r in item.ranges)
    usage = response.usage
    assert (usage.image_tokens, usage.video_tokens) == (tokens["image"], tokens["video"])
    assert (usage.prompt_tokens, usage.completion_tokens) == (len(expected.token_ids), 0)


def assert_continued(expected: Expected, choice: pb.ChatChoice) -> None:
    """A greedy continuation is transformers', and so are the first token's likeliest alternatives."""
    difference = first_difference(expected, choice.token_ids)
    assert difference is None, difference
    if not choice.logprobs:
        return
    first, wanted = choice.logprobs[0], expected.logprobs[0]
    for alternative in (first.chosen, *first.top):
        assert abs(alternative.logprob - wanted[alternative.token_id]) < LOGPROB_TOLERANCE
    # Those returned are the likeliest: none that was left out beats the last of them by more than the tolerance.
    returned = {alternative.token_id for alternative in first.top}
    left_out = np.delete(wanted, list(returned))
    assert left_out.max() < first.top[-1].logprob + LOGPROB_TOLERANCE
    assert len(choice.logprobs) == len(choice.token_ids)


def is_comparable(expected: Expected, steps: int) -> bool:
    """Whether no step of the first `steps` is too close to call."""
    return min(expected.margins[:steps]) >= MARGIN
