"""From items to embeddings: what an encoder is, and what all vision encoders share.

An encoder stands alone: it knows nothing of the language model but the width of its embeddings, so a worker that only
encodes can load and run it by itself (`worker.models.loader.load_encoders`).

Next: worker/models/vision_tower.py
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from tessera.errors import InvalidArgument
from tessera_kernels import ops
from worker.models.base import EncoderInput, EncoderOutput, Grid, ItemSize
from worker.models.config import VisionConfig
from worker.models.info import ProcessorLimits

_MAX_ASPECT_RATIO = 200


class ItemEncoder(ABC):
    """Encodes the items of some modalities.

    Attributes:
        modalities: that it takes.
        hidden_size: width of an embedding.
        num_deepstack_layers: side features of each token.
        head_dims: head sizes of its attention layers.
        dtype: of its embeddings.
        device: where it runs.
    """

    modalities: tuple[str, ...]
    hidden_size: int
    num_deepstack_layers: int
    head_dims: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    @torch.inference_mode()
    def __call__(self, inputs: Sequence[EncoderInput]) -> list[EncoderOutput]:
        """Turn items into embeddings, all in one batch; embeddings that the caller computed pass through.

        Raises:
            InvalidArgument: a tensor's shape does not fit its size, or a part is missing.
        """
        for item in inputs:
            self.check(item)
        outputs = [self._pass_through(item) if item.kind == "embeddings" else None for item in inputs]
        pending = [index for index, output in enumerate(outputs) if output is None]
        if pending:
            for index, output in zip(pending, self.run([inputs[index] for index in pending]), strict=True):
                outputs[index] = output
        return [output for output in outputs if output is not None]

    def record(self) -> None:  # noqa: B027 - most have nothing to record
        """Record what runs often, where the device does; to be called before serving, once."""

    def check(self, item: EncoderInput) -> None:
        """Check a tensor against its item's size.

        Raises:
            InvalidArgument: naming the part that is missing or has another shape.
        """
        if item.kind == "embeddings":
            self._check_embeddings(item)
        else:
            self.check_payload(item)

    @abstractmethod
    def check_payload(self, item: EncoderInput) -> None:
        """Check an item that is to be encoded; see `check`."""

    @abstractmethod
    def run(self, inputs: Sequence[EncoderInput]) -> list[EncoderOutput]:
        """Encode items that have been checked."""

    @abstractmethod
    def item_tokens(self, size: ItemSize) -> int:
        """Return the embeddings of an item."""

    @abstractmethod
    def worst_items(self, max_tokens: int) -> list[ItemSize]:
        """Return the worst legal item of each modality: most tokens, `max_tokens` at most."""

    @abstractmethod
    def dummy_input(self, size: ItemSize) -> EncoderInput:
        """Return an item of this size, black or silent."""

    @abstractmethod
    def workspace_bytes(self, size: ItemSize) -> int:
        """Return an upper estimate of the transient memory for one item."""

    @property
    @abstractmethod
    def weight_bytes(self) -> int:
        """Bytes of the weights."""

    @property
    def token_bytes(self) -> int:
        """Bytes of one token's embedding and side features."""
        return (1 + self.num_deepstack_layers) * self.hidden_size * self.dtype.itemsize

    def embedding_tokens(self, item: EncoderInput) -> int | None:
        """Return the rows that embeddings must have, None where only they themselves say."""
        return self.item_tokens(item.size)

    def _check_embeddings(self, item: EncoderInput) -> None:
        rows = self.embedding_tokens(item)
        tokens, hidden = item.tensor.shape[0] if rows is None else rows, self.hidden_size
        expect_shape("tensor", item.tensor, (tokens, hidden))
        layers = self.num_deepstack_layers
        if layers and "deepstack" not in item.side:
            message = 'Embeddings of this model come with a side tensor "deepstack" [layers, tokens, hidden].'
            raise InvalidArgument(message, reason="SIDE_TENSOR_REQUIRED", field="side_tensors[deepstack]")
        if layers:
            expect_shape("side_tensors[deepstack]", item.side["deepstack"], (layers, tokens, hidden))

    def _pass_through(self, item: EncoderInput) -> EncoderOutput:
        deepstack = item.side["deepstack"] if self.num_deepstack_layers else None
        return EncoderOutput(
            ops.on_device(item.tensor, self.device).to(self.dtype),
            None if deepstack is None else ops.on_device(deepstack, self.device).to(self.dtype),
        )


