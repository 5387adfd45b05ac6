"""gateway/validate.py: what the message alone shows to be wrong is refused with the path of its field."""

from __future__ import annotations

import numpy as np
import pytest

from gateway.media.options import TimeSeriesOptions
from gateway.media.source import DataUrl, FilePath, FrameList, HttpUrl, InlineBytes, UploadedId
from gateway.processor.prompt import VideoLayout
from gateway.validate import chat_request, generate_request
from tessera.errors import InvalidArgument, ServeError, Unimplemented
from tessera.tensors import from_array
from tessera.v1 import inference_service_pb2 as pb
from tessera.v1 import types_pb2 as types

PICTURE = pb.MediaSource(data=b"png")


def chat(*parts: pb.Part, **fields: object) -> pb.ChatRequest:
    """A request of one user message."""
    return pb.ChatRequest(messages=[pb.Message(role=pb.ROLE_USER, parts=parts)], **fields)  # type: ignore[arg-type]


def image(source: pb.MediaSource = PICTURE, **options: int) -> pb.Part:
    return pb.Part(image=pb.ImagePart(media=source, options=types.ImageOptions(**options)))  # type: ignore[arg-type]


def video(source: pb.MediaSource = PICTURE, **options: object) -> pb.Part:
    return pb.Part(video=pb.VideoPart(media=source, options=types.VideoOptions(**options)))  # type: ignore[arg-type]


def frames(*sources: pb.MediaSource, **fields: object) -> pb.MediaSource:
    return pb.MediaSource(frames=pb.FrameList(frames=sources, **fields))  # type: ignore[arg-type]


def item(**fields: object) -> types.MultimodalItem:
    """An image item of 2 by 2 patches of 16 pixels."""
    values: dict = {
        "modality": types.MODALITY_IMAGE,
        "payload_kind": types.PAYLOAD_KIND_PIXELS_U8,
        "tensor": from_array(np.zeros((1, 32, 32, 3), np.uint8)),
        "grid_thw": types.GridThw(t=1, h=2, w=2),
    }
    return types.MultimodalItem(**{name: value for name, value in (values | fields).items() if value is not None})


def test_parts_keep_their_order_and_media_their_paths() -> None:
    """Text and media stand as they came; each medium knows where it stood."""
    request = chat_request(chat(pb.Part(text="a"), image(), pb.Part(text="b"), video()), 8)
    assert [type(part).__name__ for part in request.messages[0].parts] == [
        "TextPart",
        "MediaPart",
        "TextPart",
        "MediaPart",
    ]
    assert [medium.field for medium in request.media] == ["messages[0].parts[1].image", "messages[0].parts[3].video"]


def test_each_source_becomes_its_type() -> None:
    """Bytes, data URL, URL, upload and path are told apart."""
    sources = [
        (pb.MediaSource(data=b"x"), InlineBytes(b"x")),
        (pb.MediaSource(url="DATA:image/png;base64,AA"), DataUrl("DATA:image/png;base64,AA")),
        (pb.MediaSource(url="https://example.org/a.png"), HttpUrl("https://example.org/a.png")),
        (pb.MediaSource(media_id=b"i" * 32), UploadedId(b"i" * 32)),
        (pb.MediaSource(path="a.png"), FilePath("a.png")),
    ]
    for message, expected in sources:
        assert chat_request(chat(image(message)), 8).media[0].source == expected


def test_a_frame_list_keeps_fps_or_times() -> None:
    """Unset fps is None, not zero."""
    source = chat_request(chat(video(frames(PICTURE, PICTURE))), 8).media[0].source
    assert source == FrameList((InlineBytes(b"png"),) * 2, None, None)
    source = chat_request(chat(video(frames(PICTURE, timestamps=[0.5]))), 8).media[0].source
    assert source == FrameList((InlineBytes(b"png"),), None, (0.5,))


def test_a_parts_options_win_field_by_field_and_never_cross() -> None:
    """A request's options hold where the part is silent; a video's never reach an image."""
    options = types.MediaOptions(
        image=types.ImageOptions(min_pixels=1, max_pixels=2), video=types.VideoOptions(fps=3.0, max_pixels=4)
    )
    request = chat_request(chat(image(max_pixels=9), video(num_frames=5), media_options=options), 8)
    still, clip = (medium.options for medium in request.media)
    assert (still.min_pixels, still.max_pixels) == (1, 9)  # type: ignore[union-attr]
    assert (clip.fps, clip.num_frames, clip.max_pixels, clip.min_pixels) == (3.0, 5, 4, None)  # type: ignore[union-attr]


def test_absent_and_empty_template_args_are_alike() -> None:
    """No Struct and an empty one give no arguments; values keep their JSON types."""
    request = chat(pb.Part(text="a"))
    assert chat_request(request, 8).template_args == {}
    request.template_args.update({"enable_thinking": False, "n": 2})
    assert chat_request(request, 8).template_args == {"enable_thinking": False, "n": 2.0}


def test_the_layout_defaults_to_v5() -> None:
    """Unspecified is transformers 5.x."""
    assert chat_request(chat(pb.Part(text="a")), 8).video_layout is VideoLayout.V5
    request = chat(pb.Part(text="a"), media_options=types.MediaOptions(video_layout=types.VIDEO_LAYOUT_V4))
    assert chat_request(request, 8).video_layout is VideoLayout.V4


