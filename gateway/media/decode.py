"""What a pool process does with one medium: bytes to sampled, resized pixels with grid, times and hash.

A clip is read frame by frame, each resized as it comes, so that memory holds the result and one frame. The size
depends on how many frames there are; where some turn out to be unreadable and that changes the size, the clip is read
once more.

Next: gateway/media/child.py
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gateway.media.image import decode_image
from gateway.media.options import ImageOptions, ServerLimits, VideoOptions
from gateway.media.plan import SamplingPlan, resolve_sampling
from gateway.media.problem import MediaProblem
from gateway.media.resize import Resizer
from gateway.media.rules import MediaRules, image_budget, image_size, video_budget, video_size
from gateway.media.video import FrameListReader, VideoLoader, VideoReader, unreadable
from tessera.hashing import content_hash

_MAX_PASSES = 4
Allocate = Callable[[tuple[int, ...]], NDArray[np.uint8]]


@dataclass(frozen=True)
class ImageWork:
    """One picture to process."""

    options: ImageOptions
    rules: MediaRules
    limits: ServerLimits


@dataclass(frozen=True)
class VideoWork:
    """One clip to process; see FrameList in source.py for source_fps and timestamps."""

    options: VideoOptions
    rules: MediaRules
    limits: ServerLimits
    source_fps: float | None = None
    timestamps: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Pixels:
    """A processed medium.

    Attributes:
        array: (frames, height, width, 3) uint8, before temporal padding.
        grid_thw: Patches along time, height, width.
        content_hash: 32 bytes.
        source_size: (height, width) as decoded.
        min_pixels, max_pixels: The budget that held.
        plan: Of a clip.
    """

    array: NDArray[np.uint8]
    grid_thw: tuple[int, int, int]
    content_hash: bytes
    source_size: tuple[int, int]
    min_pixels: int
    max_pixels: int
    plan: SamplingPlan | None = None


def process_image(data: bytes | memoryview, work: ImageWork, resize: Resizer, allocate: Allocate) -> Pixels:
    """Decode and resize one picture.

    Args:
        data: An encoded file.
        work: Options, rules and limits.
        resize: Which resize runs.
        allocate: Gives the array for the result, by shape.

    Raises:
        MediaProblem: The picture or an option cannot be served.
    """
    low, high = image_budget(work.options, work.rules, work.limits)
    pixels = decode_image(data, work.limits.max_decoded_pixels)
    height, width = pixels.shape[:2]
    out = allocate((1, *image_size(height, width, work.rules, low, high), 3))
    resize(pixels[None], out)
    return _pixels("image", out, (height, width), (low, high), work.rules, None)


def process_frames(
    frames: Sequence[bytes | memoryview], work: VideoWork, resize: Resizer, allocate: Allocate
) -> Pixels:
    """Decode, sample and resize a clip that is a list of pictures; see process_image."""
    reader = FrameListReader(frames, work.source_fps, work.limits.max_decoded_pixels)
    return _process_clip(reader, work, resize, allocate)


def process_video(path: Path, work: VideoWork, loader: VideoLoader, resize: Resizer, allocate: Allocate) -> Pixels:
    """Decode, sample and resize a clip that is a file; see process_image."""
    reader = loader.open(path)
    try:
        return _process_clip(reader, work, resize, allocate)
    finally:
        reader.close()


def _process_clip(reader: VideoReader, work: VideoWork, resize: Resizer, allocate: Allocate) -> Pixels:
    budget = video_budget(work.options, work.rules, work.limits)
    _check_frame_size(reader.info.height, reader.info.width, work.limits)
    total = reader.info.total_frames or reader.count(work.limits.max_source_frames)
    plan = _plan(total, reader, work)
    for _ in range(_MAX_PASSES):
        clip = _Clip(plan, work, budget, resize, allocate)
        for index, frame in reader.read(sorted(set(plan.frame_indices))):
            clip.add(index, frame)
        if reader.end is not None and _is_lie(reader.end, plan.total_frames):
            plan = _plan(reader.end, reader, work)
            continue
        kept = plan.keep(clip.readable)
        if kept == plan or clip.compact(kept):
            array = clip.array(len(kept.frame_indices))
            return _pixels("video", array, clip.source, budget, work.rules, kept.at(reader.times))
        plan = kept
    raise unreadable()


def _plan(total: int, reader: VideoReader, work: VideoWork) -> SamplingPlan:
    fps = reader.info.fps
    duration = None if isinstance(reader, FrameListReader) or not fps else total / fps
    return resolve_sampling(total, fps, work.options, work.rules, work.limits, work.timestamps, duration)


def _is_lie(end: int, total: int) -> bool:
    """Whether so many frames are missing at the end that the header's count is wrong, rather than a frame damaged."""
    return total - end > max(1, total // 10)


class _Clip:
    """The frames of one pass, resized into place as they come."""

    def __init__(
        self, plan: SamplingPlan, work: VideoWork, budget: tuple[int, int], resize: Resizer, allocate: Allocate
    ) -> None:
        self._plan, self._work, self._budget = plan, work, budget
        self._resize, self._allocate = resize, allocate
        self._out: NDArray[np.uint8] | None = None
        self._places: dict[int, list[int]] = {}
        for place, index in enumerate(plan.frame_indices):
            self._places.setdefault(index, []).append(place)
        self.readable = [False] * len(plan.frame_indices)
        self.source = (0, 0)

    def add(self, index: int, frame: NDArray[np.uint8]) -> None:
        """Resize one frame into its places; a frame of another size than the first counts as unreadable."""
        if self._out is None:
            self._start(frame.shape[0], frame.shape[1])
        assert self._out is not None
        if frame.shape[:2] != self.source:
            return
        first, *more = self._places[index]
        self._resize(frame[None], self._out[first : first + 1])
        self.readable[first] = True
        for place in more:
            np.copyto(self._out[place], self._out[first])
            self.readable[place] = True

    def _start(self, height: int, width: int) -> None:
        _check_frame_size(height, width, self._work.limits)
        self.source = (height, width)
        self._out = self._allocate((len(self.readable), *self._size(len(self.readable)), 3))

    def _size(self, frames: int) -> tuple[int, int]:
        return video_size(frames, *self.source, self._work.rules, *self._budget)

    def compact(self, kept: SamplingPlan) -> bool:
        """Close the gaps of unreadable frames; False where fewer frames have another size and must be read again."""
        assert self._out is not None
        if self._out.shape[1:3] != self._size(len(kept.frame_indices)):
            return False
        places = [place for place, ok in enumerate(self.readable) if ok]
        places = places * 2 if len(places) == 1 else places
        if len(places) == 2 and places[0] == places[1]:
            np.copyto(self._out[0], self._out[places[0]])
            np.copyto(self._out[1], self._out[0])
            return True
        for target, place in enumerate(places):
            if target != place:
                np.copyto(self._out[target], self._out[place])
        return True

    def array(self, frames: int) -> NDArray[np.uint8]:
        """The first `frames` frames."""
        assert self._out is not None
        return self._out[:frames]


def _check_frame_size(height: int, width: int, limits: ServerLimits) -> None:
    if height * width > limits.max_decoded_pixels:
        message = f"The video's frames have {width} x {height} pixels; at most {limits.max_decoded_pixels} are taken."
        raise MediaProblem(message, reason="VIDEO_TOO_LARGE", field="media", code="RESOURCE_EXHAUSTED")


def _pixels(
    modality: str,
    array: NDArray[np.uint8],
    source: tuple[int, int],
    budget: tuple[int, int],
    rules: MediaRules,
    plan: SamplingPlan | None,
) -> Pixels:
    grid = (
        -(-len(array) // rules.temporal_patch_size),
        array.shape[1] // rules.patch_size,
        array.shape[2] // rules.patch_size,
    )
    digest = content_hash(modality, "pixels_u8", "U8", array, grid)
    return Pixels(array, grid, digest, source, *budget, plan)


def work_from_json(modality: str, fields: dict[str, Any]) -> ImageWork | VideoWork:
    """The work that `dataclasses.asdict` and JSON turned into `fields`."""
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in fields["rules"].items()}
    rules = MediaRules(**values)
    limits = ServerLimits(**fields["limits"])
    if modality == "image":
        return ImageWork(ImageOptions(**fields["options"]), rules, limits)
    options = dict(fields["options"])
    options["frame_indices"] = tuple(options["frame_indices"])
    times = fields["timestamps"]
    return VideoWork(
        VideoOptions(**options), rules, limits, fields["source_fps"], None if times is None else tuple(times)
    )
