"""From a call's arguments to a Draft: the request, what to upload first, and how to call.

Everything here is pure but for reading media files; the sync and the async
client differ only in how they send a draft.

Next: sync_client.py and async_client.py.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from google.protobuf import json_format

from tessera.v1 import inference_service_pb2 as pb
from tessera_client import options as opts
from tessera_client.errors import DeadlineExceeded, InvalidArgument
from tessera_client.messages import write_item, write_messages
from tessera_client.uploads import INLINE_TOTAL_BYTES, UPLOAD_ABOVE_BYTES, Bag, Payload, UploadCallback

REQUEST_ID_KEY = "x-request-id"


@dataclass(frozen=True)
class Defaults:
    """What a client was made with, and what its calls fall back on.

    Attributes:
        timeout: seconds for a call; None = no deadline.
        metadata: sent with every call.
        on_upload: told how far uploads are.
        upload_above_bytes: larger media go through UploadMedia.
        inline_total_bytes: the same for what is left in one request.
    """

    timeout: float | None = None
    metadata: tuple[tuple[str, str], ...] = ()
    on_upload: UploadCallback | None = None
    upload_above_bytes: int = UPLOAD_ABOVE_BYTES
    inline_total_bytes: int = INLINE_TOTAL_BYTES

    def bag(self) -> Bag:
        """Return an empty bag with these thresholds."""
        return Bag(self.upload_above_bytes, self.inline_total_bytes)


def make_defaults(
    timeout: float | None,
    metadata: Sequence[tuple[str, str]],
    on_upload: UploadCallback | None,
    upload_above_bytes: int | None,
) -> Defaults:
    """Return the defaults of a client from its constructor's arguments."""
    above = UPLOAD_ABOVE_BYTES if upload_above_bytes is None else upload_above_bytes
    return Defaults(timeout, tuple(metadata), on_upload, above)


@dataclass(frozen=True)
class Call:
    """How one call is made; its deadline counts for its uploads too.

    Attributes:
        request_id: what the server's log calls the request.
        metadata: all of it, the request id included.
        deadline: on `clock`; None = none.
        on_upload: told how far uploads are.
    """

    request_id: str
    metadata: tuple[tuple[str, str], ...]
    deadline: float | None
    on_upload: UploadCallback | None
    clock: Callable[[], float] = time.monotonic

    def remaining(self) -> float | None:
        """Return seconds that are left; None = no deadline.

        Raises:
            DeadlineExceeded: none are left.
        """
        if self.deadline is None:
            return None
        left = self.deadline - self.clock()
        if left <= 0:
            raise DeadlineExceeded("The call's timeout has passed.", request_id=self.request_id)
        return left


@dataclass(frozen=True)
class Draft:
    """A request that is ready to go once its uploads have gone."""

    request: Any
    uploads: tuple[Payload, ...]
    call: Call


def make_call(options: Mapping[str, Any], defaults: Defaults, clock: Callable[[], float] = time.monotonic) -> Call:
    """Return how to call, from the call's options and the client's defaults."""
    timeout = options.get("timeout", defaults.timeout)
    request_id = options.get("request_id") or uuid.uuid4().hex
    return Call(
        request_id=request_id,
        metadata=(*defaults.metadata, *(options.get("metadata") or ()), (REQUEST_ID_KEY, request_id)),
        deadline=None if timeout is None else clock() + timeout,
        on_upload=options.get("on_upload", defaults.on_upload),
        clock=clock,
    )


def draft_chat(conversation: Any, options: Mapping[str, Any], defaults: Defaults) -> Draft:
    """Return the draft of Chat and StreamChat.

    Raises:
        TypeError: an unknown keyword.
        InvalidArgument: a value or a part is of no known form.
        OSError: a media file cannot be read.
    """
    opts.check_names(options, opts.ChatOptions)
    call, bag = make_call(options, defaults), defaults.bag()
    request = _chat_request(conversation, options, bag)
    return Draft(request, bag.settle(), call)


def draft_generate(prompt: Any, options: Mapping[str, Any], defaults: Defaults) -> Draft:
    """Return the draft of Generate and StreamGenerate; `prompt` is text or token ids.

    Raises:
        TypeError: an unknown keyword, or a prompt that is neither.
        InvalidArgument: a value or an item is of no known form.
    """
    opts.check_names(options, opts.GenerateOptions)
    call, bag = make_call(options, defaults), defaults.bag()
    request = _generate_request(prompt, options, bag)
    return Draft(request, bag.settle(), call)