BAD_CHATS = {
    "messages": pb.ChatRequest(),
    "messages[0].role": pb.ChatRequest(messages=[pb.Message()]),
    "messages[0].parts[0].text": chat(pb.Part()),
    "messages[0].parts[0].image.media.data": chat(image(pb.MediaSource())),
    "messages[0].parts[1].image.media.data": chat(pb.Part(text="a"), image(pb.MediaSource(data=b""))),
    "messages[0].parts[0].image.media.media_id": chat(image(pb.MediaSource(media_id=b"short"))),
    "messages[0].parts[0].image.media.frames": chat(image(frames(PICTURE))),
    "messages[0].parts[0].video.media.frames.frames": chat(video(frames())),
    "messages[0].parts[0].video.media.frames.frames[1].frames": chat(video(frames(PICTURE, frames(PICTURE)))),
    "messages[0].parts[0].video.media.frames.frames[0].data": chat(video(frames(pb.MediaSource(data=b"")))),
    "messages[0].parts[0].item.modality": chat(pb.Part(item=item(modality=None))),
    "messages[0].parts[0].item.ranges": chat(pb.Part(item=item(ranges=[types.PlaceholderRange(length=1)]))),
    "cache_salt": chat(pb.Part(text="a"), cache_salt=b"x" * 257),
    "template_args.messages": chat(pb.Part(text="a"), template_args={"messages": 1}),
}


@pytest.mark.parametrize("field", BAD_CHATS)
def test_a_malformed_chat_names_its_field(field: str) -> None:
    """Each malformed field of a chat is INVALID_ARGUMENT with its path."""
    with pytest.raises(InvalidArgument) as caught:
        chat_request(BAD_CHATS[field], 8)
    assert caught.value.field == field


def test_too_many_media_are_refused() -> None:
    """More media than the server takes in one request are refused before anything is fetched."""
    with pytest.raises(InvalidArgument) as caught:
        chat_request(chat(image(), image(), image()), 2)
    assert caught.value.reason == "TOO_MANY_ITEMS"


def test_audio_is_unimplemented() -> None:
    """Audio is refused by name, with the part's path."""
    with pytest.raises(Unimplemented) as caught:
        chat_request(chat(pb.Part(audio=pb.AudioPart())), 8)
    assert caught.value.field == "messages[0].parts[0].audio"


def series(source: pb.MediaSource = PICTURE, rate: float | None = None) -> pb.Part:
    return pb.Part(time_series=pb.TimeSeriesPart(media=source, options=types.TimeSeriesOptions(sampling_rate_hz=rate)))


def test_a_series_takes_the_requests_rate_unless_it_has_its_own() -> None:
    """Series keep their place among the media; a part's rate goes before the request's, zero being a value."""
    message = chat(series(), image(), series(rate=7), series(rate=0))
    message.media_options.time_series.sampling_rate_hz = 100
    media = chat_request(message, 8).media
    assert [medium.modality for medium in media] == ["time_series", "image", "time_series", "time_series"]
    assert [media[i].options for i in (0, 2, 3)] == [TimeSeriesOptions(rate) for rate in (100, 7, 0)]
    assert chat_request(chat(series()), 8).media[0].options == TimeSeriesOptions(None)


@pytest.mark.parametrize(
    ("source", "reason", "field"),
    [
        (pb.MediaSource(), "FIELD_REQUIRED", "data"),
        (pb.MediaSource(data=b""), "FIELD_REQUIRED", "data"),
        (pb.MediaSource(media_id=b"short"), "MEDIA_ID_SIZE", "media_id"),
        (frames(PICTURE), "FRAMES_NOT_VIDEO", "frames"),
    ],
)
def test_sources_that_no_series_has(source: pb.MediaSource, reason: str, field: str) -> None:
    """A series comes from one file; an empty or malformed source is refused with its path."""
    with pytest.raises(InvalidArgument) as caught:
        chat_request(chat(series(source)), 8)
    assert (caught.value.reason, caught.value.field) == (reason, f"messages[0].parts[0].time_series.media.{field}")


BAD_GENERATES = {
    "token_ids": pb.GenerateRequest(),
    "token_ids.ids": pb.GenerateRequest(token_ids=types.TokenIds()),
    "text": pb.GenerateRequest(text=""),
    "items[0].content_hash": pb.GenerateRequest(text="a", items=[item(tensor=None, content_hash=b"short")]),
    "items[0].tensor": pb.GenerateRequest(text="a", items=[item(tensor=None)]),
    "items[1].payload_kind": pb.GenerateRequest(text="a", items=[item(), item(payload_kind=None)]),
    "items[0].tensor.data": pb.GenerateRequest(
        text="a", items=[item(tensor=types.Tensor(dtype=types.D_TYPE_U8, shape=[1, 32, 32, 3], data=b"short"))]
    ),
    "items[0].tensor.shape": pb.GenerateRequest(
        text="a", items=[item(tensor=from_array(np.zeros((32, 32, 3), np.uint8)))]
    ),
    "items[0].tensor.dtype": pb.GenerateRequest(
        text="a", items=[item(tensor=from_array(np.zeros((1, 32, 32, 3), np.float32)))]
    ),
    "items[0].grid_thw": pb.GenerateRequest(text="a", items=[item(grid_thw=types.GridThw(t=1, h=-2, w=2))]),
    "items[0].timestamps": pb.GenerateRequest(text="a", items=[item(timestamps=[1.0, 0.5])]),
    "items[0].sampling_rate_hz": pb.GenerateRequest(text="a", items=[item(sampling_rate_hz=float("nan"))]),
}


@pytest.mark.parametrize("field", BAD_GENERATES)
def test_a_malformed_generate_names_its_field(field: str) -> None:
    """Each malformed field of a Generate is INVALID_ARGUMENT with its path."""
    with pytest.raises(ServeError) as caught:
        generate_request(BAD_GENERATES[field], 8)
    assert isinstance(caught.value, InvalidArgument)
    assert caught.value.field == field
