"""Clips that the tests write themselves: by OpenCV or PyAV, then bent into shape byte by byte.

Next: tests/unit/gateway/media/test_media_loaders.py
"""

import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
from numpy.typing import NDArray

av.logging.set_level(av.logging.PANIC)
MILLISECONDS = Fraction(1, 1000)
# Corners: red, green, blue, gray.
CORNERS = np.array([[[200, 40, 40], [40, 200, 40]], [[40, 40, 200], [120, 120, 120]]], np.uint8)


def frame_of(index: int, height: int = 64, width: int = 96) -> NDArray[np.uint8]:
    """(height, width, 3): four coloured corners, and a square in the middle whose brightness counts frames."""
    rows, columns = np.arange(height) * 2 // height, np.arange(width) * 2 // width
    picture = CORNERS[rows][:, columns]
    picture[height // 3 : -(height // 3), width // 3 : -(width // 3)] = 20 + index * 8 % 224
    return picture


def index_of(picture: NDArray[np.uint8]) -> int:
    """Which of the first 28 frames a picture is."""
    height, width = picture.shape[:2]
    middle = picture[height // 2 - 4 : height // 2 + 4, width // 2 - 4 : width // 2 + 4]
    return round((float(middle.mean()) - 20) / 8)


def write_mjpeg(path: Path, frames: int, fps: float = 10.0, size: tuple[int, int] = (64, 96)) -> Path:
    """A Motion-JPEG AVI by OpenCV; size is (height, width), which it makes even."""
    height, width = size
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), fps, (width, height))
    for index in range(frames):
        writer.write(np.ascontiguousarray(frame_of(index, height, width)[..., ::-1]))
    writer.release()
    return path


def write_h264(path: Path, times_ms: Sequence[int], key_every: int = 8) -> Path:
    """An H.264 file, B-frames included, whose n-th frame is shown at times_ms[n]; its header says 10 a second."""
    options = {"crf": "12", "g": str(key_every), "bf": "2"}
    return _write(path, times_ms, "libx264", "yuv420p", (64, 96), options)


def write_reordered_avi(path: Path, frames: int) -> Path:
    """An AVI, which has no place for times, of H.264 with B-frames, at 10 frames a second."""
    return _write(path, range(frames), "libx264", "yuv420p", (64, 96), {"crf": "12", "bf": "2"}, Fraction(1, 10))


def write_odd(path: Path, frames: int, size: tuple[int, int]) -> Path:
    """A Motion-JPEG file of any size, (height, width), at 10 frames a second."""
    return _write(path, range(0, 100 * frames, 100), "mjpeg", "yuvj420p", size, {"qmin": "1", "qmax": "2"})


def _write(
    path: Path,
    ticks: Sequence[int],
    codec: str,
    layout: str,
    size: tuple[int, int],
    options: dict[str, str],
    tick: Fraction = MILLISECONDS,
) -> Path:
    with av.open(path, "w") as container:
        stream = container.add_stream(codec, rate=10, options=options)
        stream.height, stream.width = size
        stream.pix_fmt = layout
        stream.time_base = stream.codec_context.time_base = tick
        for index, time in enumerate(ticks):
            frame = av.VideoFrame.from_ndarray(frame_of(index, *size), format="rgb24")
            frame.pts, frame.time_base = time, tick
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def turn(path: Path, degrees: int) -> Path:
    """An MP4 whose header says that it is shown turned clockwise."""
    cosine, sine = {0: (1, 0), 90: (0, 1), 180: (-1, 0), 270: (0, -1)}[degrees]
    one = 1 << 16
    matrix = struct.pack(">9i", cosine * one, sine * one, 0, -sine * one, cosine * one, 0, 0, 0, 1 << 30)
    data = bytearray(path.read_bytes())
    at = data.find(b"tkhd") + 4 + 40  # behind version, flags, times, track, duration, layer and volume
    data[at : at + 36] = matrix
    path.write_bytes(data)
    return path


def forget_rate(path: Path) -> Path:
    """A Matroska file without the field that gives its rate."""
    data = bytearray(path.read_bytes())
    at = data.find(b"\x23\xe3\x83")  # DefaultDuration, 3 bytes of name and 1 of size, becomes as much of nothing
    assert at > 0
    data[at : at + 3] = bytes([0xEC, 0x80 | (data[at + 3] & 0x7F) + 2, 0])
    path.write_bytes(data)
    return path


def write_vp8(path: Path, frames: int, hidden: int) -> Path:
    """A WebM file of which one frame is marked as one for reference alone."""
    times = range(0, 100 * frames, 100)
    _write(path, times, "libvpx", "yuv420p", (64, 96), {"crf": "4", "lag-in-frames": "0", "g": "1"})
    with av.open(path) as container:
        packet = [bytes(packet) for packet in container.demux(video=0) if packet.size][hidden]
    data = path.read_bytes()
    assert data.count(packet) == 1
    path.write_bytes(data.replace(packet, bytes([packet[0] & ~0x10]) + packet[1:]))
    return path


def write_sound(path: Path) -> Path:
    """An MP4 that holds sound and no picture."""
    with av.open(path, "w") as container:
        stream = container.add_stream("aac", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path
