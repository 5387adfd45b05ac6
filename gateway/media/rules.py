"""The size rule of the Qwen-like families: sides in whole tokens, pixels within a budget, aspect kept.

A budget counts pixels: height * width of a picture, frames * height * width of a clip. Bounds and rounding are those
of transformers 5.23 (Qwen2VLImageProcessor, Qwen3VLVideoProcessor), so that grids are equal.

Next: gateway/media/plan.py
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gateway.media.options import ImageOptions, ServerLimits, VideoOptions
from gateway.media.problem import MediaProblem

MAX_ASPECT = 200
BICUBIC = 3


@dataclass(frozen=True)
class MediaRules:
    """How a checkpoint wants its pictures and clips; the defaults are those of the processor classes.

    Attributes:
        patch_size: Pixels along a patch.
        merge_size: Patches along a token.
        temporal_patch_size: Frames of a temporal patch.
        image_min_pixels, image_max_pixels: Budget of a picture.
        video_min_pixels, video_max_pixels: Budget of a whole clip.
        num_frames: Frames of every clip; None = by fps.
        fps: Frames to use for each second; None with num_frames None = every frame within min_frames and max_frames.
        min_frames, max_frames: Bounds of the fps rule.
        cap_pixels_per_frame: Whether each frame of a clip is also held to max_video_tokens tokens.
        max_video_tokens: See cap_pixels_per_frame.
        image_mean, image_std, video_mean, video_std: Per channel, of values in [0, 1].
    """

    patch_size: int = 16
    merge_size: int = 2
    temporal_patch_size: int = 2
    image_min_pixels: int = 56 * 56
    image_max_pixels: int = 28 * 28 * 1280
    video_min_pixels: int = 128 * 32 * 32
    video_max_pixels: int = 32 * 32 * 768
    num_frames: int | None = None
    fps: float | None = 2.0
    min_frames: int = 4
    max_frames: int = 768
    cap_pixels_per_frame: bool = False
    max_video_tokens: int = 768
    image_mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    image_std: tuple[float, ...] = (0.5, 0.5, 0.5)
    video_mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    video_std: tuple[float, ...] = (0.5, 0.5, 0.5)

    @property
    def factor(self) -> int:
        """Pixels along one token."""
        return self.patch_size * self.merge_size

    @classmethod
    def from_checkpoint(cls, image: Mapping[str, Any], video: Mapping[str, Any] | None) -> "MediaRules":
        """Read the processor files of a checkpoint.

        Args:
            image: preprocessor_config.json, as parsed.
            video: video_preprocessor_config.json; None = the picture's file serves both, as in transformers.

        Raises:
            ValueError: The files ask for what is not served (no resize, another filter, two different patch sizes).
        """
        video = image if video is None else video
        base = cls()
        geometry = {}
        for name, image_default in (("patch_size", 14), ("merge_size", 2), ("temporal_patch_size", 2)):
            geometry[name] = int(image.get(name, image_default))
            if geometry[name] != int(video.get(name, getattr(base, name))):
                raise ValueError(f"the picture's and the clip's processor files differ in {name}")
        for config in (image, video):
            if not config.get("do_resize", True) or config.get("resample", BICUBIC) not in (None, BICUBIC):
                raise ValueError("only processors with do_resize and resample 3 (bicubic) are served")
        image_min, image_max = _budget(image, base.image_min_pixels, base.image_max_pixels)
        video_min, video_max = _budget(video, base.video_min_pixels, base.video_max_pixels)
        clip = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
        return cls(
            **geometry,
            image_min_pixels=int(image.get("min_pixels") or image_min),
            image_max_pixels=int(image.get("max_pixels") or image_max),
            video_min_pixels=video_min,
            video_max_pixels=video_max,
            num_frames=video.get("num_frames"),
            fps=video.get("fps", None if video.get("num_frames") else base.fps),
            min_frames=int(video.get("min_frames", base.min_frames)),
            max_frames=int(video.get("max_frames", base.max_frames)),
            cap_pixels_per_frame=bool(video.get("cap_pixels_per_frame", False)),
            max_video_tokens=int(video.get("max_video_tokens", base.max_video_tokens)),
            image_mean=tuple(image.get("image_mean", clip[0])),
            image_std=tuple(image.get("image_std", clip[1])),
            video_mean=tuple(video.get("image_mean", base.video_mean)),
            video_std=tuple(video.get("image_std", base.video_std)),
        )

    @classmethod
    def from_dir(cls, directory: str | Path) -> "MediaRules":
        """Read a checkpoint directory: processor_config.json where it nests both, else one file each.

        Raises:
            ValueError: See from_checkpoint; also where the directory has no picture processor file.
        """
        files = {}
        for name in ("processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json"):
            path = Path(directory) / name
            files[name] = json.loads(path.read_text()) if path.is_file() else {}
        nested = files["processor_config.json"]
        image = nested.get("image_processor") or files["preprocessor_config.json"]
        video = nested.get("video_processor") or files["video_preprocessor_config.json"] or None
        if not image:
            raise ValueError(f"{Path(directory).name} has no preprocessor_config.json")
        return cls.from_checkpoint(image, video)


def _budget(config: Mapping[str, Any], least: int, most: int) -> tuple[int, int]:
    size = config.get("size") or {}
    return int(size.get("shortest_edge", least)), int(size.get("longest_edge", most))


def image_budget(options: ImageOptions, rules: MediaRules, limits: ServerLimits) -> tuple[int, int]:
    """The pixel budget (min, max) that holds for one picture.

    Raises:
        MediaProblem: PIXEL_BUDGET where an option is below 1 or min exceeds max.
    """
    cap = limits.max_image_pixels or rules.image_max_pixels
    return _resolve_budget(options, rules.image_min_pixels, rules.image_max_pixels, cap)


def video_budget(options: VideoOptions, rules: MediaRules, limits: ServerLimits) -> tuple[int, int]:
    """The pixel budget (min, max) that holds for one clip, all its frames together.

    Raises:
        MediaProblem: PIXEL_BUDGET where an option is below 1 or min exceeds max.
    """
    cap = limits.max_video_pixels or rules.video_max_pixels
    return _resolve_budget(options, rules.video_min_pixels, rules.video_max_pixels, cap)


def _resolve_budget(options: ImageOptions | VideoOptions, least: int, most: int, cap: int) -> tuple[int, int]:
    for name in ("min_pixels", "max_pixels"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise MediaProblem(f"{name} must be at least 1.", reason="PIXEL_BUDGET", field=f"options.{name}")
    high = min(most if options.max_pixels is None else options.max_pixels, cap)
    # The family's own minimum gives way to the server's cap; the caller's does not.
    low = min(least, cap) if options.min_pixels is None else options.min_pixels
    if low > high:
        name = "min_pixels" if options.max_pixels is None else "max_pixels"
        message = f"min_pixels ({low}) is above max_pixels ({high}), of the request, the model or the server."
        raise MediaProblem(message, reason="PIXEL_BUDGET", field=f"options.{name}")
    return low, high


def image_size(height: int, width: int, rules: MediaRules, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """The (height, width) to which a picture is resized: multiples of `rules.factor` within the budget.

    Raises:
        MediaProblem: ASPECT_RATIO where one side is more than 200 times the other.
        Source: transformers 5.23, Qwen2VLImageProcessor.
    """
    _check_aspect(height, width)
    factor = rules.factor
    pixels = round(height / factor) * factor * round(width / factor) * factor
    return _fit(height, width, height * width, pixels, factor, min_pixels, max_pixels)


def video_size(
    frames: int, height: int, width: int, rules: MediaRules, min_pixels: int, max_pixels: int
) -> tuple[int, int]:
    """The (height, width) to which the frames of a clip are resized; the budget is on all frames together.

    Args:
        frames: Sampled frames, at least one temporal patch of them.

    Raises:
        MediaProblem: ASPECT_RATIO where one side is more than 200 times the other.
        Source: transformers 5.23, Qwen3VLVideoProcessor.
    """
    factor, depth = rules.factor, rules.temporal_patch_size
    if rules.cap_pixels_per_frame:
        share = min(rules.max_video_tokens * factor * factor, max_pixels // frames)
        max_pixels = max(share, int(min_pixels * 1.05)) * frames
    assert frames >= depth, "a shorter clip is doubled before its size is asked for"
    if height < factor or width < factor:
        scale = max(factor / height, factor / width)
        height, width = int(height * scale), int(width * scale)
    _check_aspect(height, width)
    pixels = round(frames / depth) * depth * round(height / factor) * factor * round(width / factor) * factor
    return _fit(height, width, frames * height * width, pixels, factor, min_pixels, max_pixels)


def _fit(
    height: int, width: int, volume: int, rounded: int, factor: int, min_pixels: int, max_pixels: int
) -> tuple[int, int]:
    """Scale both sides where the pixels after rounding leave the budget; `volume` are the pixels before."""
    if rounded > max_pixels:
        beta = math.sqrt(volume / max_pixels)
        return (
            max(factor, math.floor(height / beta / factor) * factor),
            max(factor, math.floor(width / beta / factor) * factor),
        )
    if rounded < min_pixels:
        beta = math.sqrt(min_pixels / volume)
        return math.ceil(height * beta / factor) * factor, math.ceil(width * beta / factor) * factor
    return round(height / factor) * factor, round(width / factor) * factor


def _check_aspect(height: int, width: int) -> None:
    if max(height, width) / min(height, width) > MAX_ASPECT:
        message = f"{height} x {width} pixels: one side is more than {MAX_ASPECT} times the other."
        raise MediaProblem(message, reason="ASPECT_RATIO", field="media")