@dataclass(frozen=True)
class VisionGeometry:
    """Sizes that decide the shape of pictures and clips.

    Args:
        patch_size: pixels of a patch's side.
        temporal_patch_size: frames of a patch.
        merge_size: patches merged along each side into one token.
        in_channels: colour channels.
    """

    patch_size: int
    temporal_patch_size: int
    merge_size: int
    in_channels: int = 3

    @classmethod
    def of(cls, vision: VisionConfig) -> "VisionGeometry":
        """Return the sizes of a family's tower."""
        return cls(vision.patch_size, vision.temporal_patch_size, vision.merge_size, vision.in_channels)

    @property
    def patch_elements(self) -> int:
        """Numbers of one patch."""
        return self.in_channels * self.temporal_patch_size * self.patch_size**2


class Tower(Protocol):
    """What differs from family to family: from checked pixels or patches to embeddings."""

    device: torch.device
    dtype: torch.dtype
    patch_budget: int

    def __call__(self, inputs: Sequence[EncoderInput]) -> list[EncoderOutput]:
        """Encode items of kinds pixels_u8 and patches, whose shapes have been checked."""

    def record(self) -> None:
        """Record forwards of common sizes, where the device does."""

    @property
    def out_hidden_size(self) -> int:
        """Width of an embedding."""

    @property
    def num_deepstack_layers(self) -> int:
        """Side features of each token."""

    @property
    def head_dim(self) -> int:
        """Elements of an attention head."""

    @property
    def patch_workspace(self) -> int:
        """Upper estimate of the numbers that are alive for each patch at the widest moment."""

    @property
    def size_bytes(self) -> int:
        """Bytes of the weights."""


