"""The time series encoder of InternS1-Pro: samples to embeddings, any number of series in one batch.

The series of a batch lie one after the other; convolutions and attention stay inside each, so an item's embeddings do
not depend on its neighbours. Reading order: `SeriesTower.__call__`.

Source: lmdeploy `interns1_pro_time_series.py` and `vl/model/interns1_pro.py` at 1263d5c. Attention is causal there.

Next: worker/models/interns1_pro.py
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from tessera.errors import InvalidArgument
from tessera.time_series import (
    MAX_CHANNELS,
    MAX_LENGTH,
    MAX_USED_SAMPLES,
    check_series,
    num_series_patches,
    num_series_tokens,
    series_stride,
    used_length,
)
from tessera_kernels import ops
from worker.layers.linear import Linear
from worker.layers.norm import LayerNorm
from worker.layers.source import WeightSource
from worker.models.base import EncoderInput, EncoderOutput, ItemSize
from worker.models.encoder import ItemEncoder
from worker.models.interns1_pro_config import SeriesConfig
from worker.models.interns1_pro_patches import EPS, PatchEncoder, named_kernel

_SLOW_RATE_HZ = 1.0  # gives the shortest stride, hence the most tokens
_SPREAD = 1e-8  # added to a channel's deviation, so that a constant one becomes zeros


def normalised(samples: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return what the encoder sees of a series.

    Args:
        samples: float (length, channels).
        dtype: of the result.

    Returns:
        (used length, channels): each channel less its mean, divided by its deviation; both over the whole series.
    """
    return ops.normalise_series(samples, used_length(len(samples)), _SPREAD, dtype)


