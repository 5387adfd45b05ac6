"""Keyword arguments of the calls, and how they are written into messages.

None means unset everywhere; zero means zero.

Next: requests.py.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypedDict

from google.protobuf.message import Message

from tessera.v1 import types_pb2 as types
from tessera_client.errors import InvalidArgument
from tessera_client.uploads import UploadCallback

VIDEO_LAYOUTS = {"v5": types.VIDEO_LAYOUT_V5, "v4": types.VIDEO_LAYOUT_V4}


class CallOptions(TypedDict, total=False):
    """How a call is made.

    timeout: seconds for everything, uploads included.
    request_id: what the server's log calls the request; made where absent.
    metadata: further (key, value) pairs.
    on_upload: told how far an upload is.
    """

    timeout: float | None
    request_id: str | None
    metadata: Sequence[tuple[str, str]]
    on_upload: UploadCallback | None


class SamplingOptions(TypedDict, total=False):
    """How tokens are drawn; ranges and defaults stand at SamplingParams in types.proto."""

    max_tokens: int | None
    temperature: float | None
    top_p: float | None
    top_k: int | None
    min_p: float | None
    presence_penalty: float | None
    frequency_penalty: float | None
    repetition_penalty: float | None
    seed: int | None
    stop: str | Sequence[str] | None
    stop_token_ids: Sequence[int] | None
    ignore_eos: bool | None
    n: int | None
    logprobs: bool | None
    top_logprobs: int | None
    logit_bias: Mapping[int, float] | None
    priority: int | None


class ChatOptions(CallOptions, SamplingOptions, total=False):
    """Options of chat, stream_chat and prepare.

    image_options, video_options, time_series_options: {"max_pixels": ...}, for all media of that kind
    (a part's own win); video_layout: "v5" or "v4"; template_args: arguments of the chat template;
    cache_salt: requests with different salts share no cached state.
    """

    model: str | None
    image_options: Mapping[str, Any] | None
    video_options: Mapping[str, Any] | None
    time_series_options: Mapping[str, Any] | None
    video_layout: str | None
    template_args: Mapping[str, Any] | None
    add_generation_prompt: bool | None
    cache_salt: bytes | None


class GenerateOptions(CallOptions, SamplingOptions, total=False):
    """Options of generate, stream_generate and prepare_prompt.

    items: Items, in prompt order; video_layout: "v5" or "v4".
    """

    model: str | None
    items: Sequence[Any]
    video_layout: str | None
    cache_salt: bytes | None


def check_names(options: Mapping[str, Any], known: type) -> None:
    """Refuse a keyword that the call does not have.

    Raises:
        TypeError: naming it, and the one that was probably meant.
    """
    names = known.__annotations__ if known is not None else {}
    for name in options:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(sorted(names))}"
            raise TypeError(f"unknown option {name!r}{hint}")


def write_sampling(target: types.SamplingParams, options: Mapping[str, Any]) -> None:
    """Write the sampling options that are set.

    Raises:
        InvalidArgument: a value is not of its field's type.
    """
    given = {name: value for name, value in options.items() if name in SamplingOptions.__annotations__}
    if isinstance(given.get("stop"), str):
        given["stop"] = [given["stop"]]
    write_options(target, given, "sampling")


def write_media_options(target: types.MediaOptions, options: Mapping[str, Any]) -> None:
    """Write the options of each modality.

    Raises:
        InvalidArgument: an option is not known, or of the wrong type.
    """
    for modality in ("image", "video", "time_series"):
        given = options.get(f"{modality}_options")
        if given:
            write_options(getattr(target, modality), given, f"media_options.{modality}")
    layout = layout_value(options.get("video_layout"), "media_options.video_layout")
    if layout:
        target.video_layout = layout


def layout_value(name: str | None, field: str = "video_layout") -> types.VideoLayout:
    """Return the enum value of "v5" or "v4"; UNSPECIFIED for None.

    Raises:
        InvalidArgument: it is neither.
    """
    if name is None:
        return types.VIDEO_LAYOUT_UNSPECIFIED
    if name.lower() not in VIDEO_LAYOUTS:
        raise InvalidArgument(f'video_layout is "v5" or "v4", not {name!r}.', reason="OPTION_VALUE", field=field)
    return VIDEO_LAYOUTS[name.lower()]


def write_options(target: Message, options: Mapping[str, Any], field: str) -> None:
    """Write a dictionary into a message, by field name; None is left unset.

    Raises:
        InvalidArgument: a name is not known, or a value is not of its field's type; with the field's path.
    """
    names = target.DESCRIPTOR.fields_by_name
    for name, value in options.items():
        path = f"{field}.{name}"
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1) or sorted(names)
            message = f"Unknown option {name!r}; known are {', '.join(near)}."
            raise InvalidArgument(message, reason="OPTION_UNKNOWN", field=path)
        if value is not None:
            _write(target, name, value, path)


def _write(target: Message, name: str, value: Any, path: str) -> None:
    try:
        if isinstance(value, Mapping):
            getattr(target, name).update(value)
        elif isinstance(value, Iterable) and not isinstance(value, str | bytes):
            getattr(target, name).extend(value)
        else:
            setattr(target, name, value)
    except (TypeError, ValueError, AttributeError) as error:
        message = f"{value!r} is not a value of {name} ({error})."
        raise InvalidArgument(message, reason="OPTION_VALUE", field=path) from None