class VisionEncoder(ItemEncoder):
    """Pictures and clips through a family's tower.

    Args:
        tower: the family's.
        geometry: sizes of patches.
        limits: pixel budget of each modality, by its name.
    """

    modalities = ("image", "video")

    def __init__(self, tower: Tower, geometry: VisionGeometry, limits: Mapping[str, ProcessorLimits]) -> None:
        self.tower = tower
        self.geometry = geometry
        self.hidden_size = tower.out_hidden_size
        self.num_deepstack_layers = tower.num_deepstack_layers
        self.head_dims = (tower.head_dim,)
        self.dtype, self.device = tower.dtype, tower.device
        self._limits = limits

    def run(self, inputs: Sequence[EncoderInput]) -> list[EncoderOutput]:
        """Encode items that have been checked."""
        return self.tower(inputs)

    @torch.inference_mode()
    def record(self) -> None:
        """Record forwards of common sizes; see `ItemEncoder`."""
        self.tower.record()

    def check(self, item: EncoderInput) -> None:
        """Check grid and tensor; see `ItemEncoder.check`."""
        grid, merge = item.grid_thw, self.geometry.merge_size
        if grid is None:
            raise InvalidArgument(
                f"An item of modality {item.modality} has a grid.", reason="GRID_REQUIRED", field="grid_thw"
            )
        if min(grid) < 1 or grid[1] % merge or grid[2] % merge:
            message = f"Grid {list(grid)}: height and width are multiples of {merge}."
            raise InvalidArgument(message, reason="GRID_INVALID", field="grid_thw")
        super().check(item)

    def check_payload(self, item: EncoderInput) -> None:
        """Check pixels or patches against the grid; see `ItemEncoder.check`."""
        geometry = self.geometry
        t, h, w = grid_of(item)
        side, temporal = geometry.patch_size, geometry.temporal_patch_size
        match item.kind:
            case "pixels_u8":
                frames = item.tensor.shape[0] if item.tensor.dim() else 0
                expect_shape("tensor", item.tensor, (frames, h * side, w * side, geometry.in_channels))
                if math.ceil(frames / temporal) != t:
                    message = f"{frames} frames do not make {t} temporal patches."
                    raise InvalidArgument(message, reason="GRID_MISMATCH", field="grid_thw.t")
            case "patches":
                expect_shape("tensor", item.tensor, (t * h * w, geometry.patch_elements))
            case _:
                message = f"A visual item cannot hold {item.kind}."
                raise InvalidArgument(message, reason="PAYLOAD_KIND", field="payload_kind")

    def item_tokens(self, size: ItemSize) -> int:
        """Return the embeddings of a grid."""
        return math.prod(grid_of(size)) // self.geometry.merge_size**2

    def worst_items(self, max_tokens: int) -> list[ItemSize]:
        """Return the largest legal item of each modality; a clip's is one temporal patch, its attention costs most."""
        merge, side = self.geometry.merge_size, self.geometry.patch_size
        sizes = []
        for modality in self.modalities:
            frames = 1 if modality == "image" else self.geometry.temporal_patch_size
            tokens = self._limits[modality].max_pixels // ((merge * side) ** 2 * frames)
            rows, columns = _widest_grid(max(min(tokens, max_tokens), 1))
            sizes.append(ItemSize(modality, (1, rows * merge, columns * merge)))
        return sizes

    def dummy_input(self, size: ItemSize) -> EncoderInput:
        """Return an item of this grid, black."""
        t, h, w = grid_of(size)
        side = self.geometry.patch_size
        frames = 1 if size.modality == "image" else t * self.geometry.temporal_patch_size
        pixels = torch.zeros(frames, h * side, w * side, self.geometry.in_channels, dtype=torch.uint8)
        return EncoderInput(size.modality, "pixels_u8", pixels, size.grid_thw)

    def workspace_bytes(self, size: ItemSize) -> int:
        """Return an upper estimate of the transient memory for one item."""
        frames, height, width = grid_of(size)
        budget = self.tower.patch_budget
        rows = max(height * width, min(frames * height * width, budget))
        if self.device.type == "cuda":
            rows = max(rows, budget)  # what several items of one step may fill
        widest = max(2 * self.geometry.patch_elements + self.hidden_size, self.tower.patch_workspace)
        return rows * widest * max(self.dtype.itemsize, 4)

    @property
    def weight_bytes(self) -> int:
        """Bytes of the tower's weights."""
        return self.tower.size_bytes


def expect_shape(field: str, tensor: torch.Tensor, shape: tuple[int, ...]) -> None:
    """Check a tensor's shape.

    Raises:
        InvalidArgument: it is another; GRID_MISMATCH at the field's shape.
    """
    if tuple(tensor.shape) != shape:
        raise InvalidArgument(
            f"The {field} has shape {list(tensor.shape)}; the item's size asks for {list(shape)}.",
            reason="GRID_MISMATCH",
            field=f"{field}.shape",
        )


def grid_of(item: EncoderInput | ItemSize) -> Grid:
    """Return the grid of a visual item that has been checked."""
    assert item.grid_thw is not None, "a visual item has a grid"
    return item.grid_thw


def _widest_grid(tokens: int) -> tuple[int, int]:
    """Return (rows, columns) with the largest product up to `tokens`, within the legal aspect ratio, squarest first."""
    side = math.isqrt(tokens)
    least = max(1, math.isqrt(tokens // _MAX_ASPECT_RATIO))
    rows = max(range(side, least - 1, -1), key=lambda rows: rows * min(tokens // rows, rows * _MAX_ASPECT_RATIO))
    return rows, min(tokens // rows, rows * _MAX_ASPECT_RATIO)
