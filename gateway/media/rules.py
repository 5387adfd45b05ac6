"""The size rules of the families: sides in whole tokens, pixels within a budget, aspect kept.

A budget counts pixels: height * width of a picture, frames * height * width of a clip. GLM's processors take a picture
for a clip of one temporal patch: there its budget, in files and options alike, counts each pixel once for each frame of
the patch. Bounds and rounding are those of transformers 5.23 (Qwen2VLImageProcessor, Qwen3VLVideoProcessor,
Glm4vImageProcessor, Glm4vVideoProcessor), so that grids are equal.

Next: gateway/media/plan.py
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from gateway.media.options import ImageOptions, ServerLimits, VideoOptions
from gateway.media.problem import MediaProblem

MAX_ASPECT = 200
BICUBIC = 3
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

Family = Literal["qwen", "glm4v", "glm46v"]
"""Whose size and sampling rules: Qwen-VL's, GLM-4.1V's and 4.5V's, or GLM-4.6V's (another sampling rule)."""


@dataclass(frozen=True)
class MediaRules:
    """How a checkpoint wants its pictures and clips; the defaults are those of the Qwen processor classes.

    Attributes:
        family: Which strategies hold.
        patch_size: Pixels along a patch.
        merge_size: Patches along a token.
        temporal_patch_size: Frames of a temporal patch.
        image_min_pixels, image_max_pixels: Budget of a picture.
        video_min_pixels, video_max_pixels: Budget of a whole clip.
        num_frames: Frames of every clip; None = by fps.
        fps: Frames to use for each second; None with num_frames None = every frame within min_frames and max_frames,
            and for GLM-4.6V the rates of its own rule.
        min_frames, max_frames: Bounds of Qwen's fps rule; of the others, what their own rules lead to.
        fps_rule_s: GLM-4V: seconds of the longest clip that is sampled by fps; a longer one has as many frames.
        cap_pixels_per_frame: Whether each frame of a clip is also held to max_video_tokens tokens.
        max_video_tokens: See cap_pixels_per_frame.
        image_mean, image_std, video_mean, video_std: Per channel, of values in [0, 1].
    """

    family: Family = "qwen"
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
    fps_rule_s: float = 300.0
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
    def from_checkpoint(
        cls, image: Mapping[str, Any], video: Mapping[str, Any] | None, family: Family = "qwen"
    ) -> "MediaRules":
        """Read the processor files of a checkpoint.

        Args:
            image: preprocessor_config.json, as parsed.
            video: video_preprocessor_config.json; None = the picture's file serves both, as in transformers.
            family: Whose processor classes they configure.

        Raises:
            ValueError: The files ask for what is not served (no resize, another filter, two different patch sizes).
        """
        video = image if video is None else video
        image_base, video_base = CLASS_DEFAULTS[family]
        geometry = {}
        for name in ("patch_size", "merge_size", "temporal_patch_size"):
            geometry[name] = int(image.get(name, getattr(image_base, name)))
            if geometry[name] != int(video.get(name, getattr(video_base, name))):
                raise ValueError(f"the picture's and the clip's processor files differ in {name}")
        for config in (image, video):
            if not config.get("do_resize", True) or config.get("resample", BICUBIC) not in (None, BICUBIC):
                raise ValueError("only processors with do_resize and resample 3 (bicubic) are served")
        image_min, image_max = _budget(image, image_base.image_min_pixels, image_base.image_max_pixels)
        if family == "qwen":  # older files; GLM's classes read `size` alone
            image_min = int(image.get("min_pixels") or image_min)
            image_max = int(image.get("max_pixels") or image_max)
        video_min, video_max = _budget(video, video_base.video_min_pixels, video_base.video_max_pixels)
        return cls(
            family=family,
            **geometry,
            image_min_pixels=image_min,
            image_max_pixels=image_max,
            video_min_pixels=video_min,
            video_max_pixels=video_max,
            **_sampling(video, video_base),
            cap_pixels_per_frame=bool(video.get("cap_pixels_per_frame", False)),
            max_video_tokens=int(video.get("max_video_tokens", video_base.max_video_tokens)),
            image_mean=tuple(image.get("image_mean", image_base.image_mean)),
            image_std=tuple(image.get("image_std", image_base.image_std)),
            video_mean=tuple(video.get("image_mean", video_base.video_mean)),
            video_std=tuple(video.get("image_std", video_base.video_std)),
        )

    @classmethod
    def from_dir(cls, directory: str | Path, family: Family = "qwen") -> "MediaRules":
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
        return cls.from_checkpoint(image, video, family)


def _sampling(video: Mapping[str, Any], base: MediaRules) -> dict[str, Any]:
    """The fields that choose frames."""
    if base.family != "qwen":  # GLM's classes have num_frames, and never read it
        return {
            "fps": None if base.fps is None else float(video.get("fps", base.fps)),
            "min_frames": base.min_frames,
            "max_frames": base.max_frames,
            "fps_rule_s": float(video.get("max_duration", base.fps_rule_s)),
        }
    return {
        "num_frames": video.get("num_frames"),
        "fps": video.get("fps", None if video.get("num_frames") else base.fps),
        "min_frames": int(video.get("min_frames", base.min_frames)),
        "max_frames": int(video.get("max_frames", base.max_frames)),
    }


_CLIP_VALUES: dict[str, Any] = dict.fromkeys(("image_mean", "video_mean"), CLIP_MEAN) | dict.fromkeys(
    ("image_std", "video_std"), CLIP_STD
)
_GLM_4V = MediaRules(
    family="glm4v",
    patch_size=14,
    image_min_pixels=112 * 112,
    image_max_pixels=28 * 28 * 15_000,
    video_min_pixels=112 * 112,
    video_max_pixels=28 * 28 * 2 * 30_000,
    min_frames=1,
    max_frames=600,
    **_CLIP_VALUES,
)
_GLM_46V = replace(_GLM_4V, family="glm46v", fps=None, max_frames=640)
CLASS_DEFAULTS: Mapping[Family, tuple[MediaRules, MediaRules]] = {
    "qwen": (MediaRules(patch_size=14, **_CLIP_VALUES), MediaRules()),
    "glm4v": (_GLM_4V, _GLM_4V),
    "glm46v": (_GLM_46V, _GLM_46V),
}
"""What the processor classes of transformers 5.23 assume where a file is silent: for pictures, for clips."""


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
        Source: transformers 5.23, Qwen2VLImageProcessor, Glm4vImageProcessor.
    """
    if rules.family != "qwen":
        return video_size(rules.temporal_patch_size, height, width, rules, min_pixels, max_pixels)
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
        Source: transformers 5.23, Qwen3VLVideoProcessor, Glm4vVideoProcessor.
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
