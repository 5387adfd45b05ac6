"""From what a user says (string, parts, turns, OpenAI-like dictionaries) to the contract's messages.

Next: requests.py.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from tessera.v1 import inference_service_pb2 as pb
from tessera.v1 import types_pb2 as types
from tessera_client.errors import InvalidArgument
from tessera_client.items import Item
from tessera_client.media import write_source, write_video
from tessera_client.options import write_options
from tessera_client.parts import Clip, Image, Message, Text, TimeSeries, Video
from tessera_client.time_series import SERIES_SUFFIXES, Series, write_series
from tessera_client.uploads import Bag

ROLES = {
    "system": pb.ROLE_SYSTEM,
    "developer": pb.ROLE_SYSTEM,
    "user": pb.ROLE_USER,
    "assistant": pb.ROLE_ASSISTANT,
    "tool": pb.ROLE_TOOL,
}
VIDEO_SUFFIXES = frozenset({".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".gif"})
PART_TYPES = ("text", "image", "video", "time_series")
_VIDEO_FIELDS = frozenset(f.name for f in fields(Video)) - {"source"}
_IMAGE_FIELDS = frozenset(f.name for f in fields(Image)) - {"source"}
_SERIES_FIELDS = frozenset(f.name for f in fields(TimeSeries)) - {"source"}


def write_messages(request: pb.ChatRequest, conversation: Any, bag: Bag) -> None:
    """Write a conversation into the request.

    Args:
        request: being written.
        conversation: a string, a part, a list of parts (one turn of the user), a Message,
            a dictionary with "role" and "content", or a list of those two.
        bag: takes the bytes of media.

    Raises:
        InvalidArgument: something in it is of no known form; with its path.
        OSError: a media file cannot be read.
    """
    for index, turn in enumerate(_turns(conversation)):
        role, parts = _role_and_parts(turn, f"messages[{index}]")
        message = request.messages.add(role=role)
        for number, part in enumerate(parts):
            write_part(message.parts.add(), part, bag, f"messages[{index}].parts[{number}]")


def write_part(target: pb.Part, part: Any, bag: Bag, field: str) -> None:
    """Write one part.

    Raises:
        InvalidArgument: it is of no known form.
        OSError: its file cannot be read.
    """
    if isinstance(part, Mapping):
        part = part_from_dict(part, field)
    match part:
        case str():
            target.text = part
        case Text():
            target.text = part.text
        case Image():
            write_source(target.image.media, part.source, bag, f"{field}.image.media")
            write_options(target.image.options, _given(part), f"{field}.image.options")
        case Video():
            write_video(target.video.media, part, bag, f"{field}.video.media")
            options = _given(part, "source_fps", "timestamps")
            write_options(target.video.options, options, f"{field}.video.options")
        case TimeSeries():
            write_series(target.time_series, part, bag, f"{field}.time_series")
            write_options(target.time_series.options, _given(part), f"{field}.time_series.options")
        case Item():
            write_item(target.item, part, bag, f"{field}.item")
        case pb.Part():
            target.CopyFrom(part)
        case _:
            write_part(target, _guess(part, field), bag, field)


def write_item(target: types.MultimodalItem, item: Any, bag: Bag, field: str) -> None:
    """Write one preprocessed item (Item, or the contract's own message).

    Raises:
        InvalidArgument: a name or an array's type is not of the contract.
    """
    try:
        target.CopyFrom(item.to_proto() if isinstance(item, Item) else item)
    except InvalidArgument as error:
        raise InvalidArgument(error.message, reason=error.reason, field=f"{field}.{error.field}") from None
    except (ValueError, TypeError) as error:
        raise _invalid(f"Not an item: {error}.", field) from None
    if target.HasField("tensor"):
        bag.add_item(target)


def part_from_dict(part: Mapping[str, Any], field: str) -> Text | Image | Video | TimeSeries:
    """Return the part of {"type": "text" | "image" | "video" | "time_series", ...}, or of a type with "_url" behind it.

    Other keys are the part's options: {"type": "video", "video": "a.mp4", "fps": 2}.

    Raises:
        InvalidArgument: type or a key is not known, or the value is missing.
    """
    kind = part.get("type") or next((key for key in PART_TYPES if key in part), None)
    rest = {key: value for key, value in part.items() if key != "type"}
    if kind == "text":
        return Text(str(_take(rest, ("text",), kind, field)))
    if kind in ("image", "image_url"):
        source = _take(rest, ("image", "image_url", "url", "path"), kind, field)
        return Image(source, **_known(rest, _IMAGE_FIELDS, field))
    if kind in ("video", "video_url"):
        source = _take(rest, ("video", "video_url", "url", "path"), kind, field)
        return Video(source, **_known(rest, _VIDEO_FIELDS, field))
    if kind in ("time_series", "time_series_url"):
        source = _take(rest, ("time_series", "time_series_url", "url", "path"), kind, field)
        if "sampling_rate" in rest:
            rest["sampling_rate_hz"] = rest.pop("sampling_rate")
        return TimeSeries(source, **_known(rest, _SERIES_FIELDS, field))
    names = ", ".join(f'"{name}"' for name in PART_TYPES)
    raise _invalid(f'Unknown part type {kind!r}: use {names}, or one of media with "_url" behind it.', field)


def _turns(conversation: Any) -> Sequence[Any]:
    if isinstance(conversation, list | tuple):
        if any(_is_turn(entry) for entry in conversation):
            return conversation
        return [Message("user", tuple(conversation))] if conversation else []
    return [conversation] if _is_turn(conversation) else [Message("user", (conversation,))]


def _is_turn(value: Any) -> bool:
    return isinstance(value, Message | pb.Message) or (isinstance(value, Mapping) and "role" in value)


def _role_and_parts(turn: Any, field: str) -> tuple[pb.Role, Sequence[Any]]:
    role: str
    content: Any
    match turn:
        case pb.Message():
            return turn.role, turn.parts
        case Message():
            role, content = turn.role, turn.parts
        case Mapping() if "role" in turn:
            role, content = turn["role"], turn.get("content")
        case _:
            raise _invalid(
                'A turn is a Message or a dictionary with "role" and "content"; here turns and loose parts are mixed.',
                field,
            )
    if role not in ROLES:
        raise _invalid(f"Unknown role {role!r}: use one of {', '.join(ROLES)}.", f"{field}.role")
    if content is None:
        content = ()
    return ROLES[role], content if isinstance(content, list | tuple) else (content,)


def _guess(part: Any, field: str) -> Image | Video | TimeSeries:
    """A bare path, PIL image or array: what is it?"""
    if isinstance(part, os.PathLike):
        path = Path(part)
        if path.suffix.lower() in SERIES_SUFFIXES:
            return TimeSeries(part)
        return Video(part) if path.suffix.lower() in VIDEO_SUFFIXES or path.is_dir() else Image(part)
    if isinstance(part, Series):
        return TimeSeries(part)
    if isinstance(part, Clip) or getattr(part, "ndim", None) == 4:
        return Video(part)
    if isinstance(part, bytes | bytearray | memoryview):
        raise _invalid("Bytes do not say what they are: wrap them in Image(...), Video(...) or TimeSeries(...).", field)
    return Image(part)


def _given(part: Any, *besides: str) -> dict[str, Any]:
    """Options of a part that are set."""
    skipped = {"source", *besides}
    values = ((f.name, getattr(part, f.name)) for f in fields(part) if f.name not in skipped)
    return {name: value for name, value in values if value is not None}


def _take(rest: dict[str, Any], keys: Sequence[str], kind: str, field: str) -> Any:
    for key in keys:
        if key in rest:
            value = rest.pop(key)
            if not (isinstance(value, Mapping) and "url" in value):
                return value
            rest.update({name: option for name, option in value.items() if name not in ("url", "detail")})
            return value["url"]
    raise _invalid(f'A part of type "{kind}" has the key "{keys[0]}".', field)


def _known(rest: dict[str, Any], names: frozenset[str], field: str) -> dict[str, Any]:
    for name in rest:
        if name not in names:
            raise _invalid(f"Unknown option {name!r} of a part: use {', '.join(sorted(names))}.", f"{field}.{name}")
    return rest


def _invalid(message: str, field: str) -> InvalidArgument:
    return InvalidArgument(message, reason="MESSAGE_FORM", field=field)
