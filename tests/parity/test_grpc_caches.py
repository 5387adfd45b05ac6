"""Off, cold, warm and partly warm caches give equal answers, and usage says what was reused."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from tessera.v1 import inference_service_pb2 as pb
from tests.e2e.harness import Pair
from tests.parity.cases import Case, Medium, chat_request, clip, picture, user
from tests.parity.compare import assert_continued
from tests.parity.oracle import Oracle

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]
OracleOf, PairOf = Callable[[str], Oracle], Callable[..., Pair]
ONE, TWO, NEW = picture(101, 120, 140), picture(102, 150, 100), picture(103, 90, 160)
MOVING = clip(104, 20, 64, 96)


def case(*media: Medium, name: str) -> Case:
    """Media with text between them, long enough to fill KV blocks."""
    parts = [part for medium in media for part in ("Compare both images and the clip, please: ", medium)]
    return Case(name, (user(*parts, "which one is brighter, which one is larger, and which came first?"),))


def ask(pair: Pair, computed: Oracle, asked: Case, salt: bytes = b"") -> pb.ChatResponse:
    """One request, its answer checked."""
    request = chat_request(asked)
    request.cache_salt = salt
    response = pair.stub.Chat(request)
    assert_continued(computed.answer(asked), response.choices[0])
    return response


def test_off(oracle: OracleOf, pair_of: PairOf) -> None:
    """Without any cache every answer is right the first and the second time, and nothing is reused."""
    pair = pair_of(
        "5.x",
        worker=("--no-prefix-cache", "--no-retain-encoded"),
        gateway=("--processor-cache-bytes", "0"),
    )
    for _ in range(2):
        usage = ask(pair, oracle("5.x"), case(ONE, MOVING, TWO, name="warm")).usage
        assert (usage.cached_tokens, usage.processor_cache_hits) == (0, 0)
    assert pair.model().workers[0].cached_blocks == 0


def test_cold_warm_and_partly_warm(oracle: OracleOf, pair_of: PairOf) -> None:
    """The first time nothing is reused, the second time all but the last block, then as far as the prompts agree."""
    pair, computed = pair_of("5.x"), oracle("5.x")
    warm, partly = case(ONE, MOVING, TWO, name="warm"), case(ONE, MOVING, NEW, name="partly")
    cold_usage = ask(pair, computed, warm).usage
    assert (cold_usage.cached_tokens, cold_usage.processor_cache_hits) == (0, 0)
    warm_response = ask(pair, computed, warm)
    prompt_tokens = len(computed.answer(warm).token_ids)
    assert warm_response.usage.processor_cache_hits == 3
    assert [report.cached for report in warm_response.media] == [True] * 3
    assert prompt_tokens - 32 <= warm_response.usage.cached_tokens < prompt_tokens
    partly_response = ask(pair, computed, partly)
    assert partly_response.usage.processor_cache_hits == 2
    assert [report.cached for report in partly_response.media] == [True, True, False]
    # The prompts agree up to the third medium.
    agree = computed.answer(partly).items[2].ranges[0].offset
    assert agree - 32 < partly_response.usage.cached_tokens <= agree


def test_an_option_of_one_modality_leaves_the_others_entries(oracle: OracleOf, pair_of: PairOf) -> None:
    """Another sampling of the clip processes the clip again, and the pictures come from the cache."""
    pair, computed = pair_of("5.x"), oracle("5.x")
    ask(pair, computed, case(ONE, MOVING, TWO, name="warm"))
    other = case(ONE, replace(MOVING, num_frames=6), TWO, name="resampled")
    response = ask(pair, computed, other)
    assert [report.cached for report in response.media] == [True, False, True]
    again = replace(case(ONE, replace(MOVING, num_frames=6), TWO, name="budgeted"), image=(("max_pixels", 96 * 96),))
    assert [report.cached for report in ask(pair, computed, again).media] == [False, True, False]


def test_one_picture_twice_is_processed_once(oracle: OracleOf, pair_of: PairOf) -> None:
    """The same file twice in one request is one piece of work."""
    twin = picture(105, 100, 100)
    response = ask(pair_of("5.x"), oracle("5.x"), case(twin, twin, name="twins"))
    assert response.usage.processor_cache_hits == 1
    assert len({report.content_hash for report in response.media}) == 1


def test_salts_keep_tenants_apart(oracle: OracleOf, pair_of: PairOf) -> None:
    """Requests with different salts share no KV; with the same salt they do; the answers are equal."""
    pair, computed = pair_of("5.x"), oracle("5.x")
    asked = case(ONE, MOVING, name="salted")
    cached = [ask(pair, computed, asked, salt).usage.cached_tokens for salt in (b"a", b"b", b"a", b"b")]
    assert cached[:2] == [0, 0]
    assert cached[2] == cached[3] > 0


def test_same_bytes_of_another_shape_are_another_item(oracle: OracleOf, pair_of: PairOf) -> None:
    """Two media with equal pixels in equal order but another grid are never taken for one another."""
    import numpy as np

    from tests.parity.cases import Picture, png

    flat = np.full((96, 64, 3), 77, np.uint8)
    for order in ((flat, flat.reshape(64, 96, 3)), (flat.reshape(64, 96, 3), flat)):
        media = tuple(Picture(png(pixels)) for pixels in order)
        response = ask(pair_of("5.x"), oracle("5.x"), case(*media, name=f"flat{order[0].shape}"))
        assert len({report.content_hash for report in response.media}) == 2
