"""Video files to frames on the client's side: with PyAV, which knows each frame's time, or else with OpenCV.

Next: encoding.py.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from tessera_client.errors import InvalidArgument

if TYPE_CHECKING:
    from numpy.typing import NDArray

Choose = Callable[[Sequence[float]], list[int]]


def decode_clip(data: bytes, choose: Choose) -> tuple[NDArray[Any], tuple[float, ...]]:
    """Return frames of a clip and their times.

    Args:
        data: a video file.
        choose: takes the times of all frames, in seconds; returns the indices of those to keep, ascending.

    Returns:
        (frames, height, width, 3) uint8, and seconds for each.

    Raises:
        InvalidArgument: it is no video, or none of its chosen frames can be read.
        ImportError: neither PyAV nor OpenCV is installed.
    """
    frames, times = _decoder()(data, choose)
    if not frames:
        raise _unreadable()
    import numpy as np

    return np.stack(frames), tuple(times)


def _decoder() -> Callable[[bytes, Choose], tuple[list[Any], list[float]]]:
    try:
        import av  # noqa: F401 - only asks whether it is there
    except ImportError:
        try:
            import cv2  # noqa: F401 - likewise
        except ImportError as error:
            raise ImportError("PyAV or OpenCV is needed to read video files here: pip install av") from error
        return with_opencv
    return with_pyav


def with_pyav(data: bytes, choose: Choose) -> tuple[list[Any], list[float]]:
    """Decode with PyAV."""
    import av
    import numpy as np

    try:
        container: Any
        with av.open(io.BytesIO(data), metadata_errors="replace") as container:
            stream = container.streams.video[0]
            ticks = sorted({packet.pts for packet in container.demux(stream) if packet.pts is not None})
            times = [float((tick - ticks[0]) * stream.time_base) for tick in ticks]
            wanted = {index: times[index] for index in (choose(times) if ticks else ())}
            # AVI says when to decode, not when to show: where the two differ, frames are known by their order.
            by_order = container.format.name == "avi" and stream.codec_context.has_b_frames
        place = {tick: index for index, tick in enumerate(ticks)}
        frames, kept, output = [], [], 0
        with av.open(io.BytesIO(data), metadata_errors="replace") as container:
            for packet in container.demux(video=0):
                for frame in _decoded(av, packet):
                    index = output if by_order else place.get(frame.pts, -1)
                    output += 1
                    if index in wanted:
                        turned = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90) % 4)
                        frames.append(np.ascontiguousarray(turned))
                        kept.append(wanted[index])
    except (av.error.FFmpegError, IndexError):
        raise _unreadable() from None
    return frames, kept


def with_opencv(data: bytes, choose: Choose) -> tuple[list[Any], list[float]]:
    """Decode with OpenCV, which reads files alone."""
    import cv2

    with tempfile.NamedTemporaryFile(suffix=".video") as file:
        file.write(data)
        file.flush()
        times: list[float] = []
        capture = cv2.VideoCapture(file.name)
        while capture.grab():
            times.append(capture.get(cv2.CAP_PROP_POS_MSEC) / 1000)
        rate = capture.get(cv2.CAP_PROP_FPS)
        capture.release()
        if any(a > b for a, b in pairwise(times)):  # the container has no times for all frames
            times = [index / (rate or 24.0) for index in range(len(times))]
        wanted = set(choose(times)) if times else set()
        frames, kept = [], []
        capture = cv2.VideoCapture(file.name)
        for index, time in enumerate(times):
            if not capture.grab():
                break
            if index in wanted:
                ok, frame = capture.retrieve()
                if ok:
                    frames.append(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB))
                    kept.append(time)
        capture.release()
    begin = times[0] if times else 0.0  # not every container's clock begins at 0
    return frames, [time - begin for time in kept]


def _decoded(av: Any, packet: Any) -> Sequence[Any]:
    try:
        return packet.decode()
    except av.error.FFmpegError:  # one broken frame is left out, with its time
        return ()


def _unreadable() -> InvalidArgument:
    return InvalidArgument("Not a video that can be read.", reason="MEDIA_SOURCE")
