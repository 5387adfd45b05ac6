"""Pictures and clips as base64 text, for JSON and data URLs: PNG without loss, frames as JPEG.

    encode_image_url("cat.jpg")               # data:image/png;base64,...
    encode_video_url("cat.mp4", fps=2)        # data:video/jpeg;fps=2;base64,A,B,C

Next: items.py.
"""

from __future__ import annotations

import base64
import io
from typing import Any

from tessera_client.loading import load_image, load_video
from tessera_client.media import encode_picture
from tessera_client.parts import Clip

JPEG_QUALITY = 98
"""With full colour resolution, it keeps the mean error below 2 of 255 even for noise."""


def encode_image_base64(source: Any) -> Any:
    """Return the base64 of a PNG with exactly the picture's pixels, or a list of them for a list of sources.

    Raises:
        InvalidArgument, OSError, ImportError: see load_image.
    """
    if isinstance(source, list | tuple):
        return [encode_image_base64(one) for one in source]
    return base64.b64encode(encode_picture(load_image(source, mode=None))).decode("ascii")


def encode_image_url(source: Any) -> Any:
    """Return the data URL of a PNG, or a list of them; see encode_image_base64."""
    if isinstance(source, list | tuple):
        return [encode_image_url(one) for one in source]
    return f"data:image/png;base64,{encode_image_base64(source)}"


def encode_video_base64(
    source: Any, *, num_frames: int | None = None, fps: float | None = None, quality: int = JPEG_QUALITY
) -> Any:
    """Return the base64 of a clip's frames as JPEG, joined by commas, or a list of them for a list of clips.

    It is what stands behind `data:video/jpeg;base64,`.

    Args:
        source: see load_video.
        num_frames: see load_video.
        fps: see load_video.
        quality: of JPEG, to 100.

    Raises:
        InvalidArgument, OSError, ImportError: see load_video.
    """
    clips = load_video(source, num_frames=num_frames, fps=fps)
    if isinstance(clips, list):
        return [_join(clip, quality) for clip in clips]
    return _join(clips, quality)


def encode_video_url(
    source: Any, *, num_frames: int | None = None, fps: float | None = None, quality: int = JPEG_QUALITY
) -> Any:
    """Return the data URL of a clip's frames, or a list of them; it says their rate where it is known.

    Arguments and errors as encode_video_base64; a clip of variable rate goes better as Video(load_video(...)), which
    keeps each frame's time.
    """
    clips = load_video(source, num_frames=num_frames, fps=fps)
    if isinstance(clips, list):
        return [_url(clip, quality) for clip in clips]
    return _url(clips, quality)


def _url(clip: Clip, quality: int) -> str:
    rate = ""
    if len(clip.timestamps) > 1 and clip.timestamps[-1] > clip.timestamps[0]:
        rate = f";fps={(len(clip) - 1) / (clip.timestamps[-1] - clip.timestamps[0]):.6g}"
    return f"data:video/jpeg{rate};base64,{_join(clip, quality)}"


def _join(clip: Clip, quality: int) -> str:
    return ",".join(base64.b64encode(_jpeg(frame, quality)).decode("ascii") for frame in clip)


def _jpeg(frame: Any, quality: int) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "JPEG", quality=quality, subsampling=0)
    return buffer.getvalue()
