"""The OpenCV video backend: FFmpeg inside, only the asked frames converted and kept.

A frame that does not decode counts as one frame and is skipped. Frames of a clip of variable rate are counted as they
come, and each has its own time; only behind a long jump is a frame found by its time, so that its index is nominal
there. The process's environment (sandbox.py) holds FFmpeg to local files and plain containers.

Next: gateway/media/pyav_loader.py
"""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from gateway.media.video import VideoInfo, check_container, unreadable

_MAX_FAILURES = 64  # consecutive frames that do not decode: more is the end of what can be read
_SEEK_GAP = 300  # frames; below it, going on is no slower than starting at a key frame


class OpenCVReader:
    """An open file; see VideoReader."""

    def __init__(self, path: Path) -> None:
        self._path = str(path)
        self._capture = self._open()
        self._position = 0  # index of the next frame
        self._failures = 0  # consecutive, up to the position
        self._begin: float | None = None  # seconds of the first frame: not every container's clock begins at 0
        fps = self._capture.get(cv2.CAP_PROP_FPS)
        self.end: int | None = None
        self.times: dict[int, float] = {}
        self.info = VideoInfo(
            total_frames=self._property(cv2.CAP_PROP_FRAME_COUNT),
            fps=fps if math.isfinite(fps) and fps > 0 else None,
            height=self._property(cv2.CAP_PROP_FRAME_HEIGHT),
            width=self._property(cv2.CAP_PROP_FRAME_WIDTH),
        )

    def _open(self) -> cv2.VideoCapture:
        capture = cv2.VideoCapture(self._path, cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
        if not capture.isOpened():
            raise unreadable()
        return capture

    def _property(self, which: int) -> int:
        value = self._capture.get(which)
        return int(value) if math.isfinite(value) and value > 0 else 0

    def count(self, limit: int) -> int:
        """See VideoReader."""
        self._restart()
        last = 0
        while self._position <= limit and self._failures < _MAX_FAILURES:
            if self._grab():
                last = self._position
        return last

    def read(self, indices: Sequence[int]) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """See VideoReader."""
        self.end = None
        self.times = {}
        last = 0
        self._restart()
        for index in indices:
            if index - self._position >= _SEEK_GAP:
                self._seek(index)
            grabbed = False
            while self._position <= index and self._failures < _MAX_FAILURES:
                grabbed = self._grab()
                last = self._position if grabbed else last
            if self._failures >= _MAX_FAILURES:
                break
            if grabbed:
                ok, frame = self._capture.retrieve()
                if ok and frame.ndim == 3 and frame.shape[2] == 3:
                    self.times[index] = self._seconds() - (self._begin or 0.0)
                    yield index, np.asarray(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB), dtype=np.uint8)
        if self._failures:
            self.end = last

    def close(self) -> None:
        """See VideoReader."""
        self._capture.release()

    def _grab(self) -> bool:
        ok = bool(self._capture.grab())
        if ok and self._begin is None:
            self._begin = self._seconds() - self._position / (self.info.fps or 1)
        self._position += 1
        self._failures = 0 if ok else self._failures + 1
        return ok

    def _seconds(self) -> float:
        return float(self._capture.get(cv2.CAP_PROP_POS_MSEC)) / 1000

    def _seek(self, index: int) -> None:
        self._capture.set(cv2.CAP_PROP_POS_FRAMES, index)
        if round(self._capture.get(cv2.CAP_PROP_POS_FRAMES)) == index:
            self._position = index
            return
        # The container cannot say where it is: go there frame by frame.
        position = self._position
        self._restart()
        while self._position < position and self._failures < _MAX_FAILURES:
            self._grab()

    def _restart(self) -> None:
        if self._position:
            self._capture.release()
            self._capture = self._open()
        self._position = self._failures = 0


class OpenCVLoader:
    """Opens clips with OpenCV; see VideoLoader."""

    name = "opencv"

    def __init__(self) -> None:
        cv2.setNumThreads(1)

    def open(self, path: Path) -> OpenCVReader:
        """See VideoLoader."""
        with path.open("rb") as file:
            check_container(file.read(16))
        return OpenCVReader(path)
