"""What a call returns: frozen dataclasses whose fields are named as in the contract.

Next: decoding.py fills them; streams.py adds deltas up to them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tessera_client.items import Item


@dataclass(frozen=True)
class Usage:
    """What a request took, in tokens.

    Attributes:
        prompt_tokens: of the expanded prompt.
        completion_tokens: generated, over all choices.
        total_tokens: both.
        cached_tokens: prompt tokens found in the prefix cache.
        image_tokens: prompt tokens that stand for images.
        video_tokens: prompt tokens that stand for videos.
        time_series_tokens: prompt tokens that stand for time series.
        processor_cache_hits: media taken from the processor cache.
    """

    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0
    cached_tokens: int = 0
    image_tokens: int = 0
    video_tokens: int = 0
    time_series_tokens: int = 0
    processor_cache_hits: int = 0

    @property
    def media_tokens(self) -> int:
        """Prompt tokens that stand for media."""
        return self.image_tokens + self.video_tokens + self.time_series_tokens


@dataclass(frozen=True)
class TokenLogprob:
    """One token and the natural logarithm of its probability under the raw logits."""

    token_id: int
    token: str
    token_bytes: bytes
    logprob: float


@dataclass(frozen=True)
class Logprob:
    """Log probabilities of one generated token: the one drawn, and the likeliest."""

    chosen: TokenLogprob
    top: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True)
class Delta:
    """What a stream adds to a choice.

    Attributes:
        index: which choice.
        text: new text, whole code points; may be empty.
        token_ids: new ids.
        finish_reason: "stop" or "length", on the last delta of the choice only.
        matched_stop: the stop string or token id that ended it.
        logprobs: one for each new token, where asked for.
    """

    index: int
    text: str
    token_ids: tuple[int, ...] = ()
    finish_reason: str | None = None
    matched_stop: str | int | None = None
    logprobs: tuple[Logprob, ...] = ()


@dataclass(frozen=True)
class Choice(Delta):
    """A finished choice: everything that its deltas added."""


@dataclass(frozen=True)
class SamplingPlan:
    """Which frames of a clip were used, and by which rule; times in seconds."""

    total_frames: int
    source_fps: float
    duration_s: float
    frame_indices: tuple[int, ...]
    timestamps: tuple[float, ...]
    rule: str
    dropped_frames: int = 0


@dataclass(frozen=True)
class Grid:
    """Patches along time, height and width."""

    t: int
    h: int
    w: int


@dataclass(frozen=True)
class MediaReport:
    """What was used of one medium; sizes of pictures and clips in pixels.

    Attributes:
        num_samples: of a series, in each channel; 0 where only its embeddings came.
        used_samples: the first of them, which the encoder looks at.
        num_channels: of a series.
        sampling_rate_hz: of a series; 0 = unknown.
    """

    modality: str
    content_hash: bytes
    source_height: int
    source_width: int
    height: int
    width: int
    grid_thw: Grid | None
    num_tokens: int
    min_pixels: int
    max_pixels: int
    sampling: SamplingPlan | None
    cached: bool
    preprocessed: bool
    num_samples: int = 0
    used_samples: int = 0
    num_channels: int = 0
    sampling_rate_hz: float = 0.0


@dataclass(frozen=True)
class Prompt:
    """A prompt after expansion: ids, and items by hash with their ranges."""

    token_ids: tuple[int, ...]
    items: tuple[Item, ...]


@dataclass(frozen=True)
class Answer:
    """Choices (none only where a stream was left at once); `text` and the like are those of the first."""

    request_id: str
    model: str
    choices: tuple[Choice, ...]
    usage: Usage
    seed: int

    @property
    def text(self) -> str:
        """Text of the first choice."""
        return self.choices[0].text if self.choices else ""

    @property
    def token_ids(self) -> tuple[int, ...]:
        """Ids of the first choice; a stop token is included."""
        return self.choices[0].token_ids if self.choices else ()

    @property
    def finish_reason(self) -> str | None:
        """Why the first choice ended: "stop" or "length"."""
        return self.choices[0].finish_reason if self.choices else None


@dataclass(frozen=True)
class ChatResult(Answer):
    """The answer to a conversation, with what was used of each medium in prompt order."""

    media: tuple[MediaReport, ...] = ()


@dataclass(frozen=True)
class GenerateResult(Answer):
    """The continuation of a prompt, with the prompt as it was run."""

    prompt: Prompt | None = None


@dataclass(frozen=True)
class PrepareResult:
    """What would run.

    Attributes:
        request_id: what the server's log calls the request.
        rendered_prompt: the template's text, before expansion.
        token_ids: final ids.
        items: ordered by first offset; they go into `generate(token_ids, items=...)` as they are.
        media: what was used of each, in the same order.
        usage: counts of the prompt.
        held_for_s: how long the server holds the items, in seconds.
        max_completion_tokens: tokens that are left for the answer.
    """

    request_id: str
    rendered_prompt: str
    token_ids: tuple[int, ...]
    items: tuple[Item, ...]
    media: tuple[MediaReport, ...]
    usage: Usage
    held_for_s: float | None = field(metadata={"source": "held_for"})
    max_completion_tokens: int = 0


@dataclass(frozen=True)
class UploadResult:
    """What an upload is called; usable as a media source, or for an Item's hash.

    Attributes:
        media_id: of a file, 32 bytes; None for an item.
        content_hash: of an item, 32 bytes; None for a file.
        size_bytes: bytes taken.
        existed: the server held it already.
        held_for_s: how long it is held after its last use, in seconds.
    """

    media_id: bytes | None
    content_hash: bytes | None
    size_bytes: int
    existed: bool
    held_for_s: float | None = field(metadata={"source": "held_for"})


@dataclass(frozen=True)
class RequestLimits:
    """Limits of requests; see RequestLimits in inference_service.proto."""

    max_inline_bytes: int = 0
    max_media_bytes: int = 0
    max_decoded_pixels: int = 0
    max_image_pixels: int = 0
    max_video_pixels: int = 0
    max_frames: int = 0
    max_duration_s: float = 0.0
    max_items: int = 0
    max_requests: int = 0
    urls_allowed: bool = False
    paths_allowed: bool = False
    max_series_samples: int = 0
    max_series_channels: int = 0


@dataclass(frozen=True)
class WorkerInfo:
    """One worker as the gateway sees it."""

    address: str
    state: str | None
    running: int
    waiting: int
    total_blocks: int
    free_blocks: int
    cached_blocks: int
    used_blocks: int
    pinned_items: int
    device: str
    dtype: str
    ops: dict[str, str]
    total_state_slots: int = 0
    running_state_slots: int = 0
    state_checkpoints: int = 0


@dataclass(frozen=True)
class Model:
    """A model that is served.

    Attributes:
        state: "downloading", "loading", "warming", "ready", "unavailable", or None where no worker has answered.
        progress: share of the present state that is done, 0 to 1.
    """

    name: str
    architecture: str
    state: str | None
    progress: float
    modalities: tuple[str, ...]
    max_model_len: int
    vocab_size: int
    limits: RequestLimits | None
    default_sampling: dict[str, Any]
    default_media_options: dict[str, Any]
    eos_token_ids: tuple[int, ...]
    workers: tuple[WorkerInfo, ...]
    resize_backend: str
    video_loaders: tuple[str, ...]
    fingerprint: str
    server_version: str
    series_formats: tuple[str, ...] = ()

    @property
    def ready(self) -> bool:
        """Whether it can answer."""
        return self.state == "ready"
