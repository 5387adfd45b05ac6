"""Patches of a time series to features: each patch of each channel by itself, all channels averaged.

Source: InternS1-Pro (lmdeploy `interns1_pro_time_series.py` at 1263d5c). Channels and patches share all weights, so
series of any number of channels, and several series of one stride, run as one batch of patches.

Next: worker/models/interns1_pro_time_series.py
"""

import math
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F

from tessera_kernels import ops
from worker.layers.linear import Linear
from worker.layers.norm import LayerNorm
from worker.layers.source import WeightSource

NUM_HEADS, INNER_WIDTH, KERNEL, EPS = 8, 2048, 5, 1e-5  # of the class, in no config
LONGEST_PATCH = 320  # twice the longest stride
# Samples of patches that are encoded at a time, which bounds the inner layer's memory; a GPU takes more to be busy.
POSITIONS_AT_ONCE = 4096
POSITIONS_AT_ONCE_ON_CUDA = 16384


def sinusoid(length: int, width: int) -> torch.Tensor:
    """Return sines in even columns and cosines in odd ones, fp32 (length, width), slower to the right.

    Source: "Attention Is All You Need", with frequencies 10000 ** (-2 i / width).
    """
    positions = torch.arange(length, dtype=torch.float32)[:, None]
    angles = positions * torch.exp(torch.arange(0, width, 2, dtype=torch.float32) * (-math.log(10000.0) / width))
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1)


def named_linear(
    source: WeightSource, names: tuple[str, str], shape: tuple[int, int], activation: str = "none"
) -> Linear:
    """Read a linear layer whose weight and bias have names of their own.

    Args:
        source: where the names stand.
        names: of weight and bias.
        shape: (out_features, in_features).
        activation: applied to the product.
    """
    weight = ops.linear.create(*shape, source.dtype, source.device, bias=True, activation=activation)
    weight.write_rows(0, source.mapped(names[0], shape))
    weight.write_bias(0, source.mapped(names[1], shape[:1]))
    weight.seal()
    return Linear(weight)


def named_kernel(source: WeightSource, shape: tuple[int, int, int], activation: str = "none") -> Linear:
    """Read a convolution as a linear layer over what its kernel sees: channel by channel, position by position.

    Args:
        source: of `weight` and `bias`.
        shape: (out_channels, in_channels, kernel).
        activation: applied to the product.
    """
    return _as_linear(source.mapped("weight", shape).flatten(1), source.mapped("bias", shape[:1]), source, activation)


def _as_linear(rows: torch.Tensor, bias: torch.Tensor, source: WeightSource, activation: str = "none") -> Linear:
    out, seen = rows.shape
    weight = ops.linear.create(out, seen, source.dtype, source.device, bias=True, activation=activation)
    weight.write_rows(0, rows)
    weight.write_bias(0, bias)
    weight.seal()
    return Linear(weight)


