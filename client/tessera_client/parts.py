"""What a user writes a conversation with: Text, Image, Video, TimeSeries, and turns made of them.

    [system("Be brief."), user(Image("a.png"), Video("b.mp4", fps=2), "Compare them.")]

Strings stand for Text; dictionaries in OpenAI's manner are taken too (messages.py).

Next: media.py, which turns sources into bytes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

Source = Any
"""A picture or clip: path, http(s) or data URL, bytes, open binary file, PIL image, ndarray, MediaId, ServerPath."""


@dataclass(frozen=True)
class Text:
    """Text; what spells a special token stays text."""

    text: str


@dataclass(frozen=True)
class MediaId:
    """Names media that were uploaded before.

    Args:
        media_id: SHA-256 of the file's bytes: 32 bytes, or 64 hexadecimal digits.
    """

    media_id: bytes | str

    def digest(self) -> bytes:
        """Return the 32 bytes.

        Raises:
            ValueError: it is not an id.
        """
        raw = bytes.fromhex(self.media_id) if isinstance(self.media_id, str) else bytes(self.media_id)
        if len(raw) != 32:
            raise ValueError(f"a media id has 32 bytes (64 hexadecimal digits), not {len(raw)}")
        return raw


@dataclass(frozen=True)
class ServerPath:
    """Names a file under the *server's* allowed root; off by default there."""

    path: str | os.PathLike[str]


@dataclass(frozen=True)
class Image:
    """A picture.

    Args:
        source: path, URL, bytes, PIL image, ndarray (height, width[, 3 or 4]) of uint8, MediaId, ServerPath.
        min_pixels: fewest pixels after resize.
        max_pixels: most pixels after resize.
    """

    source: Source
    min_pixels: int | None = None
    max_pixels: int | None = None


@dataclass(frozen=True)
class Video:
    """A clip: one file, or its frames.

    Args:
        source: path of a file or of a folder of frames, URL, bytes, MediaId, ServerPath, ndarray
            (frames, height, width, 3) of uint8, a Clip of load_video, or a sequence of image sources.
        source_fps: frames a second of a list of frames: then it is sampled like a file; of data:video/jpeg 2 where
            neither this nor the URL says it.
        timestamps: seconds of each frame of a list: then every frame is used.
        num_frames: how many frames to use.
        fps: frames to use for each second.
        min_frames: fewest frames.
        max_frames: most frames.
        max_duration_s: only the clip's first seconds.
        frame_indices: exactly these frames; stands alone.
        min_pixels: fewest pixels of the whole clip (frames * height * width) after resize.
        max_pixels: most pixels of the whole clip after resize.
    """

    source: Source | Sequence[Source]
    source_fps: float | None = None
    timestamps: Sequence[float] | None = None
    num_frames: int | None = None
    fps: float | None = None
    min_frames: int | None = None
    max_frames: int | None = None
    max_duration_s: float | None = None
    frame_indices: Sequence[int] | None = None
    min_pixels: int | None = None
    max_pixels: int | None = None


@dataclass(frozen=True)
class Clip:
    """A clip in memory; Video takes it as its source, and numpy for its frames.

    Attributes:
        frames: (frames, height, width, 3) uint8.
        timestamps: seconds of each frame; empty = unknown.
    """

    frames: Any
    timestamps: tuple[float, ...] = ()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        return self.frames.astype(dtype or self.frames.dtype, copy=bool(copy))

    def __len__(self) -> int:
        return len(self.frames)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.frames)


@dataclass(frozen=True)
class TimeSeries:
    """A time series.

    Args:
        source: path, URL or bytes of an npy, csv, wav, flac, mp3 or ogg file, MediaId, ServerPath; or a Series, an
            ndarray (length,) or (length, channels), a list of numbers or of rows.
        sampling_rate_hz: samples a second; goes before what the file says.
    """

    source: Source
    sampling_rate_hz: float | None = None


@dataclass(frozen=True)
class Message:
    """One turn.

    Args:
        role: "system", "user", "assistant" or "tool".
        parts: what is said, in order.
    """

    role: str
    parts: tuple[Any, ...]


def system(*parts: Any) -> Message:
    """Return instructions; text only."""
    return Message("system", parts)


def user(*parts: Any) -> Message:
    """Return a turn of the user; text and media."""
    return Message("user", parts)


def assistant(*parts: Any) -> Message:
    """Return an earlier answer of the model; text only."""
    return Message("assistant", parts)


def tool(*parts: Any) -> Message:
    """Return a tool's result; text and media."""
    return Message("tool", parts)