class SeriesLayer:
    """Pre-norm causal attention and feed-forward, as Whisper's; the residual add is fused into the norm that follows.

    A bias of the keys would add the same to all scores of a query, so it has no effect; the family has none.
    """

    def __init__(self, source: WeightSource, config: SeriesConfig) -> None:
        width = config.width
        self.num_heads = config.num_heads
        self.norm1 = LayerNorm.load(source.under("self_attn_layer_norm"), width, EPS)
        self.qkv = _load_qkv(source.under("self_attn"), width)
        self.out = Linear.load(source.under("self_attn"), [("out_proj", width)], width, bias=True)
        self.norm2 = LayerNorm.load(source.under("final_layer_norm"), width, EPS)
        self.fc1 = Linear.load(source, [("fc1", config.inner_width)], width, bias=True, activation=config.activation)
        self.fc2 = Linear.load(source, [("fc2", width)], config.inner_width, bias=True)

    def __call__(self, x: torch.Tensor, residual: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
        """Return what is to be added to the residual, which holds all before it.

        Args:
            x: (n, width), the previous layer's return, not yet added.
            residual: (n, width), changed in place.
            lengths: rows of each series.
        """
        qkv = self.qkv(self.norm1.add(x, residual)).view(x.shape[0], 3, self.num_heads, -1)
        attended = ops.segment_attention(qkv, lengths, qkv.shape[3] ** -0.5, causal=True)
        return self.fc2(self.fc1(self.norm2.add(self.out(attended.flatten(1)), residual)))

    @property
    def size_bytes(self) -> int:
        """Bytes of the weights."""
        return sum(layer.size_bytes for layer in (self.qkv, self.out, self.fc1, self.fc2))


def _load_qkv(source: WeightSource, width: int) -> Linear:
    weight = ops.linear.create(3 * width, width, source.dtype, source.device, bias=True)
    for index, name in enumerate(("q_proj", "k_proj", "v_proj")):
        weight.write_rows(index * width, source.mapped(f"{name}.weight", (width, width)))
        if name != "k_proj":
            weight.write_bias(index * width, source.mapped(f"{name}.bias", (width,)))
    weight.seal()
    return Linear(weight)


class SeriesTower:
    """Patches, two convolutions, causal layers and the projector.

    Args:
        source: the names below `model.time_series`.
        config: sizes.
    """

    def __init__(self, source: WeightSource, config: SeriesConfig) -> None:
        self.config = config
        self.device, self.dtype = source.device, source.dtype
        self.patches = PatchEncoder(source.under("encoder_embed"), config.patch_width)
        encoder, projector = source.under("encoder"), source.under("projector")
        self.adapt_in = Linear.load(encoder, [("adapt_in", config.bins)], config.feature_size, bias=True)
        self.conv1 = named_kernel(encoder.under("conv1"), (config.width, config.bins, 3), "gelu")
        self.conv2 = named_kernel(encoder.under("conv2"), (config.width, config.width, 3), "gelu")
        self.positions = encoder.tensor("embed_positions.weight", (config.max_positions, config.width))
        self.layers = [SeriesLayer(encoder.under(f"layers.{index}"), config) for index in range(config.num_layers)]
        self.norm = LayerNorm.load(encoder.under("layer_norm"), config.width, EPS)
        self.adapt_out = Linear.load(encoder, [("adapt_out", config.adapted_size)], config.width, bias=True)
        self.projector_norm = LayerNorm.load(projector.under("layer_norm"), config.adapted_size, EPS)
        out = config.out_hidden_size
        self.linear1 = Linear.load(
            projector, [("linear_1", out)], config.adapted_size, bias=True, activation=config.activation
        )
        self.linear2 = Linear.load(projector, [("linear_2", out)], out, bias=True)

    def __call__(self, series: Sequence[torch.Tensor], rates_hz: Sequence[float]) -> list[torch.Tensor]:
        """Encode series.

        Args:
            series: float (length, channels), as measured.
            rates_hz: samples a second of each; 0 = unknown.

        Returns:
            For each series (tokens, out_hidden_size), with memory of its own.
        """
        samples = [normalised(ops.on_device(part, self.device), self.dtype) for part in series]
        strides = [series_stride(len(part), rate) for part, rate in zip(series, rates_hz, strict=True)]
        features = self.patches(samples, strides)
        adapted = self.adapt_in(torch.cat(features)).split([len(part) for part in features])
        embedded = [self._halve(part) for part in adapted]
        lengths = [len(part) for part in embedded]
        residual = torch.cat(embedded)
        x = torch.zeros_like(residual)
        for layer in self.layers:
            x = layer(x, residual, lengths)
        out = self.adapt_out(self.norm.add(x, residual))
        return [part.clone() for part in self.linear2(self.linear1(self.projector_norm(out))).split(lengths)]

    def _halve(self, features: torch.Tensor) -> torch.Tensor:
        """Convolve one series twice, the second time with stride 2, and add positions: (n, bins) -> (m, width)."""
        x = features
        for stride, conv in enumerate((self.conv1, self.conv2), 1):
            x = conv(F.pad(x, (0, 0, 1, 1)).unfold(0, 3, stride).flatten(1))
        placed = min(len(x), self.config.max_positions)
        x[:placed] += self.positions[:placed]
        return x

    @property
    def size_bytes(self) -> int:
        """Bytes of the weights (norms left out)."""
        layers = sum(layer.size_bytes for layer in self.layers) + self.patches.size_bytes
        linears = (self.adapt_in, self.conv1, self.conv2, self.adapt_out, self.linear1, self.linear2)
        return layers + sum(part.size_bytes for part in linears) + self.positions.nbytes


class TimeSeriesEncoder(ItemEncoder):
    """Time series through the tower; see `ItemEncoder`.

    Args:
        tower: loaded weights.
    """

    modalities = ("time_series",)
    num_deepstack_layers = 0
    head_dims = ()  # no release has other than whole vectors

    def __init__(self, tower: SeriesTower) -> None:
        self.tower = tower
        self.hidden_size = tower.config.out_hidden_size
        self.dtype, self.device = tower.dtype, tower.device

    def check_payload(self, item: EncoderInput) -> None:
        """Check that samples make a series of at least two patches; see `ItemEncoder.check`."""
        if item.kind != "samples":
            raise InvalidArgument(
                f"A time series cannot hold {item.kind}.", reason="PAYLOAD_KIND", field="payload_kind"
            )
        if item.tensor.dim() != 2:
            raise InvalidArgument(
                f"Samples have shape [length, channels], not {list(item.tensor.shape)}.",
                reason="TENSOR_SHAPE",
                field="tensor.shape",
            )
        length, channels = item.tensor.shape
        check_series(length, channels, item.sampling_rate_hz)

    def embedding_tokens(self, item: EncoderInput) -> None:
        """Embeddings of a series say themselves how many they are: they come without its length."""

    def run(self, inputs: Sequence[EncoderInput]) -> list[EncoderOutput]:
        """Encode items that have been checked."""
        embeddings = self.tower([item.tensor for item in inputs], [item.sampling_rate_hz for item in inputs])
        return [EncoderOutput(part, None) for part in embeddings]

    def item_tokens(self, size: ItemSize) -> int:
        """Return the embeddings of a series.

        Raises:
            InvalidArgument: it is too short, or its rate is not finite.
        """
        return num_series_tokens(size.length, size.sampling_rate_hz)

    def worst_items(self, max_tokens: int) -> list[ItemSize]:
        """Return the longest series of the shortest stride with at most `max_tokens`, with as many channels as fit."""
        length = min(8 * max(max_tokens, 1) + 4, MAX_LENGTH)  # a token is four strides of two samples
        channels = min(MAX_CHANNELS, MAX_USED_SAMPLES // length)
        return [ItemSize("time_series", None, length, channels, _SLOW_RATE_HZ)]

    def dummy_input(self, size: ItemSize) -> EncoderInput:
        """Return a series of this size, silent."""
        samples = torch.zeros(size.length, size.channels)
        return EncoderInput("time_series", "samples", samples, sampling_rate_hz=size.sampling_rate_hz)

    def workspace_bytes(self, size: ItemSize) -> int:
        """Return an upper estimate of the transient memory for one item."""
        config, wide = self.tower.config, max(self.dtype.itemsize, 4)
        patches = num_series_patches(size.length, size.sampling_rate_hz)
        # as they came, as doubles and their differences, normalised, padded, and cut into patches that overlap by half
        samples = size.length * size.channels * (3 * 8 + 5 * wide)
        features = patches * (2 * size.channels * config.patch_width + 3 * config.feature_size + 2 * config.bins)
        stream = max(5 * config.width, 2 * config.inner_width) + 3 * config.width + 2 * config.out_hidden_size
        tokens = patches // 2 * 3 * config.width + self.item_tokens(size) * stream
        return samples + (features + tokens + self.tower.patches.workspace) * wide

    @property
    def weight_bytes(self) -> int:
        """Bytes of the tower's weights."""
        return self.tower.size_bytes
