"""What a caller may ask of a picture, clip or series, and what the server allows at most.

Values are checked where they are used: plan.py (frames), rules.py (pixels) and errors.py (rates).

Next: gateway/media/rules.py
"""

from dataclasses import dataclass, fields
from typing import Any, TypeVar


@dataclass(frozen=True)
class ImageOptions:
    """Options of one picture; None leaves the family's rule.

    Attributes:
        min_pixels: Fewest pixels after resize; GLM counts each twice, as in its processor files.
        max_pixels: Most pixels after resize; the server's cap holds where it is lower.
    """

    min_pixels: int | None = None
    max_pixels: int | None = None


@dataclass(frozen=True)
class VideoOptions:
    """Options of one clip; None leaves the family's rule.

    Attributes:
        num_frames: Frames to use.
        fps: Frames to use for each second; with num_frames the smaller count holds.
        min_frames: Fewest frames of the fps rule.
        max_frames: Most frames.
        max_duration_s: Only the clip's first seconds.
        frame_indices: Exactly these frames; empty = unset. Stands alone.
        min_pixels: Fewest pixels of the whole clip (frames * height * width) after resize.
        max_pixels: Most pixels of the whole clip after resize.
    """

    num_frames: int | None = None
    fps: float | None = None
    min_frames: int | None = None
    max_frames: int | None = None
    max_duration_s: float | None = None
    frame_indices: tuple[int, ...] = ()
    min_pixels: int | None = None
    max_pixels: int | None = None

    @property
    def sampling_knobs(self) -> tuple[str, ...]:
        """Names of the set options that choose frames, without frame_indices."""
        names = ("num_frames", "fps", "min_frames", "max_frames", "max_duration_s")
        return tuple(name for name in names if getattr(self, name) is not None)


@dataclass(frozen=True)
class TimeSeriesOptions:
    """Options of one series.

    Attributes:
        sampling_rate_hz: Samples a second; goes before the file's own. None = the file's, else unknown.
    """

    sampling_rate_hz: float | None = None


MediaOptions = ImageOptions | VideoOptions | TimeSeriesOptions
Options = TypeVar("Options", ImageOptions, VideoOptions, TimeSeriesOptions)


def merge(request_level: Options, part_level: Options) -> Options:
    """The options of a part: its own where set, else the request's, field by field."""
    values: dict[str, Any] = {}
    for option in fields(part_level):
        own = getattr(part_level, option.name)
        values[option.name] = getattr(request_level, option.name) if own in (None, ()) else own
    return type(part_level)(**values)


@dataclass(frozen=True)
class ServerLimits:
    """What the server allows; a request lowers these, never raises them.

    Attributes:
        max_frames: Most frames of a clip that are used.
        max_duration_s: Most seconds of a clip that are used.
        max_source_frames: Most frames that a clip may have at all.
        max_decoded_pixels: Most pixels of a file as decoded: of a picture times its frames, or of one frame of a clip.
        max_image_pixels: Most pixels of a picture after resize; 0 = the checkpoint's own budget.
        max_video_pixels: Most pixels of a clip after resize; 0 = the checkpoint's own budget.
        max_media_bytes: Most bytes of one file.
        max_series_samples: Most samples of a series, those of all its channels together.
        max_series_channels: Most channels of a series.
    """

    max_frames: int = 768
    max_duration_s: float = 7200.0
    max_source_frames: int = 65_536
    max_decoded_pixels: int = 1 << 26
    max_image_pixels: int = 0
    max_video_pixels: int = 0
    max_media_bytes: int = 512 << 20
    max_series_samples: int = 1 << 24
    max_series_channels: int = 1024
