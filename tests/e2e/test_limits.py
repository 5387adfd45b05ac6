"""Small limits: too much at once, too large, too long."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tessera.v1 import inference_service_pb2 as pb
from tests.e2e.harness import Flags, Pair, Pairs, wait_until
from tests.e2e.status import assert_says_nothing_of_the_inside, canary_tokens, outcome
from tests.parity.cases import CLIP, SMALL, Case, chat_request, picture, user

ASK = Case("ask", (user("What is this? ", SMALL, CLIP),))
LONG = Case("long", (user("Tell me a story."),))
LIMITS = (
    "--max-requests", "3", "--max-inline-bytes", "256k", "--upload-bytes", "64k", "--upload-caller-bytes", "48k",
    "--max-frames", "8", "--max-decoded-pixels", "40000", "--max-media-bytes", "200k", "--max-items", "3",
    "--item-ttl-s", "1", "--upload-ttl-s", "1",
)  # fmt: skip


@pytest.fixture
def pair(pairs: Pairs, tiny: Callable[[str], Path]) -> Pair:
    """A pair with small limits."""
    return pairs.get(Flags(tiny("5.x"), gateway=LIMITS))


def endless(pair: Pair) -> Iterator[pb.StreamChatResponse]:
    """A stream that runs to the context's limit, begun."""
    request = chat_request(LONG, max_tokens=3500)
    call = pair.stub.StreamChat(request)
    next(call)
    return call


def test_one_request_too_many_is_refused_at_once(pair: Pair) -> None:
    """A request above the limit is RESOURCE_EXHAUSTED with RetryInfo; those that run go on, and room comes back."""
    calls = [endless(pair) for _ in range(3)]
    status = outcome(lambda: pair.stub.Chat(chat_request(LONG), timeout=5))
    assert (status.code, status.reason) == ("RESOURCE_EXHAUSTED", "OVERLOADED")
    assert status.retry_s is not None and 0 < status.retry_s <= 60
    assert_says_nothing_of_the_inside(status)
    assert all(next(call).choices for call in calls)
    for call in calls:
        call.cancel()
    wait_until(lambda: outcome(lambda: canary_tokens(pair)).code == "OK", "room again", 2)


def test_limits_are_shown(pair: Pair) -> None:
    """GetModel says the limits that hold."""
    limits = pair.model().limits
    assert (limits.max_requests, limits.max_inline_bytes, limits.max_frames) == (3, 256 << 10, 8)
    assert (limits.max_decoded_pixels, limits.max_media_bytes, limits.max_items) == (40_000, 200 << 10, 3)
    assert not limits.urls_allowed
    assert not limits.paths_allowed


def test_a_request_lowers_the_servers_frames_and_never_raises_them(pair: Pair) -> None:
    """The cap of the server holds for the family's rule; a knob that asks for more is INVALID_ARGUMENT."""
    request = chat_request(ASK, max_tokens=1)
    request.media_options.video.fps = 8.0
    assert len(pair.stub.Chat(request).media[1].sampling.frame_indices) == 8
    request.media_options.video.max_frames = 5
    assert len(pair.stub.Chat(request).media[1].sampling.frame_indices) == 5
    request.media_options.video.max_frames = 700
    assert len(pair.stub.Chat(request).media[1].sampling.frame_indices) == 8
    request.media_options.video.Clear()
    request.media_options.video.num_frames = 9
    status = outcome(lambda: pair.stub.Chat(request))
    assert (status.code, status.reason) == ("INVALID_ARGUMENT", "SAMPLING_INVALID")


def test_prepared_tensors_above_the_inline_limit(pair: Pair) -> None:
    """Tensors that would not fit one message are refused by name; without them the items are held."""
    request = chat_request(ASK)
    request.media_options.image.min_pixels = 160 * 160
    request.media_options.image.max_pixels = 160 * 160
    request.media_options.video.min_pixels = 16 * 96 * 96
    request.media_options.video.fps = 8.0
    status = outcome(lambda: pair.stub.Prepare(pb.PrepareRequest(chat=request, include_tensors=True)))
    assert (status.code, status.reason, status.field) == ("RESOURCE_EXHAUSTED", "TENSORS_TOO_LARGE", "include_tensors")
    assert len(pair.stub.Prepare(pb.PrepareRequest(chat=request)).content_hashes) == 2


def test_a_callers_budget_of_uploads(pair: Pair) -> None:
    """What a caller holds is bounded; when it has expired there is room again."""

    def upload(data: bytes) -> pb.UploadMediaResponse:
        header = pb.UploadMediaRequest(header=pb.UploadHeader(media=pb.MediaFile(), size_bytes=len(data)))
        return pair.stub.UploadMedia(iter([header, pb.UploadMediaRequest(chunk=data)]))

    first = upload(b"a" * 30_000)
    status = outcome(lambda: upload(b"b" * 30_000))
    assert (status.code, status.reason) == ("RESOURCE_EXHAUSTED", "UPLOAD_BUDGET")
    assert status.retry_s is not None
    wait_until(lambda: outcome(lambda: upload(b"b" * 30_000)).code == "OK", "room after a second", 3, 0.1)
    request = chat_request(ASK)
    request.messages[0].parts[1].image.media.media_id = first.media_id
    status = outcome(lambda: pair.stub.Chat(request))
    assert (status.code, status.reason) == ("FAILED_PRECONDITION", "ITEM_NOT_FOUND")


def test_a_prepared_item_expires(pair: Pair) -> None:
    """An item is held for the time that Prepare says, and is ITEM_NOT_FOUND after it."""
    prepared = pair.stub.Prepare(pb.PrepareRequest(chat=chat_request(ASK)))
    assert prepared.held_for.ToTimedelta().total_seconds() == 1
    request = pb.GenerateRequest(
        token_ids={"ids": prepared.token_ids}, items=prepared.items, sampling=chat_request(ASK, max_tokens=1).sampling
    )
    assert outcome(lambda: pair.stub.Generate(request)).code == "OK"
    time.sleep(1.2)  # to look earlier would renew it
    assert outcome(lambda: pair.stub.Generate(request)).reason == "ITEM_NOT_FOUND"


def test_a_decoded_picture_above_the_cap(pair: Pair) -> None:
    """A picture of more pixels than the server decodes is refused by its header."""
    status = outcome(lambda: pair.stub.Chat(chat_request(Case("big", (user(picture(50, 220, 220)),)))))
    assert (status.reason, status.field) == ("IMAGE_TOO_LARGE", "messages[0].parts[0].image.media")
