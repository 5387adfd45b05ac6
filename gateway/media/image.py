"""A picture's bytes to RGB pixels, as transformers' `load_image` and processor see them.

The header is checked before anything is decoded. EXIF orientation is applied, transparency is composited on white,
16-bit gray is scaled to 8 bits, and what has no clear meaning as RGB is refused. Of an animation the first frame is
taken.

Next: gateway/media/video.py
"""

import io
import warnings

import numpy as np
from numpy.typing import NDArray

# Imported one by one: Image.init() would import every format that Pillow knows.
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageOps,
    JpegImagePlugin,
    MpoImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from gateway.media.problem import MediaProblem

_PLUGINS = (
    BmpImagePlugin,
    GifImagePlugin,
    JpegImagePlugin,
    MpoImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")  # MPO opens as JPEG
_COLOUR_MODES = frozenset(("1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "HSV"))
_ALPHA_MODES = frozenset(("LA", "La", "PA", "RGBA", "RGBa"))
_GRAY_16_MODES = frozenset(("I;16", "I;16L", "I;16B", "I;16N"))
_ORIENTATION = 0x0112


def decode_image(data: bytes | memoryview, max_pixels: int, field: str = "media") -> NDArray[np.uint8]:
    """Decode one picture.

    Args:
        data: An encoded file.
        max_pixels: Most pixels of the picture times its frames, by its header.
        field: Path of the picture, for errors.

    Returns:
        (height, width, 3) uint8, RGB, C order.

    Raises:
        MediaProblem: IMAGE_UNREADABLE, IMAGE_TOO_LARGE (by its header) or IMAGE_MODE.
        MemoryError: The process's memory limit is reached.
    """
    # Pillow warns of what it repairs (EXIF, palettes) and of sizes that are checked here.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        Image.MAX_IMAGE_PIXELS = None
        try:
            return _decode(bytes(data), max_pixels, field)
        except (MediaProblem, MemoryError):
            raise
        except Exception as error:
            # A damaged file makes Pillow raise nearly anything; the text may name memory or offsets, so it stays here.
            message = "The picture cannot be read: it is damaged, truncated or of an unknown format."
            raise MediaProblem(message, reason="IMAGE_UNREADABLE", field=field) from error


def _decode(data: bytes, max_pixels: int, field: str) -> NDArray[np.uint8]:
    _check_size(*_webp_canvas(data), 1, max_pixels, field)
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        _check_size(*image.size, 1, max_pixels, field)
        _check_size(*image.size, getattr(image, "n_frames", 1), max_pixels, field)
        image.load()
        upright: Image.Image = image
        if image.getexif().get(_ORIENTATION, 1) != 1:
            upright = ImageOps.exif_transpose(image)
        return np.ascontiguousarray(_to_rgb(upright, field))


def _check_size(width: int, height: int, frames: int, max_pixels: int, field: str) -> None:
    if width * height * frames > max_pixels:
        shape = f"{width} x {height}" + (f" x {frames} frames" if frames > 1 else "")
        message = f"The picture has {shape} pixels; at most {max_pixels} in all are taken."
        raise MediaProblem(message, reason="IMAGE_TOO_LARGE", field=field, code="RESOURCE_EXHAUSTED")


def _webp_canvas(data: bytes) -> tuple[int, int]:
    """(width, height) by the header of an extended WebP, for which Pillow would allocate on opening; else (0, 0)."""
    if data[:4] != b"RIFF" or data[8:16] != b"WEBPVP8X" or len(data) < 30:
        return 0, 0
    return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1


def _to_rgb(image: Image.Image, field: str) -> NDArray[np.uint8]:
    if image.mode in _GRAY_16_MODES:
        gray = np.asarray(image).astype(np.uint32)
        return np.repeat(((gray + 128) // 257).astype(np.uint8)[:, :, None], 3, axis=2)
    if image.mode in _ALPHA_MODES or (image.mode in _COLOUR_MODES and image.info.get("transparency") is not None):
        picture = image.convert("RGBA")
        white = Image.new("RGBA", picture.size, (255, 255, 255, 255))
        return np.asarray(Image.alpha_composite(white, picture).convert("RGB"))
    if image.mode in _COLOUR_MODES:
        return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
    message = f"The picture's pixels are of mode {image.mode}, which has no one meaning as colours."
    raise MediaProblem(message, reason="IMAGE_MODE", field=field)
