"""A stand-in for torchvision, enough for transformers' Qwen-VL processors to run as their authors meant them.

transformers 5.23 refuses to build a video processor without torchvision, though all that it takes from it on these
paths is a resize (torch's own `interpolate` on uint8), a normalise and a few names. The stand-in gives those, so that
tests and benchmarks compare with the true default processors. A real torchvision, where there is one, is used as it is.

`install()` must run before transformers is imported: it looks for torchvision once. tests/conftest.py calls it.

Next: tests/parity/test_media_image.py
"""

import importlib.machinery
import importlib.util
import sys
from enum import Enum
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

_NAMES = (
    "torchvision",
    "torchvision.io",
    "torchvision.transforms",
    "torchvision.transforms.functional",
    "torchvision.transforms.v2",
    "torchvision.transforms.v2.functional",
)


class InterpolationMode(Enum):
    """The resampling filters that transformers names."""

    NEAREST = "nearest"
    NEAREST_EXACT = "nearest-exact"
    BILINEAR = "bilinear"
    BICUBIC = "bicubic"
    BOX = "box"
    HAMMING = "hamming"
    LANCZOS = "lanczos"


def resize(
    image: torch.Tensor,
    size: tuple[int, int],
    interpolation: InterpolationMode = InterpolationMode.BILINEAR,
    antialias: bool = True,
) -> torch.Tensor:
    """Resize (..., channels, height, width) as torchvision does: uint8 as uint8, and nothing where the size fits."""
    height, width = image.shape[-2:]
    if (height, width) == tuple(size):
        return image
    flat = image.reshape(-1, image.shape[-3], height, width)
    out = torch.nn.functional.interpolate(
        flat, size=tuple(size), mode=interpolation.value, antialias=antialias, align_corners=False
    )
    return out.reshape(*image.shape[:-2], *size)


def normalize(image: torch.Tensor, mean: Any, std: Any, inplace: bool = False) -> torch.Tensor:
    """(image - mean) / std over the channel axis, in the order of torchvision's own operations."""
    mean = torch.as_tensor(mean, dtype=image.dtype, device=image.device).view(-1, 1, 1)
    std = torch.as_tensor(std, dtype=image.dtype, device=image.device).view(-1, 1, 1)
    image = image.sub_(mean) if inplace else image.sub(mean)
    return image.div_(std)


def grayscale_to_rgb(image: torch.Tensor) -> torch.Tensor:
    """One channel repeated three times; anything else as it is."""
    return image.expand(*image.shape[:-3], 3, *image.shape[-2:]) if image.shape[-3] == 1 else image


def to_dtype(image: torch.Tensor, dtype: torch.dtype, scale: bool = False) -> torch.Tensor:
    """Cast, with [0, 255] and [0, 1] exchanged between uint8 and float where `scale` is set."""
    if image.dtype == dtype or not scale:
        return image.to(dtype)
    if image.dtype == torch.uint8:
        return image.to(dtype).div_(255)
    return image.mul(255 + 1.0 - 1e-3).to(dtype)


def pil_to_tensor(image: Any) -> torch.Tensor:
    """A PIL picture as (channels, height, width) uint8."""
    import numpy as np

    return torch.from_numpy(np.array(image, copy=True)).permute(2, 0, 1)


def install() -> None:
    """Put the stand-in into `sys.modules` unless torchvision is there.

    Raises:
        RuntimeError: transformers was imported before, without torchvision: it would not see the stand-in.
    """
    if "torchvision" in sys.modules or importlib.util.find_spec("torchvision") is not None:
        return
    if "transformers" in sys.modules:
        raise RuntimeError("call tests.torchvision_stub.install() before transformers is imported")
    modules = {name: ModuleType(name, "A stand-in: tests/torchvision_stub.py.") for name in _NAMES}
    for name, module in modules.items():
        module.__spec__ = importlib.machinery.ModuleSpec(name, loader=None, is_package=True)
        module.__path__ = []
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(modules[parent], child, module)
    vars(modules["torchvision"])["__version__"] = "0.28.0"
    vars(modules["torchvision.transforms"])["InterpolationMode"] = InterpolationMode
    for function in (resize, normalize, grayscale_to_rgb, to_dtype, pil_to_tensor, InterpolationMode):
        for name in ("torchvision.transforms.functional", "torchvision.transforms.v2.functional"):
            setattr(modules[name], function.__name__, function)
    sys.modules.update(modules)


def load_hf_processor(model_dir: str | Path) -> Any:
    """transformers' own Qwen3VLProcessor of a checkpoint directory, on its torchvision backend.

    Args:
        model_dir: A directory with tokenizer, chat template and processor files.

    Returns:
        The processor: `processor(text=[...], images=[...], videos=[...], return_tensors="pt")`.
    """
    install()
    from transformers import AutoProcessor

    return AutoProcessor.from_pretrained(str(model_dir))
