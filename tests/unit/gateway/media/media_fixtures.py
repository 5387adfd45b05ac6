"""Pictures, clips and jobs that the media tests share.

Next: tests/unit/gateway/media/test_media_rules.py
"""

import io
import re
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from gateway.media.options import ImageOptions, ServerLimits, VideoOptions
from gateway.media.pool import MediaJob
from gateway.media.rules import MediaRules
from gateway.media.source import MediaBytes
from tessera.modality import Modality

RULES = MediaRules(
    image_min_pixels=32 * 32, image_max_pixels=512 * 512, video_min_pixels=4 * 32 * 32, video_max_pixels=16 * 256 * 256
)
LIMITS = ServerLimits()


def picture(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """A smooth picture with some noise, (height, width, 3)."""
    rng = np.random.default_rng(seed)
    ramp = np.add.outer(np.arange(height) * 3, np.arange(width) * 2)[:, :, None] + np.array([0, 60, 120])
    return ((ramp + rng.integers(0, 20, (height, width, 3))) % 256).astype(np.uint8)


def encoded(array: NDArray[np.uint8], format_name: str = "PNG", **arguments: object) -> bytes:
    """A picture as a file."""
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format_name, **arguments)
    return buffer.getvalue()


def write_clip(path: Path, frames: int = 40, fps: float = 10.0, size: tuple[int, int] = (96, 64)) -> Path:
    """A Motion-JPEG AVI (or MPEG-4 MP4, by the name) whose blue channel grows by 5 a frame."""
    code = "MJPG" if path.suffix == ".avi" else "mp4v"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*code), fps, size)
    for index in range(frames):
        frame = np.full((size[1], size[0], 3), (index * 5 % 256, 120, 60), np.uint8)
        writer.write(frame)
    writer.release()
    return path


def damage_frames(path: Path, frames: tuple[int, ...]) -> Path:
    """The AVI with some frames' bytes overwritten, beside the original."""
    data = bytearray(path.read_bytes())
    starts = [match.start() for match in re.finditer(rb"00dc(?=....\xff\xd8\xff)", data, re.DOTALL)]
    for frame in frames:
        size = int.from_bytes(data[starts[frame] + 4 : starts[frame] + 8], "little")
        data[starts[frame] + 8 : starts[frame] + 8 + size] = bytes(size)
    damaged = path.with_name("damaged.avi")
    damaged.write_bytes(data)
    return damaged


def image_job(data: bytes, options: ImageOptions = ImageOptions(), sha256: bytes = b"") -> MediaJob:  # noqa: B008
    """A job for one picture."""
    return MediaJob(Modality.IMAGE, MediaBytes(data, sha256), options, RULES, LIMITS)


def video_job(media: MediaBytes, options: VideoOptions = VideoOptions()) -> MediaJob:  # noqa: B008  (frozen)
    """A job for one clip."""
    return MediaJob(Modality.VIDEO, media, options, RULES, LIMITS)
