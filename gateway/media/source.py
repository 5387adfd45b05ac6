"""Where media come from, as the request names it, and the bytes that were found there.

Next: gateway/media/fetch.py
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class InlineBytes:
    """An encoded file inside the request."""

    data: bytes


@dataclass(frozen=True)
class DataUrl:
    """A data URL; `data:video/jpeg;base64,a,b,c` is a list of JPEG frames, at 2 a second or at `;fps=N`."""

    url: str


@dataclass(frozen=True)
class UploadedId:
    """A file that was uploaded before, by the SHA-256 of its bytes."""

    media_id: bytes


@dataclass(frozen=True)
class HttpUrl:
    """An http or https URL."""

    url: str


@dataclass(frozen=True)
class FilePath:
    """A file under the server's media root."""

    path: str


@dataclass(frozen=True)
class FrameList:
    """A clip as separate pictures.

    Attributes:
        frames: One source each; none of them a list.
        source_fps: Frames a second: then it is sampled like a file. None = unknown.
        timestamps: Seconds, one for each frame: then every frame is used.
    """

    frames: tuple["SingleSource", ...]
    source_fps: float | None = None
    timestamps: tuple[float, ...] | None = None


SingleSource = InlineBytes | DataUrl | UploadedId | HttpUrl | FilePath
MediaSource = SingleSource | FrameList


@dataclass(frozen=True)
class MediaBytes:
    """What a source held.

    Attributes:
        data: An encoded file, or the encoded frames of a clip.
        sha256: Of the file, or over those of the frames; the two never coincide.
        source_fps, timestamps: Of a list of frames; see FrameList.
    """

    data: bytes | tuple[bytes, ...]
    sha256: bytes
    source_fps: float | None = None
    timestamps: tuple[float, ...] | None = None

    @property
    def parts(self) -> tuple[bytes, ...]:
        """The encoded files."""
        return (self.data,) if isinstance(self.data, bytes) else self.data

    @property
    def size_bytes(self) -> int:
        """Bytes in all."""
        return sum(map(len, self.parts))
