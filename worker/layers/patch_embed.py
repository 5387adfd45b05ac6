"""Patch embedding that takes uint8 pixels as they are.

Two facts of linear algebra save most of the work before the product. Normalisation (x / 255 - mean) / std is affine in
x, so it folds into weight and bias. And a still image fills its temporal patch with one frame repeated, so the weights
summed over time need that frame once, in half the columns.

Pixels are centred at 128 before the product: the numbers are whole and below 2 ** 8, exact in bfloat16 as well.

Next: worker/models/qwen3_vl_vision.py
"""

from typing import Protocol

import torch

from tessera_kernels import ops
from worker.layers.source import WeightSource

_CENTRE = 128.0


class PatchShape(Protocol):
    """Sizes of a patch embedding."""

    @property
    def hidden_size(self) -> int: ...
    @property
    def in_channels(self) -> int: ...
    @property
    def patch_size(self) -> int: ...
    @property
    def temporal_patch_size(self) -> int: ...
    @property
    def merge_size(self) -> int: ...


class PixelStatistics(Protocol):
    """Mean and standard deviation of each channel, of pixels in [0, 1]."""

    @property
    def mean(self) -> tuple[float, ...]: ...
    @property
    def std(self) -> tuple[float, ...]: ...


class PatchEmbed:
    """Frames or ready patches to embeddings, in merge order.

    Args:
        source: `proj.weight` (hidden, channels, temporal, patch, patch) and `proj.bias`.
        shape: sizes.
        image: statistics of stills.
        video: statistics of clips.
    """

    def __init__(self, source: WeightSource, shape: PatchShape, image: PixelStatistics, video: PixelStatistics) -> None:
        self.shape = shape
        side = shape.patch_size
        kernel = (shape.hidden_size, shape.in_channels, shape.temporal_patch_size, side, side)
        weight = source.mapped("proj.weight", kernel).double()
        bias = source.mapped("proj.bias", kernel[:1]).double()
        self.clip = _fold(source, weight, bias, video)
        self.still = _fold(source, weight.sum(2, keepdim=True), bias, image)
        # what undoes the normalisation of ready patches: centred pixel = value * spread + shift
        mean, std = torch.tensor(video.mean), torch.tensor(video.std)
        columns = shape.temporal_patch_size * side * side
        self.spread = (255 * std).repeat_interleave(columns).to(source.device)
        self.shift = (255 * mean - _CENTRE).repeat_interleave(columns).to(source.device)

    def pixels(self, frames: torch.Tensor) -> torch.Tensor:
        """Embed uint8 pixels, (frames, height, width, channels) -> (t * h * w, hidden).

        One frame alone is a still; otherwise the last is repeated up to a full temporal patch.
        """
        shape = self.shape
        if frames.shape[0] == 1:
            return self.still.apply(self._rows(frames, 1))
        missing = -frames.shape[0] % shape.temporal_patch_size
        if missing:
            frames = torch.cat((frames, frames[-1:].expand(missing, *frames.shape[1:])))
        return self.clip.apply(self._rows(frames, shape.temporal_patch_size))

    def patches(self, rows: torch.Tensor) -> torch.Tensor:
        """Embed normalised patches in the Hugging Face layout, (n, channels * temporal * patch ** 2) -> (n, hidden)."""
        return self.clip.apply((rows.float() * self.spread + self.shift).to(self.clip.dtype))

    def _rows(self, frames: torch.Tensor, temporal: int) -> torch.Tensor:
        side, merge = self.shape.patch_size, self.shape.merge_size
        return ops.centred_patches(frames, side, merge, temporal, _CENTRE, self.clip.dtype)

    @property
    def size_bytes(self) -> int:
        """Bytes of the weights."""
        return self.clip.size_bytes + self.still.size_bytes


def _fold(
    source: WeightSource, weight: torch.Tensor, bias: torch.Tensor, statistics: PixelStatistics
) -> ops.LinearWeight:
    """Return a linear weight over centred pixels that equals `weight` over normalised ones.

    With s = 1 / (255 std) and o = (128 / 255 - mean) / std: W((x / 255 - mean) / std) + b = (W s)(x - 128) + (b + W o).
    """
    mean, std = torch.tensor(statistics.mean).double(), torch.tensor(statistics.std).double()
    spread = (1 / (255 * std))[None, :, None, None, None]
    offset = ((_CENTRE / 255 - mean) / std)[None, :, None, None, None]
    folded_bias = bias + (weight * offset).flatten(1).sum(1)
    rows = (weight * spread).flatten(1).float()
    linear = ops.linear.create(rows.shape[0], rows.shape[1], source.dtype, source.device, bias=True)
    linear.write_rows(0, rows)
    linear.write_bias(0, folded_bias.float())
    linear.seal()
    return linear