class PatchEncoder:
    """Convolution, sinusoid and one post-norm transformer layer over a patch; its mean; neighbours joined in pairs.

    Args:
        source: `encoder_embed` of the time series encoder.
        width: of a patch's feature.
    """

    def __init__(self, source: WeightSource, width: int) -> None:
        self.width = width
        self.positions_at_once = POSITIONS_AT_ONCE_ON_CUDA if source.device.type == "cuda" else POSITIONS_AT_ONCE
        conv = source.under("conv")
        kernel, bias = conv.mapped("weight", (width, 1, KERNEL)).flatten(1), conv.mapped("bias", (width,))
        # in two forms: for a product with what the kernel sees, and as the op takes it that cuts patches itself
        self.conv = _as_linear(kernel, bias, source)
        self.kernel, self.bias = (x.to(source.device, source.dtype, copy=True) for x in (kernel, bias))
        self.positions = sinusoid(LONGEST_PATCH, width).to(source.device, source.dtype)
        layer = source.under("transformer_encoder.layers.0")
        self.qkv = named_linear(layer.under("self_attn"), ("in_proj_weight", "in_proj_bias"), (3 * width, width))
        self.out = Linear.load(layer.under("self_attn"), [("out_proj", width)], width, bias=True)
        self.norm1 = LayerNorm.load(layer.under("norm1"), width, EPS)
        self.linear1 = Linear.load(layer, [("linear1", INNER_WIDTH)], width, bias=True)
        self.linear2 = Linear.load(layer, [("linear2", width)], INNER_WIDTH, bias=True)
        self.norm2 = LayerNorm.load(layer.under("norm2"), width, EPS)

    def __call__(self, series: Sequence[torch.Tensor], strides: Sequence[int]) -> list[torch.Tensor]:
        """Encode series whose samples are normalised.

        Args:
            series: (length, channels) of the model's type, each with at least two patches.
            strides: samples between the beginnings of two patches; a patch is twice as long.

        Returns:
            For each series (patches // 2, 2 * width).
        """
        features: dict[int, torch.Tensor] = {}
        for stride in sorted(set(strides)):
            places = [index for index, other in enumerate(strides) if other == stride]
            means = self._encode([series[index] for index in places], stride)
            counts = [ops.num_patches(len(series[index]), stride) for index in places]
            parts = means.split([count * series[index].shape[1] for index, count in zip(places, counts, strict=True)])
            for index, count, part in zip(places, counts, parts, strict=True):
                patches = part.view(count, -1, self.width).mean(1)
                features[index] = patches[: count // 2 * 2].reshape(-1, 2 * self.width)
        return [features[index] for index in range(len(series))]

    def _encode(self, series: Sequence[torch.Tensor], stride: int) -> torch.Tensor:
        """Return the mean of each patch of each channel, (n, width), a bounded number of samples at a time."""
        length = 2 * stride
        step = max(1, self.positions_at_once // length)
        return torch.cat([self._mean(x, length) for x in self._embedded(series, stride, step)])

    def _embedded(self, series: Sequence[torch.Tensor], stride: int, step: int) -> Iterator[torch.Tensor]:
        """Yield samples of `step` patches at a time, convolved and placed: (patches * 2 * stride, width)."""
        if ops.batches_series(series[0]):
            batch = ops.SeriesBatch.of(series, stride)
            for first in range(0, batch.patches, step):
                count = min(step, batch.patches - first)
                yield ops.series_patches(batch, first, count, self.kernel, self.bias, self.positions)
        else:
            windows = [ops.series_windows(part, stride).flatten(0, 1) for part in series]
            yield from map(self._convolve, torch.cat(windows).split(step))

    def _convolve(self, rows: torch.Tensor) -> torch.Tensor:
        """rows: (n, patch) -> (n * patch, width)."""
        count, length = rows.shape
        seen = F.pad(rows, (KERNEL // 2, KERNEL // 2)).unfold(1, KERNEL, 1).reshape(count * length, KERNEL)
        embedded = self.conv(seen).relu_().view(count, length, self.width)
        return (embedded + self.positions[:length]).view(count * length, self.width)

    def _mean(self, x: torch.Tensor, length: int) -> torch.Tensor:
        """Run the layer over patches of `length` rows, (n * length, width) -> (n, width)."""
        count = len(x) // length
        qkv = self.qkv(x).view(count * length, 3, NUM_HEADS, -1)
        attended = ops.segment_attention(qkv, [length] * count, qkv.shape[3] ** -0.5)
        x = self.norm1.add(self.out(attended.flatten(1)), x)
        x = self.norm2.add(self.linear2(self.linear1(x).relu_()), x)
        return x.view(count, length, -1).mean(1)

    @property
    def workspace(self) -> int:
        """Upper estimate of the numbers that are alive at the widest moment of one part."""
        return max(self.positions_at_once, LONGEST_PATCH) * (8 * self.width + INNER_WIDTH)

    @property
    def size_bytes(self) -> int:
        """Bytes of the weights."""
        return sum(layer.size_bytes for layer in (self.conv, self.qkv, self.out, self.linear1, self.linear2))