def draft_prepare(
    conversation: Any, options: Mapping[str, Any], defaults: Defaults, *, include_tensors: bool = False
) -> Draft:
    """Return the draft of Prepare for a conversation; raises as draft_chat."""
    draft = draft_chat(conversation, options, defaults)
    request = pb.PrepareRequest(chat=draft.request, include_tensors=include_tensors)
    return Draft(request, draft.uploads, draft.call)


def draft_prepare_prompt(
    prompt: Any, options: Mapping[str, Any], defaults: Defaults, *, include_tensors: bool = False
) -> Draft:
    """Return the draft of Prepare for a raw prompt; raises as draft_generate."""
    draft = draft_generate(prompt, options, defaults)
    request = pb.PrepareRequest(generate=draft.request, include_tensors=include_tensors)
    return Draft(request, draft.uploads, draft.call)


def draft_media_upload(source: Any, options: Mapping[str, Any], defaults: Defaults) -> Draft:
    """Return a draft whose only upload is one media file.

    Raises:
        InvalidArgument: the source has no bytes here (a URL, an id), or is of no known form.
        OSError: the file cannot be read.
    """
    from tessera_client.media import write_source

    opts.check_names(options, opts.CallOptions)
    call, bag, media = make_call(options, defaults), Bag(upload_above_bytes=-1), pb.MediaSource()
    write_source(media, source, bag, "media")
    uploads = bag.settle()
    if not uploads:
        raise InvalidArgument("Only bytes and local files can be uploaded.", reason="MEDIA_SOURCE", field="media")
    return Draft(None, uploads, call)


def draft_item_upload(item: Any, options: Mapping[str, Any], defaults: Defaults) -> Draft:
    """Return a draft whose only upload is one item's tensor.

    Raises:
        InvalidArgument: the item has no tensor, or is of no known form.
    """
    from tessera.v1 import types_pb2 as types

    opts.check_names(options, opts.CallOptions)
    call, bag, message = make_call(options, defaults), Bag(upload_above_bytes=-1), types.MultimodalItem()
    write_item(message, item, bag, "item")
    uploads = bag.settle()
    if not uploads:
        raise InvalidArgument("An item is uploaded with its array.", reason="MEDIA_SOURCE", field="item")
    return Draft(None, uploads, call)


def _chat_request(conversation: Any, options: Mapping[str, Any], bag: Bag) -> pb.ChatRequest:
    request = pb.ChatRequest(model=options.get("model") or "", cache_salt=options.get("cache_salt") or b"")
    write_messages(request, conversation, bag)
    opts.write_sampling(request.sampling, options)
    opts.write_media_options(request.media_options, options)
    _write_template_args(request, options.get("template_args"))
    if options.get("add_generation_prompt") is not None:
        request.add_generation_prompt = bool(options["add_generation_prompt"])
    return request


def _generate_request(prompt: Any, options: Mapping[str, Any], bag: Bag) -> pb.GenerateRequest:
    request = pb.GenerateRequest(model=options.get("model") or "", cache_salt=options.get("cache_salt") or b"")
    if isinstance(prompt, str):
        request.text = prompt
    else:
        _write_ids(request, prompt)
    for index, item in enumerate(options.get("items") or ()):
        write_item(request.items.add(), item, bag, f"items[{index}]")
    opts.write_sampling(request.sampling, options)
    request.video_layout = opts.layout_value(options.get("video_layout"))
    return request


def _write_ids(request: pb.GenerateRequest, prompt: Sequence[int]) -> None:
    try:
        request.token_ids.ids.extend(int(token) for token in prompt)
    except (TypeError, ValueError) as error:
        raise InvalidArgument(
            f"A prompt is text or a sequence of token ids ({error}).", reason="PROMPT_FORM", field="token_ids.ids"
        ) from None
    request.token_ids.SetInParent()


def _write_template_args(request: pb.ChatRequest, arguments: Mapping[str, Any] | None) -> None:
    if not arguments:
        return
    try:
        json_format.ParseDict(dict(arguments), request.template_args)
    except json_format.ParseError as error:
        message = f"template_args holds what JSON cannot say ({error})."
        raise InvalidArgument(message, reason="OPTION_VALUE", field="template_args") from None
