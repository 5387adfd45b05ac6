"""Pictures and clips for callers who want the pixels themselves: from files, URLs, bytes and arrays.

    image = load_image("cat.jpg")                  # PIL image, upright, RGB
    clip = load_video("cat.mp4", num_frames=8)     # frames and their times

Requests need none of this: Image and Video take the same sources, and the server decodes and samples.

Next: encoding.py; decoders.py reads video files.
"""

from __future__ import annotations

import base64
import binascii
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, unquote_to_bytes, urlparse

from tessera_client.errors import InvalidArgument
from tessera_client.media import JPEG_LIST, JPEG_LIST_FPS, frames_of, is_array, is_pil, split_jpeg_list
from tessera_client.messages import VIDEO_SUFFIXES
from tessera_client.parts import Clip

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL import Image

_URL_TIMEOUT_S = 60.0


def load_image(source: Any, mode: str | None = "RGB") -> Any:
    """Return a PIL image, or a list of them for a list of sources.

    Args:
        source: path, http(s) or data URL, bytes, open binary file, PIL image, uint8 array; or a list of these.
        mode: of the image; transparency is then laid on white. None = the file's own.

    Returns:
        Turned upright as its EXIF says.

    Raises:
        InvalidArgument: it is no picture.
        OSError: a file or URL cannot be read.
        ImportError: Pillow is not installed.
    """
    if isinstance(source, list | tuple):
        return [load_image(one, mode) for one in source]
    return _upright(_open_image(source), mode)


def load_video(source: Any, *, num_frames: int | None = None, fps: float | None = None) -> Any:
    """Return a Clip, or a list of them for a list of clips.

    Args:
        source: path of a file or of a folder of frames, http(s) or data URL, bytes, open binary file, array
            (frames, height, width, 3) of uint8, a list of image sources, a Clip; or a list of clips.
        num_frames: evenly spread over the clip; None = all.
        fps: frames to take for each second, evenly spread; with num_frames the smaller count holds.

    Raises:
        InvalidArgument: it is no clip.
        OSError: a file or URL cannot be read.
        ImportError: neither PyAV nor OpenCV is installed, where a file has to be decoded.
    """
    if isinstance(source, list | tuple) and source and _is_clip(source[0]):
        return [load_video(one, num_frames=num_frames, fps=fps) for one in source]
    pictures, times = _pictures(source)
    if pictures is None:
        from tessera_client.decoders import decode_clip

        return Clip(*decode_clip(_bytes(source), lambda times: spread(times, num_frames, fps)))
    kept = spread(times or [0.0] * len(pictures), num_frames, fps if times else None)
    return Clip(_stack([pictures[index] for index in kept]), tuple(times[index] for index in kept) if times else ())


def spread(times: Sequence[float], num_frames: int | None, fps: float | None) -> list[int]:
    """Return which frames are taken, evenly spread by index.

    Args:
        times: seconds of all frames.
        num_frames: most of them.
        fps: most for each second.

    Raises:
        InvalidArgument: an option is not above 0.
    """
    for name, value in (("num_frames", num_frames), ("fps", fps)):
        if value is not None and not value > 0:
            raise InvalidArgument(f"{name} must be above 0, not {value}.", reason="OPTION_VALUE", field=name)
    total = len(times)
    count = min(total, num_frames or total)
    if fps is not None and total > 1:
        seconds = (times[-1] - times[0]) * total / (total - 1)
        count = min(count, max(1, int(seconds * fps)))
    if count <= 1:
        return [0][:total]
    return [round(place * (total - 1) / (count - 1)) for place in range(count)]


def _pictures(source: Any) -> tuple[Sequence[Any] | None, Sequence[float]]:
    """Return the pictures of a clip that is a list of them, and their times; None for a file."""
    if isinstance(source, Clip):
        return source.frames, source.timestamps
    if isinstance(source, str) and source.startswith(JPEG_LIST):
        pictures, rate = split_jpeg_list(source)
        return pictures, [index / (rate or JPEG_LIST_FPS) for index in range(len(pictures))]
    frames = frames_of(source)
    if frames is not None and not len(frames):
        raise _invalid("A clip has at least one frame.")
    return frames, ()


def _stack(pictures: Sequence[Any]) -> NDArray[Any]:
    import numpy as np

    frames = [np.asarray(load_image(picture)) for picture in pictures]
    sizes = {frame.shape for frame in frames}
    if len(sizes) > 1:
        raise _invalid(f"The frames of a clip have one size, not {len(sizes)}.")
    return np.stack(frames)


def _is_clip(value: Any) -> bool:
    if isinstance(value, str) and value.startswith(("data:", "http:", "https:")):
        return value.startswith("data:video") or Path(urlparse(value).path).suffix.lower() in VIDEO_SUFFIXES
    if isinstance(value, str | os.PathLike):
        path = Path(value)
        return path.suffix.lower() in VIDEO_SUFFIXES or path.is_dir()
    return isinstance(value, Clip | list | tuple) or getattr(value, "ndim", 0) == 4


def _open_image(source: Any) -> Image.Image:
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise ImportError("Pillow is needed to read pictures: pip install 'tessera[client]'") from error
    if is_pil(source):
        return source
    if is_array(source):
        if source.dtype.name != "uint8" or source.ndim not in (2, 3):
            raise _invalid(f"A picture is a uint8 array, not {source.dtype} of {source.ndim} dimensions.")
        return Image.fromarray(source)
    try:
        image = Image.open(io.BytesIO(_bytes(source)))
        image.load()
    except (UnidentifiedImageError, SyntaxError, ValueError) as error:
        raise _invalid(f"Not a picture that can be read: {error}.") from None
    return image


def _upright(image: Image.Image, mode: str | None) -> Image.Image:
    from PIL import Image, ImageOps

    image = ImageOps.exif_transpose(image)
    if mode is None or image.mode == mode:
        return image
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        picture = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", picture.size, (255, 255, 255, 255)), picture)
    return image.convert(mode)


def _bytes(source: Any) -> bytes:
    """Return the bytes of a file, wherever it is."""
    if isinstance(source, bytes | bytearray | memoryview):
        return bytes(source)
    if hasattr(source, "read"):
        return source.read()
    if not isinstance(source, str | os.PathLike):
        raise _invalid(f"Cannot read {type(source).__name__} as media: give a path, URL, bytes, file or array.")
    text = os.fspath(source)
    if text.startswith(("http://", "https://")):
        from urllib.request import urlopen

        with urlopen(text, timeout=_URL_TIMEOUT_S) as response:
            return response.read()
    if text.startswith("data:"):
        head, _, body = text.partition(",")
        try:
            return base64.b64decode(body, validate=True) if head.endswith(";base64") else unquote_to_bytes(body)
        except binascii.Error:
            raise _invalid("The data URL is not valid base64.") from None
    path = Path(unquote(urlparse(text).path) if text.startswith("file://") else text)
    return path.expanduser().read_bytes()


def _invalid(message: str) -> InvalidArgument:
    return InvalidArgument(message, reason="MEDIA_SOURCE")
