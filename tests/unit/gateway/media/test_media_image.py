"""Pictures of every kind: the right pixels, or a reason."""

import contextlib
import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from gateway.media.image import decode_image
from gateway.media.problem import MediaProblem
from tests.unit.gateway.media.media_fixtures import encoded, picture

LIMIT = 1 << 22


def saved(image: Image.Image, format_name: str, **arguments: object) -> bytes:
    """A PIL picture as a file."""
    buffer = io.BytesIO()
    image.save(buffer, format_name, **arguments)
    return buffer.getvalue()


@pytest.mark.parametrize("format_name", ["PNG", "BMP", "PPM", "TIFF"])
def test_lossless_formats_give_their_pixels(format_name: str) -> None:
    """RGB goes through unchanged."""
    array = picture(21, 33)
    np.testing.assert_array_equal(decode_image(encoded(array, format_name), LIMIT), array)


@pytest.mark.parametrize("format_name", ["JPEG", "WEBP", "GIF"])
def test_lossy_formats_decode_as_pillow_does(format_name: str) -> None:
    """The decoder is Pillow, as in the oracle."""
    data = encoded(picture(40, 24), format_name)
    np.testing.assert_array_equal(decode_image(data, LIMIT), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


def test_transparency_is_composited_on_white() -> None:
    """Clear pixels are white, half clear ones halfway."""
    rgba = np.zeros((2, 2, 4), np.uint8)
    rgba[0, 0] = (200, 0, 0, 255)
    rgba[0, 1] = (0, 0, 0, 128)
    pixels = decode_image(saved(Image.fromarray(rgba), "PNG"), LIMIT)
    assert pixels[0, 0].tolist() == [200, 0, 0]
    assert pixels[0, 1].tolist() == [127, 127, 127]
    assert pixels[1, 1].tolist() == [255, 255, 255]


def test_a_transparent_palette_entry_is_white() -> None:
    """Palette transparency counts like an alpha channel."""
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    pixels = decode_image(saved(image, "PNG", transparency=0), LIMIT)
    assert pixels[0].tolist() == [[255, 255, 255], [40, 50, 60]]


def test_exif_orientation_is_applied() -> None:
    """A photo taken sideways stands upright, as with transformers' load_image."""
    exif = Image.Exif()
    exif[0x0112] = 6
    data = saved(Image.fromarray(picture(20, 30)), "JPEG", exif=exif)
    assert decode_image(data, LIMIT).shape == (30, 20, 3)


def test_sixteen_bit_gray_is_scaled_not_clipped() -> None:
    """65535 is white and the middle is the middle."""
    gray = np.array([[0, 32768, 65535]], np.uint16)
    pixels = decode_image(saved(Image.fromarray(gray), "PNG"), LIMIT)
    assert pixels[0, :, 0].tolist() == [0, 128, 255]


@pytest.mark.parametrize("mode", ["1", "L", "CMYK", "YCbCr", "P"])
def test_other_colour_modes_become_rgb(mode: str) -> None:
    """Converted as Pillow converts them."""
    image = Image.fromarray(picture(16, 16)).convert(mode)
    data = saved(image, "TIFF" if mode in ("CMYK", "YCbCr") else "PNG")
    np.testing.assert_array_equal(decode_image(data, LIMIT), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


def test_a_mode_without_one_meaning_is_refused() -> None:
    """Float pixels have no agreed range."""
    data = saved(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF")
    with pytest.raises(MediaProblem) as caught:
        decode_image(data, LIMIT)
    assert caught.value.reason == "IMAGE_MODE"


@pytest.mark.parametrize("format_name", ["PNG", "JPEG", "WEBP", "GIF"])
def test_a_truncated_picture_is_refused(format_name: str) -> None:
    """Half a file is not half a picture."""
    data = encoded(picture(64, 64), format_name)
    with pytest.raises(MediaProblem) as caught:
        decode_image(data[: len(data) // 2], LIMIT, "media.frames.frames[3]")
    assert (caught.value.reason, caught.value.field) == ("IMAGE_UNREADABLE", "media.frames.frames[3]")


@pytest.mark.parametrize(
    "data", [b"", b"x", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"RIFF\0\0\0\0WEBPVP8X", b"%PDF-1.4", b"%!PS"]
)
def test_what_is_no_picture_is_refused(data: bytes) -> None:
    """Text, stubs and formats that are not served."""
    with pytest.raises(MediaProblem):
        decode_image(data, LIMIT)


def test_a_png_bomb_is_refused_by_its_header() -> None:
    """A header that claims 2**30 pixels decodes nothing."""
    header = struct.pack(">IIBBBBB", 1 << 15, 1 << 15, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + b"IHDR" + header + struct.pack(">I", zlib.crc32(b"IHDR" + header))
    chunk += struct.pack(">I", 64) + b"IDAT"
    with pytest.raises(MediaProblem) as caught:
        decode_image(b"\x89PNG\r\n\x1a\n" + chunk + b"\0" * 64, LIMIT)
    assert caught.value.reason == "IMAGE_TOO_LARGE"


@pytest.mark.parametrize("format_name", ["GIF", "WEBP", "PNG"])
def test_an_animation_counts_with_all_its_frames(format_name: str) -> None:
    """Pixels times frames are held to the budget; below it, the first frame is the picture."""
    frames = [Image.fromarray(picture(32, 32, seed)) for seed in range(4)]
    data = saved(frames[0], format_name, save_all=True, append_images=frames[1:], duration=50, lossless=True)
    assert decode_image(data, 32 * 32 * 4).shape == (32, 32, 3)
    with pytest.raises(MediaProblem) as caught:
        decode_image(data, 32 * 32 * 3)
    assert caught.value.reason == "IMAGE_TOO_LARGE"


def test_a_webp_canvas_is_checked_before_it_is_allocated() -> None:
    """An extended WebP names its canvas in its first bytes."""
    canvas = (16383 - 1).to_bytes(3, "little")
    data = b"RIFF" + (22).to_bytes(4, "little") + b"WEBPVP8X" + (10).to_bytes(4, "little") + b"\0\0\0\0" + canvas * 2
    with pytest.raises(MediaProblem) as caught:
        decode_image(data, LIMIT)
    assert caught.value.reason == "IMAGE_TOO_LARGE"


def test_mutants_never_raise_anything_else() -> None:
    """Flipped bytes give a picture or a reason."""
    rng = np.random.default_rng(0)
    for format_name in ("PNG", "JPEG", "WEBP", "GIF", "TIFF"):
        data = encoded(picture(24, 24), format_name)
        for _ in range(20):
            mutant = bytearray(data)
            for at in rng.integers(0, len(data), 4):
                mutant[at] = rng.integers(0, 256)
            with contextlib.suppress(MediaProblem):
                assert decode_image(bytes(mutant), LIMIT).shape[2] == 3
