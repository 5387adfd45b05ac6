"""A pool process: takes one job at a time, decodes and resizes, answers with numbers and leaves pixels in place.

The control channel carries small JSON messages (wire.py); bytes come and go in shared memory. Nothing is pickled.
Started by pool.py as `python -m gateway.media.child CONFIG`.

Next: gateway/media/pool.py
"""

import dataclasses
import itertools
import json
import mmap
import socket
import sys
import traceback
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gateway.media import sandbox
from gateway.media.decode import (
    ImageWork,
    Pixels,
    VideoWork,
    process_frames,
    process_image,
    process_video,
    work_from_json,
)
from gateway.media.loaders import LoaderMissingError, load
from gateway.media.problem import MediaProblem
from gateway.media.resize import Resizer, load_resizer
from gateway.media.series.work import Samples, SeriesWork, process_series
from gateway.media.video import VideoLoader
from gateway.media.wire import ALIGNMENT, receive, send

FILE_NAME = "clip"


class Region:
    """The shared memory: a job's input at its start, its result behind."""

    def __init__(self, memory: mmap.mmap) -> None:
        self.bytes = np.frombuffer(memory, dtype=np.uint8)
        self.result_at = 0

    def inputs(self, sizes: list[int]) -> list[memoryview]:
        """The input's pieces; a result will stand behind them."""
        ends = np.cumsum([0, *sizes]).tolist()
        self.result_at = -(-ends[-1] // ALIGNMENT) * ALIGNMENT
        return [self.bytes[a:b].data for a, b in itertools.pairwise(ends)]

    def allocate(self, shape: tuple[int, ...]) -> NDArray[np.uint8]:
        """The place for the result.

        Raises:
            MemoryError: It does not fit.
        """
        size = int(np.prod(shape))
        if self.result_at + size > len(self.bytes):
            raise MemoryError("the result does not fit into the shared memory")
        return self.bytes[self.result_at : self.result_at + size].reshape(shape)


def run(job: dict[str, Any], region: Region, loader: VideoLoader, resize: Resizer) -> Pixels | Samples:
    """Do one job.

    Raises:
        MediaProblem: The medium cannot be served.
        MemoryError: It needs more than the process may have.
    """
    parts = region.inputs(job["sizes"])
    if job["modality"] == "time_series":
        return process_series(parts[0], SeriesWork.from_json(job["work"]), region.allocate)
    work = work_from_json(job["modality"], job["work"])
    if isinstance(work, ImageWork):
        return process_image(parts[0], work, resize, region.allocate)
    if job["folder"] is None:
        return process_frames(parts, work, resize, region.allocate)
    return _run_file(Path(job["folder"]) / FILE_NAME, parts[0], work, loader, resize, region)


def _run_file(
    path: Path, data: memoryview, work: VideoWork, loader: VideoLoader, resize: Resizer, region: Region
) -> Pixels:
    try:
        path.write_bytes(data)
        return process_video(path, work, loader, resize, region.allocate)
    finally:
        path.unlink(missing_ok=True)


def answer(job: dict[str, Any], region: Region, loader: VideoLoader, resize: Resizer) -> dict[str, Any]:
    """Do one job and say how it went: {"pixels"}, {"samples"}, {"problem"}, or {"failure"} for a fault of ours."""
    try:
        done = run(job, region, loader, resize)
    except MediaProblem as problem:
        return {"problem": vars(problem)}
    except MemoryError:
        text = "The media need more memory to decode than the server gives."
        return {"problem": _exhausted(text)}
    except Exception:
        return {"failure": traceback.format_exc(limit=-8)}
    if isinstance(done, Samples):
        return {"samples": done.to_json(region.result_at)}
    result = {field.name: getattr(done, field.name) for field in dataclasses.fields(done)}
    result["array"] = {"offset": region.result_at, "shape": done.array.shape}
    result["content_hash"] = done.content_hash.hex()
    result["plan"] = None if done.plan is None else dataclasses.asdict(done.plan)
    return {"pixels": result}


def _exhausted(message: str) -> dict[str, str]:
    return vars(MediaProblem(message, reason="MEDIA_MEMORY", field="media", code="RESOURCE_EXHAUSTED"))


def main() -> None:
    """Serve jobs until the channel closes."""
    config = json.loads(sys.argv[1])
    sandbox.end_with(config["lifeline"], Path(config["folder"]))
    memory = mmap.mmap(config["memory"], config["memory_bytes"])
    region = Region(memory)
    channel = socket.socket(fileno=config["channel"])
    try:
        loader = load(config["video_loader"])
    except LoaderMissingError as error:
        send(channel, {"missing": str(error)})
        return
    resize = load_resizer([Path(directory) for directory in config["resize_search"]])
    sandbox.enter(config["memory_limit_bytes"], config["memory_bytes"])
    send(channel, {"ready": resize.name})
    while (job := receive(channel)) is not None:
        sandbox.allow_cpu(config["cpu_limit_s"])
        send(channel, answer(job, region, loader, resize))


if __name__ == "__main__":
    main()
