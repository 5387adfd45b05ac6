"""Requests after validation: from here on types are trusted.

Next: validate.py, which makes them, and pipeline.py, which runs them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gateway.media.options import MediaOptions
from gateway.media.source import MediaSource
from gateway.processor.messages import ChatMessage
from gateway.processor.prompt import VideoLayout
from tessera.items import MultimodalItem
from tessera.modality import Modality
from tessera.v1 import types_pb2 as types


@dataclass(frozen=True)
class Medium:
    """One medium of a chat: a source to be processed, or an item that the caller has processed.

    Attributes:
        modality: what it is.
        field: path in the request, for errors, such as "messages[0].parts[1].image".
        source: where it comes from; None with `item`.
        options: the request's options with the part's own put over them.
        item: without ranges; its bytes, or only its hash.
    """

    modality: Modality
    field: str
    source: MediaSource | None = None
    options: MediaOptions | None = None
    item: MultimodalItem | None = None


@dataclass(frozen=True)
class ChatRequest:
    """A conversation to answer; `media` are what stands at the messages' media parts, in order."""

    messages: tuple[ChatMessage, ...]
    media: tuple[Medium, ...]
    sampling: types.SamplingParams
    video_layout: VideoLayout
    template_args: Mapping[str, Any] = field(default_factory=dict)
    add_generation_prompt: bool = True
    cache_salt: bytes = b""


@dataclass(frozen=True)
class GenerateRequest:
    """A prompt to continue: token ids or raw text, with items.

    Attributes:
        token_ids: None with `text`.
        text: None with `token_ids`.
        items: as they came; bytes, or only hashes.
    """

    token_ids: tuple[int, ...] | None
    text: str | None
    items: tuple[MultimodalItem, ...]
    sampling: types.SamplingParams
    video_layout: VideoLayout
    cache_salt: bytes = b""
