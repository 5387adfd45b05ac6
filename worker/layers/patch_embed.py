"""Patch embedding that takes uint8 pixels as they are.

Two facts of linear algebra save most of the work before the product. Normalisation (x / 255 - mean) / std is affine in
x, so it folds into weight and bias. And a still image fills its temporal patch with one frame repeated, so the weights
summed over time need that frame once, in half the columns.

Pixels are centred at 128 before the product: the numbers are whole and below 2 ** 8, exact in bfloat16 as well.

Next: worker/models/qwen3_vl_vision.py
"""

from collections.abc import Sequence
from itertools import groupby
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


class PatchInput(Protocol):
    """An item: uint8 frames (kind "pixels_u8"), or normalised rows."""

    @property
    def kind(self) -> str: ...
    @property
    def tensor(self) -> torch.Tensor: ...


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

    def batch(self, items: Sequence[PatchInput], stills: Sequence[bool]) -> torch.Tensor:
        """Embed items side by side, those of one kind next to each other -> (n, hidden).

        Args:
            items: on the host or the device.
            stills: whether each is a still image, one frame that fills its temporal patch.
        """
        parts = []
        pairs = zip(items, stills, strict=True)
        for (kind, still), group in groupby(pairs, lambda pair: (pair[0].kind, pair[1])):
            tensors = [item.tensor for item, _ in group]
            if kind != "pixels_u8":
                parts += [self.patches(ops.on_device(rows, self.clip.device)) for rows in tensors]
            elif ops.batches_pixels(self.clip.device, self.clip.dtype):
                parts.append(self._pixels_at_once(tensors, still))
            else:
                parts += [self.pixels(ops.on_device(frames, self.clip.device), still=still) for frames in tensors]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def pixels(self, frames: torch.Tensor, *, still: bool) -> torch.Tensor:
        """Embed uint8 pixels, (frames, height, width, channels) -> (t * h * w, hidden).

        The last frame is repeated up to a full temporal patch; a still's one frame stands for all of it.
        """
        shape = self.shape
        if still:
            return self.still.apply(self._rows(frames, 1))
        missing = -frames.shape[0] % shape.temporal_patch_size
        if missing:
            frames = torch.cat((frames, frames[-1:].expand(missing, *frames.shape[1:])))
        return self.clip.apply(self._rows(frames, shape.temporal_patch_size))

    def _pixels_at_once(self, items: Sequence[torch.Tensor], still: bool) -> torch.Tensor:
        """Embed items of one kind with one copy to the device, one op and one product."""
        shape, device = self.shape, self.clip.device
        side = shape.patch_size
        temporal = 1 if still else shape.temporal_patch_size
        table = torch.empty(len(items), 5, dtype=torch.int64)
        rows = first_byte = 0
        for index, frames in enumerate(items):
            count, height, width = frames.shape[0], frames.shape[1] // side, frames.shape[2] // side
            table[index] = torch.tensor((rows, first_byte, count, height, width))
            rows += -(-count // temporal) * height * width
            first_byte += frames.numel()
        patches = ops.patches_of_items(
            _gathered(items, device), ops.on_device(table, device), rows, side, shape.merge_size,
            temporal, _CENTRE, self.clip.dtype,
        )  # fmt: skip
        return (self.still if still else self.clip).apply(patches)

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


def _gathered(items: Sequence[torch.Tensor], device: torch.device) -> torch.Tensor:
    """Return all bytes side by side on the device, by one copy from memory that the device reads by itself."""
    flat = [frames.flatten() for frames in items]
    if device.type == "cpu" or all(frames.device == device for frames in items):
        return torch.cat(flat)
    staged = torch.empty(sum(map(torch.numel, flat)), dtype=torch.uint8, pin_memory=True)
    torch.cat([part.cpu() for part in flat], out=staged)
    return staged.to(device, non_blocking=True)


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
