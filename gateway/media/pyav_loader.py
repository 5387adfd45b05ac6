"""The PyAV video backend: FFmpeg's own packets and clocks, so that each frame is known by its time.

The packets are listed before anything is decoded: the list says how many frames there are, when each is shown, and
where decoding may begin. A packet that does not decode is a frame that is missing, whatever stands before or after it.

Next: gateway/media/torchcodec_loader.py
"""

import errno
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gateway.media.sandbox import FORMATS
from gateway.media.video import VideoInfo, check_container, steady_fps, unreadable

_OPTIONS = {"protocol_whitelist": "file", "format_whitelist": FORMATS}
_SEEK_GAP = 60  # frames; below it, going on is no slower than starting at a key frame
_VP8_SHOWN = 0x10  # bit of a VP8 packet's first byte: without it, the picture is for reference alone


class PyAVReader:
    """An open file; see VideoReader.

    Args:
        av: The module.
        path: The file.
    """

    def __init__(self, av: Any, path: Path) -> None:
        self._av = av
        self._path = str(path)
        self._container: Any = None
        self._open()
        self._to_rgb = av.video.reformatter.VideoReformatter()
        self._clock: list[int] = []  # when each frame is shown, in ticks; empty = by order of output
        self._keys: list[int] = []  # indices at which decoding may begin
        self.end: int | None = None
        self.times: dict[int, float] = {}
        rate = self._stream.average_rate
        context = self._stream.codec_context
        # The header's count is not asked: count() is exact.
        self.info = VideoInfo(0, float(rate) if rate else None, context.height, context.width)

    def count(self, limit: int) -> int:
        """See VideoReader; reads the packets and decodes none."""
        shown: list[int | None] = []
        keys: set[int] = set()
        try:
            for packet in self._packets():
                shown.append(packet.pts)
                if packet.is_keyframe and packet.pts is not None:
                    keys.add(packet.pts)
                if len(shown) > limit:
                    break
        except self._av.error.FFmpegError:
            pass  # what was listed up to here can be read
        ticks = sorted({tick for tick in shown if tick is not None})
        # AVI says when to decode, not when to show: where the two differ, only the order of output is true.
        is_reordered = self._container.format.name == "avi" and self._stream.codec_context.has_b_frames
        if len(ticks) == len(shown) and not is_reordered:
            self._clock = ticks
            self._keys = [index for index, tick in enumerate(ticks) if tick in keys]
            fps = steady_fps(self.info.fps, len(ticks) - 1, self._seconds(ticks[-1] - ticks[0]) if ticks else 0.0)
            self.info = replace(self.info, fps=fps)
        return len(shown)

    def read(self, indices: Sequence[int]) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """See VideoReader."""
        self.times = {}
        self._restart()
        for key, part in self._segments(indices):
            if key is not None:
                self._seek(key)
            asked = set(part)
            for index, frame in self._decode():
                if index in asked and (pixels := self._pixels(frame)) is not None:
                    if self._clock:
                        self.times[index] = self._seconds(self._clock[index] - self._clock[0])
                    yield index, pixels
                if index >= part[-1]:
                    break

    def close(self) -> None:
        """See VideoReader."""
        self._container.close()

    def _open(self) -> None:
        error = self._av.error
        try:
            self._container = self._av.open(self._path, options=_OPTIONS, metadata_errors="replace")
        except error.FFmpegError:  # no memory, too: a header may ask for any amount of it
            raise unreadable() from None
        if not self._container.streams.video:
            self._container.close()
            raise unreadable()
        self._stream = self._container.streams.video[0]
        context = self._stream.codec_context
        if context is None:  # a codec that this FFmpeg does not have
            self._container.close()
            raise unreadable()
        context.thread_count = 1

    def _restart(self) -> None:
        self._container.close()
        self._open()

    def _packets(self) -> Iterator[Any]:
        """Packets of shown pictures, in the file's order."""
        is_vp8 = self._stream.codec_context.name == "vp8"
        for packet in self._container.demux(self._stream):
            is_hidden = is_vp8 and packet.size and not memoryview(packet)[0] & _VP8_SHOWN
            if packet.size and not packet.is_discard and not is_hidden:
                yield packet

    def _segments(self, indices: Sequence[int]) -> list[tuple[int | None, list[int]]]:
        """Cut the asked frames where a jump to a key frame (its index; None = none) saves decoding."""
        segments: list[tuple[int | None, list[int]]] = [(None, [])]
        position = 0
        for index in indices:
            place = bisect_right(self._keys, index) - 1
            if place >= 0 and self._keys[place] - position >= _SEEK_GAP:
                segments.append((self._keys[place], []))
            segments[-1][1].append(index)
            position = index
        return [segment for segment in segments if segment[1]]

    def _seek(self, key: int) -> None:
        try:
            self._container.seek(self._clock[key], stream=self._stream)
        except self._av.error.FFmpegError:
            self._restart()  # a container that cannot seek is read from its start

    def _decode(self) -> Iterator[tuple[int, Any]]:
        """(index, frame) of what decodes, from where the container stands."""
        place = {tick: index for index, tick in enumerate(self._clock)}
        output = 0  # frames that came out, and packets that gave none for being damaged
        packets = self._container.demux(self._stream)
        while (packet := self._next(packets)) is not None:
            try:
                frames = packet.decode()
            except self._av.error.FFmpegError as error:
                raise_for_memory(error)
                output += 1
                continue
            for frame in frames:
                index = place.get(frame.pts, -1) if self._clock else output
                output += 1
                if index >= 0:
                    yield index, frame

    def _next(self, packets: Iterator[Any]) -> Any:
        """The next packet; None at the end of what can be read."""
        try:
            return next(packets, None)
        except self._av.error.FFmpegError:
            return None

    def _pixels(self, frame: Any) -> NDArray[np.uint8] | None:
        try:
            rgb = self._to_rgb.reformat(frame, format="rgb24", interpolation="BICUBIC").to_ndarray()
        except self._av.error.FFmpegError as error:
            raise_for_memory(error)
            return None  # a layout of pixels that has no meaning as colours
        except ValueError:
            return None
        # FFmpeg tells by how much the picture is to be turned counterclockwise.
        return np.ascontiguousarray(np.rot90(rgb, round(frame.rotation / 90) % 4))

    def _seconds(self, ticks: int) -> float:
        return float(ticks * self._stream.time_base)


def raise_for_memory(error: Any) -> None:
    """Turn FFmpeg's lack of memory while decoding into Python's; what a header asks for says nothing of ours.

    Raises:
        MemoryError: It is that.
    """
    if error.errno == errno.ENOMEM:
        raise MemoryError("FFmpeg found no memory") from None


class PyAVLoader:
    """Opens clips with PyAV; see VideoLoader."""

    name = "pyav"

    def __init__(self) -> None:
        import av
        import av.logging
        import av.video.reformatter

        av.logging.set_level(av.logging.PANIC)
        self._av = av

    def open(self, path: Path) -> PyAVReader:
        """See VideoLoader."""
        with path.open("rb") as file:
            check_container(file.read(16))
        return PyAVReader(self._av, path)
