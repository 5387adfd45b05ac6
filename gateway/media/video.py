"""Clips as readers: what every video backend offers, and the list of frames as one of them.

A backend opens a file and yields the asked frames in order; it decides how it gets there. A further one joins by the
two protocols here and a line in loaders.py.

Next: gateway/media/loaders.py
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from gateway.media.image import decode_image
from gateway.media.problem import MediaProblem

# The first bytes of the containers that are taken. Playlists (m3u8, ffconcat) name other files, and are not.
_SIGNATURES = (
    (4, (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")),
    (0, (b"\x1a\x45\xdf\xa3", b"FLV", b"OggS", b"GIF8", b"\x00\x00\x01\xba", b"\x00\x00\x01\xb3", b"\x47")),
    (8, (b"AVI ",)),
)


@dataclass(frozen=True)
class VideoInfo:
    """What a clip's header says.

    Attributes:
        total_frames: 0 = it does not say.
        fps: Frames a second; None = it does not say.
        height, width: Pixels; 0 = it does not say.
    """

    total_frames: int
    fps: float | None
    height: int
    width: int


class VideoReader(Protocol):
    """An open clip."""

    info: VideoInfo
    end: int | None
    """After read(): how many frames there really are, where the clip ended before the last asked one; else None."""
    times: Mapping[int, float]
    """After read(): seconds from the clip's first frame, by index, of what was yielded; empty = it does not say."""

    def count(self, limit: int) -> int:
        """Count the frames by going through them, up to limit + 1; `info.fps` may be known better afterwards.

        Raises:
            MediaProblem: VIDEO_UNREADABLE.
        """

    def read(self, indices: Sequence[int]) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """Yield (index, frame) for each readable frame of `indices` (ascending, distinct), from the start.

        A frame is (height, width, 3) uint8, RGB, C order, valid until the next one; unreadable ones are left out.
        """

    def close(self) -> None:
        """Free what is held."""


class VideoLoader(Protocol):
    """A backend."""

    name: str

    def open(self, path: Path) -> VideoReader:
        """Open a file.

        Raises:
            MediaProblem: VIDEO_UNREADABLE.
        """


def check_container(head: bytes) -> None:
    """Refuse what is no video container by its first bytes.

    Raises:
        MediaProblem: VIDEO_UNREADABLE.
    """
    if not any(head[at : at + len(sign)] == sign for at, signs in _SIGNATURES for sign in signs):
        raise unreadable()


def steady_fps(header: float | None, intervals: int, seconds: float) -> float | None:
    """The rate of a clip: the header's, unless the frames' own times contradict it by more than a frame.

    Args:
        header: Frames a second as the header says; None = it does not.
        intervals: From the first frame to the last.
        seconds: Likewise.
    """
    if intervals < 1 or not seconds > 0:
        return header
    if header is not None and abs(intervals / header - seconds) <= 1.5 / header:
        return header
    return intervals / seconds


def unreadable() -> MediaProblem:
    """The error of a file that no backend can read."""
    message = "The video cannot be read: it is damaged, truncated or of an unknown format."
    return MediaProblem(message, reason="VIDEO_UNREADABLE", field="media")


class FrameListReader:
    """A clip given as separate pictures.

    Args:
        frames: Encoded pictures.
        fps: Frames a second of the list; None = unknown.
        max_pixels: Most pixels of one picture.
    """

    def __init__(self, frames: Sequence[bytes | memoryview], fps: float | None, max_pixels: int) -> None:
        self._frames = frames
        self._max_pixels = max_pixels
        self.info = VideoInfo(len(frames), fps, 0, 0)
        self.end: int | None = None
        self.times: Mapping[int, float] = {}

    def count(self, limit: int) -> int:
        """See VideoReader."""
        return len(self._frames)

    def read(self, indices: Sequence[int]) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """See VideoReader; a picture too large for the server is an error, not an unreadable frame."""
        shape: tuple[int, ...] | None = None
        for index in indices:
            field = f"media.frames.frames[{index}]"
            try:
                frame = decode_image(self._frames[index], self._max_pixels, field)
            except MediaProblem as problem:
                if problem.reason == "IMAGE_UNREADABLE":
                    continue
                raise
            shape = frame.shape if shape is None else shape
            if frame.shape != shape:
                message = (
                    f"A frame of {frame.shape[1]} x {frame.shape[0]} pixels among frames of {shape[1]} x {shape[0]}."
                )
                raise MediaProblem(message, reason="FRAME_SIZE", field=field)
            yield index, frame

    def close(self) -> None:
        """See VideoReader."""
