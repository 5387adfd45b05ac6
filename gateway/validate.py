"""Validation at the edge: protobuf messages in, trusted requests out.

What can be seen from the message alone is refused here, with the path of the
field; media and prompt are looked at later.

Next: pipeline.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from google.protobuf import json_format

from gateway.media.options import ImageOptions, TimeSeriesOptions, VideoOptions, merge
from gateway.media.source import (
    DataUrl,
    FilePath,
    FrameList,
    HttpUrl,
    InlineBytes,
    MediaSource,
    SingleSource,
    UploadedId,
)
from gateway.processor.messages import ChatMessage, MediaPart, TextPart
from gateway.processor.prompt import VideoLayout
from gateway.processor.template_args import template_arguments
from gateway.request import ChatRequest, GenerateRequest, Medium
from tessera.errors import InvalidArgument, ServeError, Unimplemented
from tessera.hashing import HASH_BYTES
from tessera.items import item_from_proto
from tessera.modality import Modality
from tessera.v1 import inference_service_pb2 as pb
from tessera.v1 import types_pb2 as types

ROLES = {
    pb.ROLE_SYSTEM: "system",
    pb.ROLE_USER: "user",
    pb.ROLE_ASSISTANT: "assistant",
    pb.ROLE_TOOL: "tool",
}
LAYOUTS: dict[int, VideoLayout] = {
    types.VIDEO_LAYOUT_UNSPECIFIED: VideoLayout.V5,
    types.VIDEO_LAYOUT_V5: VideoLayout.V5,
    types.VIDEO_LAYOUT_V4: VideoLayout.V4,
}
MAX_SALT_BYTES = 256
MAX_MESSAGES = 4096
MAX_FRAMES_LISTED = 4096


@contextmanager
def at(path: str) -> Iterator[None]:
    """Put `path` before the field of any error that is raised inside."""
    try:
        yield
    except ServeError as error:
        raise error.under(path) from error.__cause__


def chat_request(message: pb.ChatRequest, max_items: int) -> ChatRequest:
    """Return the trusted form of a ChatRequest.

    Raises:
        InvalidArgument, Unimplemented: with the field's path.
    """
    if not message.messages:
        raise InvalidArgument("A chat has at least one message.", reason="FIELD_REQUIRED", field="messages")
    if len(message.messages) > MAX_MESSAGES:
        raise InvalidArgument(f"A chat has at most {MAX_MESSAGES} messages.", reason="TOO_MANY", field="messages")
    defaults = message.media_options
    with at("media_options"):
        layout = _layout(defaults.video_layout)
        image, video = image_options(defaults.image), video_options(defaults.video)
        series = series_options(defaults.time_series)
    reader = _PartReader(image, video, series)
    messages = tuple(reader.message(turn, f"messages[{index}]") for index, turn in enumerate(message.messages))
    _check_count(len(reader.media), max_items, "messages")
    return ChatRequest(
        messages=messages,
        media=tuple(reader.media),
        sampling=message.sampling,
        video_layout=layout,
        template_args=template_arguments(json_format.MessageToDict(message.template_args)),
        add_generation_prompt=message.add_generation_prompt if message.HasField("add_generation_prompt") else True,
        cache_salt=_salt(message.cache_salt),
    )


def generate_request(message: pb.GenerateRequest, max_items: int) -> GenerateRequest:
    """Return the trusted form of a GenerateRequest.

    Raises:
        InvalidArgument, Unimplemented: with the field's path.
    """
    prompt = message.WhichOneof("prompt")
    if prompt is None:
        raise InvalidArgument(
            "A request has token ids or a text to continue.", reason="FIELD_REQUIRED", field="token_ids"
        )
    if prompt == "token_ids" and not message.token_ids.ids:
        raise InvalidArgument("A prompt has at least one token.", reason="FIELD_REQUIRED", field="token_ids.ids")
    if prompt == "text" and not message.text:
        raise InvalidArgument("A prompt has at least one character.", reason="FIELD_REQUIRED", field="text")
    _check_count(len(message.items), max_items, "items")
    items = []
    for index, item in enumerate(message.items):
        with at(f"items[{index}]"):
            items.append(item_from_proto(item))
    return GenerateRequest(
        token_ids=tuple(message.token_ids.ids) if prompt == "token_ids" else None,
        text=message.text if prompt == "text" else None,
        items=tuple(items),
        sampling=message.sampling,
        video_layout=_layout(message.video_layout),
        cache_salt=_salt(message.cache_salt),
    )


def image_options(message: types.ImageOptions) -> ImageOptions:
    """Return the set fields of a message; bounds are checked where they are resolved."""
    return ImageOptions(**_set_fields(message))


def video_options(message: types.VideoOptions) -> VideoOptions:
    """Return the set fields of a message; bounds are checked where they are resolved."""
    values = _set_fields(message)
    if message.frame_indices:
        values["frame_indices"] = tuple(message.frame_indices)
    return VideoOptions(**values)


def series_options(message: types.TimeSeriesOptions) -> TimeSeriesOptions:
    """Return the set fields of a message; bounds are checked where they are resolved."""
    return TimeSeriesOptions(**_set_fields(message))


class _PartReader:
    """Reads the parts of a chat and collects its media in order."""

    def __init__(self, image: ImageOptions, video: VideoOptions, series: TimeSeriesOptions) -> None:
        self._image = image
        self._video = video
        self._series = series
        self.media: list[Medium] = []

    def message(self, turn: pb.Message, path: str) -> ChatMessage:
        """Return one turn, with places for its media."""
        with at(path):
            role = ROLES.get(turn.role)
            if role is None:
                raise InvalidArgument("A message names who speaks.", reason="FIELD_REQUIRED", field="role")
            return ChatMessage(role, tuple(self._part(part, path, i) for i, part in enumerate(turn.parts)))

    def _part(self, part: pb.Part, path: str, index: int) -> TextPart | MediaPart:
        kind = part.WhichOneof("part")
        with at(f"parts[{index}]"):
            if kind is None:
                raise InvalidArgument("A part has text or a medium.", reason="FIELD_REQUIRED", field="text")
            if kind == "text":
                return TextPart(part.text)
            with at(kind):
                medium = self._medium(part, kind, f"{path}.parts[{index}].{kind}")
        self.media.append(medium)
        return MediaPart(medium.modality, preprocessed=kind == "item")

    def _medium(self, part: pb.Part, kind: str, path: str) -> Medium:
        if kind == "image":
            options = merge(self._image, image_options(part.image.options))
            return Medium(Modality.IMAGE, path, _source(part.image.media, Modality.IMAGE), options)
        if kind == "video":
            clip_options = merge(self._video, video_options(part.video.options))
            return Medium(Modality.VIDEO, path, _source(part.video.media, Modality.VIDEO), clip_options)
        if kind == "time_series":
            rate = merge(self._series, series_options(part.time_series.options))
            return Medium(Modality.TIME_SERIES, path, _source(part.time_series.media, Modality.TIME_SERIES), rate)
        if kind == "item":
            item = item_from_proto(part.item)
            if item.ranges:
                raise InvalidArgument("An item of a chat has no ranges.", reason="RANGES_IN_CHAT", field="ranges")
            return Medium(item.modality, path, item=item)
        raise Unimplemented(f"The server does not take {kind} yet.", reason="MODALITY_UNSUPPORTED")


def _source(media: pb.MediaSource, modality: Modality) -> MediaSource:
    with at("media"):
        if media.WhichOneof("source") != "frames":
            return _single_source(media)
        if modality is not Modality.VIDEO:
            raise InvalidArgument("Only a video is a list of frames.", reason="FRAMES_NOT_VIDEO", field="frames")
        with at("frames"):
            return _frames(media.frames)


def _single_source(media: pb.MediaSource) -> SingleSource:
    kind = media.WhichOneof("source")
    if kind is None:
        raise InvalidArgument(
            "A medium has data, a url, a media_id, a path or frames.", reason="FIELD_REQUIRED", field="data"
        )
    if kind == "frames":
        raise InvalidArgument("A frame is one picture.", reason="FRAMES_NESTED", field="frames")
    value = getattr(media, kind)
    if not value:
        raise InvalidArgument("The medium is empty.", reason="FIELD_REQUIRED", field=kind)
    if kind == "data":
        return InlineBytes(value)
    if kind == "path":
        return FilePath(value)
    if kind == "url":
        return DataUrl(value) if value[:5].lower() == "data:" else HttpUrl(value)
    if len(value) != HASH_BYTES:
        raise InvalidArgument(
            f"A media id has {HASH_BYTES} bytes, not {len(value)}.", reason="MEDIA_ID_SIZE", field="media_id"
        )
    return UploadedId(value)


def _frames(message: pb.FrameList) -> FrameList:
    if not message.frames:
        raise InvalidArgument("A clip has at least one frame.", reason="FIELD_REQUIRED", field="frames")
    if len(message.frames) > MAX_FRAMES_LISTED:
        raise InvalidArgument(f"A list has at most {MAX_FRAMES_LISTED} frames.", reason="TOO_MANY", field="frames")
    frames = []
    for index, frame in enumerate(message.frames):
        with at(f"frames[{index}]"):
            frames.append(_single_source(frame))
    fps = message.source_fps if message.HasField("source_fps") else None
    return FrameList(tuple(frames), fps, tuple(message.timestamps) or None)


def _set_fields(message: Any) -> dict[str, Any]:
    return {field.name: value for field, value in message.ListFields() if field.name != "frame_indices"}


def _layout(value: int) -> VideoLayout:
    if value not in LAYOUTS:
        raise InvalidArgument(f"Video layout {value} is not known.", reason="VIDEO_LAYOUT", field="video_layout")
    return LAYOUTS[value]


def _salt(salt: bytes) -> bytes:
    if len(salt) > MAX_SALT_BYTES:
        raise InvalidArgument(
            f"A cache salt has at most {MAX_SALT_BYTES} bytes, not {len(salt)}.",
            reason="SALT_SIZE",
            field="cache_salt",
        )
    return salt


def _check_count(count: int, most: int, field: str) -> None:
    if count > most:
        raise InvalidArgument(f"A request has at most {most} media, not {count}.", reason="TOO_MANY_ITEMS", field=field)
