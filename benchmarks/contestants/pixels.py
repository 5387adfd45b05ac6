"""Preprocessing alone: decoded pixels to the rows that the vision tower multiplies, ours and transformers'.

Both begin with pixels as a decoder gives them, (height, width, 3) uint8. Ours takes the way of a request: size rule and
resize as in a pool process, then the worker's cut into patches. (The worker folds normalisation into its weights; what
is left of it is done to the rows. The item's hash names it and is no preprocessing; preprocess_8_images counts it.)

Next: media_pool.py
"""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.workload import clip, picture

Pixels = NDArray[np.uint8]


class OurPixels:
    """Tessera's preprocessing.

    Args:
        model_dir: the checkpoint, whose processor files hold the rules.
        threads: of torch.
    """

    def __init__(self, model_dir: Path, threads: int) -> None:
        from gateway.media.resize import load_resizer
        from gateway.media.rules import MediaRules

        torch.set_num_threads(threads)
        self._rules = MediaRules.from_dir(model_dir)
        self._resize = load_resizer()
        self._rows = make_patch_rows(self._rules)

    def image_s(self, height: int, width: int, repeats: int) -> float:
        """Return seconds for one picture of this size."""
        pixels = picture(0, height, width)
        return _seconds(lambda: self._image(pixels), repeats)

    def video_s(self, frames: int, height: int, width: int, repeats: int) -> float:
        """Return seconds for one clip of this size."""
        pixels = clip(0, frames, height, width)
        return _seconds(lambda: self._video(pixels), repeats)

    def _image(self, pixels: Pixels) -> torch.Tensor:
        from gateway.media.rules import image_size

        rules = self._rules
        height, width, _ = pixels.shape
        size = image_size(height, width, rules, rules.image_min_pixels, rules.image_max_pixels)
        return self._finish(pixels[None], size)

    def _video(self, frames: Pixels) -> torch.Tensor:
        from gateway.media.rules import video_size

        rules = self._rules
        count, height, width, _ = frames.shape
        size = video_size(count, height, width, rules, rules.video_min_pixels, rules.video_max_pixels)
        return self._finish(frames, size)

    def _finish(self, frames: Pixels, size: tuple[int, int]) -> torch.Tensor:
        out = np.empty((len(frames), *size, 3), dtype=np.uint8)
        self._resize(frames, out)
        return self._rows(torch.from_numpy(out))


class HuggingFacePixels:
    """transformers' processors on torch's backend.

    Args:
        model_dir: the checkpoint.
        threads: of torch.
    """

    def __init__(self, model_dir: Path, threads: int) -> None:
        from tests.torchvision_stub import load_hf_processor

        torch.set_num_threads(threads)
        processor = load_hf_processor(model_dir)
        self._image_processor = processor.image_processor
        self._video_processor = processor.video_processor

    def image_s(self, height: int, width: int, repeats: int) -> float:
        """Return seconds for one picture of this size."""
        pixels = picture(0, height, width)
        return _seconds(lambda: self._image_processor([pixels], return_tensors="pt"), repeats)

    def video_s(self, frames: int, height: int, width: int, repeats: int) -> float:
        """Return seconds for one clip of this size, all its frames used."""
        pixels = clip(0, frames, height, width)
        options: dict[str, Any] = {"do_sample_frames": False, "return_tensors": "pt"}
        return _seconds(lambda: self._video_processor([pixels], **options), repeats)


def make_patch_rows(rules: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return the worker's own code from uint8 frames to patch rows, its product replaced by nothing."""
    from worker.layers.patch_embed import PatchEmbed

    hidden = 16
    embed = PatchEmbed(_ZeroWeights(), _Shape(hidden, rules), _Statistics(), _Statistics())
    embed.still = embed.clip = _Identity()  # type: ignore[assignment]
    return embed.pixels


class _Identity:
    dtype = torch.float32

    def apply(self, rows: torch.Tensor) -> torch.Tensor:
        return rows


class _ZeroWeights:
    dtype = torch.float32
    device = torch.device("cpu")

    def under(self, prefix: str) -> "_ZeroWeights":
        return self

    def shape(self, name: str) -> tuple[int, ...] | None:
        return None

    def slices(self, name: str, shape: tuple[int, ...]) -> Iterator[torch.Tensor]:
        return iter(torch.zeros(shape))

    def mapped(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        return torch.zeros(shape)

    def tensor(self, name: str, shape: tuple[int, ...], dtype: torch.dtype | None = None) -> torch.Tensor:
        return torch.zeros(shape, dtype=dtype)


class _Shape:
    in_channels = 3

    def __init__(self, hidden_size: int, rules: Any) -> None:
        self.hidden_size = hidden_size
        self.patch_size = rules.patch_size
        self.temporal_patch_size = rules.temporal_patch_size
        self.merge_size = rules.merge_size


class _Statistics:
    mean = std = (0.5, 0.5, 0.5)


def _seconds(work: Callable[[], object], repeats: int) -> float:
    """Return the mean seconds of some runs after one that warms up."""
    work()
    start = time.perf_counter()
    for _ in range(repeats):
        work()
    return (time.perf_counter() - start) / repeats
