"""The torchcodec video backend, for who has it: it brings torch into each process that uses it.

Only pool processes import it, and only where it is the backend in use: the gateway itself stays without torch. It
needs FFmpeg's shared libraries on the system. In an AVI whose frames are stored out of order it may give the last few
under each other's index.

Next: gateway/media/decode.py
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gateway.media.video import VideoInfo, check_container, steady_fps, unreadable


class TorchCodecReader:
    """An open file; see VideoReader.

    Args:
        decoder: torchcodec's VideoDecoder over it, which has listed its packets.
    """

    def __init__(self, decoder: Any) -> None:
        self._decoder = decoder
        about = decoder.metadata
        self._begin = about.begin_stream_seconds_from_content or 0.0
        total = about.num_frames_from_content or 0
        rate = about.average_fps_from_header or None
        self.end: int | None = None
        self.times: dict[int, float] = {}
        if rate is None and total:  # nor does a container without a rate say how long its last frame is shown
            rate = steady_fps(None, total - 1, self._time_of(total - 1))
        fps = steady_fps(rate, total, (about.end_stream_seconds_from_content or 0.0) - self._begin)
        self.info = VideoInfo(total, fps, about.height or 0, about.width or 0)

    def count(self, limit: int) -> int:
        """See VideoReader; the list of packets is exact."""
        return self.info.total_frames

    def read(self, indices: Sequence[int]) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """See VideoReader."""
        self.times = {}
        for index in indices:
            try:
                frame = self._decoder.get_frame_at(index)
            except RuntimeError:  # its only word for a frame that does not decode
                continue
            self.times[index] = frame.pts_seconds - self._begin
            yield index, np.ascontiguousarray(frame.data.numpy())

    def _time_of(self, index: int) -> float:
        try:
            return float(self._decoder.get_frame_at(index).pts_seconds - self._begin)
        except RuntimeError:
            return 0.0

    def close(self) -> None:
        """See VideoReader."""
        self._decoder = None


class TorchCodecLoader:
    """Opens clips with torchcodec; see VideoLoader."""

    name = "torchcodec"

    def __init__(self) -> None:
        from torchcodec.decoders import VideoDecoder

        self._decoder = VideoDecoder

    def open(self, path: Path) -> TorchCodecReader:
        """See VideoLoader."""
        with path.open("rb") as file:
            check_container(file.read(16))
        try:
            decoder = self._decoder(str(path), dimension_order="NHWC", num_ffmpeg_threads=1, seek_mode="exact")
        except (RuntimeError, ValueError):
            raise unreadable() from None
        return TorchCodecReader(decoder)
