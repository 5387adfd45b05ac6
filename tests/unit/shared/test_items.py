"""Tests of protos/tessera/items.py."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tessera.errors import FailedPrecondition, InvalidArgument, ServeError
from tessera.item_fields import MAX_GRID
from tessera.items import (
    ItemGeometry,
    MultimodalItem,
    PlaceholderRange,
    check_grid,
    check_item,
    item_from_proto,
    item_to_proto,
)
from tessera.modality import Modality
from tessera.tensors import from_array
from tessera.v1 import types_pb2 as pb

GEOMETRY = ItemGeometry(patch_size=16, merge_size=2, temporal_patch_size=2, hidden_size=8, num_deepstack_layers=2)
Edit = Callable[[pb.MultimodalItem], Any]


def image() -> pb.MultimodalItem:
    """A good picture of 2 x 4 patches."""
    return pb.MultimodalItem(
        modality=pb.MODALITY_IMAGE,
        payload_kind=pb.PAYLOAD_KIND_PIXELS_U8,
        tensor=from_array(np.zeros((1, 32, 64, 3), np.uint8)),
        grid_thw=pb.GridThw(t=1, h=2, w=4),
    )


def clip(frames: int = 3, times: tuple[float, ...] = (0.0, 0.5, 1.0)) -> pb.MultimodalItem:
    """A good clip of 2 temporal patches, the second of them padded."""
    return pb.MultimodalItem(
        modality=pb.MODALITY_VIDEO,
        payload_kind=pb.PAYLOAD_KIND_PIXELS_U8,
        tensor=from_array(np.zeros((frames, 32, 32, 3), np.uint8)),
        grid_thw=pb.GridThw(t=2, h=2, w=2),
        timestamps=times,
    )


def patches() -> pb.MultimodalItem:
    """A good picture as a Hugging Face processor returns it."""
    return pb.MultimodalItem(
        modality=pb.MODALITY_IMAGE,
        payload_kind=pb.PAYLOAD_KIND_PATCHES,
        tensor=from_array(np.zeros((8, 1536), np.float32)),
        grid_thw=pb.GridThw(t=1, h=2, w=4),
    )


def embeddings() -> pb.MultimodalItem:
    """A good picture as an encoder returns it, with DeepStack features."""
    item = pb.MultimodalItem(
        modality=pb.MODALITY_IMAGE,
        payload_kind=pb.PAYLOAD_KIND_EMBEDDINGS,
        tensor=from_array(np.zeros((2, 8), np.float32)),
        grid_thw=pb.GridThw(t=1, h=2, w=4),
    )
    item.side_tensors["deepstack"].CopyFrom(from_array(np.zeros((2, 2, 8), np.float32)))
    return item


def edited(make: Callable[[], pb.MultimodalItem], edit: Edit) -> pb.MultimodalItem:
    """A good item with one thing changed."""
    message = make()
    edit(message)
    return message


@pytest.mark.parametrize("make", [image, clip, patches, embeddings])
def test_good_items_pass_and_come_back(make: Callable[[], pb.MultimodalItem]) -> None:
    """A good item of every kind is taken, and its message is restored from it."""
    item = item_from_proto(make())
    check_item(item, GEOMETRY)
    assert item.content_hash == item.compute_hash()
    assert item_to_proto(item) == make()


def test_a_named_item_keeps_its_name_alone() -> None:
    """Without bytes an item is its hash, kind, grid, ranges and times."""
    item = item_from_proto(clip())
    message = item_to_proto(item, with_bytes=False)
    assert message.WhichOneof("payload") == "content_hash"
    assert message.content_hash == item.content_hash
    assert not message.side_tensors
    assert item_from_proto(message).without_bytes() == item.without_bytes()
    assert item.without_bytes().size_bytes == 0


def test_times_and_ranges_do_not_change_the_name() -> None:
    """The hash names what the encoder sees; where and when it stands is told apart."""
    other = clip(times=(5.0, 6.0, 7.0))
    other.ranges.add(offset=3, length=1)
    assert item_from_proto(other).content_hash == item_from_proto(clip()).content_hash


def test_sizes() -> None:
    """An item knows its tokens and its bytes, side tensors included."""
    item = item_from_proto(embeddings())
    assert item.size_bytes == 2 * 8 * 4 + 2 * 2 * 8 * 4
    assert GEOMETRY.num_tokens((2, 4, 6)) == 12
    spread = MultimodalItem(Modality.VIDEO, None, b"", ranges=(PlaceholderRange(2, 3), PlaceholderRange(9, 4)))
    assert spread.num_tokens == 7
    assert spread.ranges[1].end == 13


def set_tensor(array: np.ndarray, dtype: str | None = None) -> Edit:
    """An edit that puts another tensor in."""
    return lambda m: m.tensor.CopyFrom(from_array(array, dtype))


def set_grid(t: int, h: int, w: int) -> Edit:
    """An edit that puts another grid in."""
    return lambda m: m.grid_thw.CopyFrom(pb.GridThw(t=t, h=h, w=w))


def set_times(*times: float) -> Edit:
    """An edit that puts other times in."""
    return lambda m: (m.ClearField("timestamps"), m.timestamps.extend(times))


NAN, INF = float("nan"), float("inf")
BAD_MESSAGES: list[tuple[str, Callable[[], pb.MultimodalItem], Edit, str, str]] = [
    ("no modality", image, lambda m: m.ClearField("modality"), "FIELD_REQUIRED", "modality"),
    ("audio", image, lambda m: setattr(m, "modality", pb.MODALITY_AUDIO), "MODALITY_UNSUPPORTED", "modality"),
    ("no payload", image, lambda m: m.ClearField("tensor"), "FIELD_REQUIRED", "tensor"),
    ("no kind", image, lambda m: m.ClearField("payload_kind"), "FIELD_REQUIRED", "payload_kind"),
    ("unknown kind", image, lambda m: setattr(m, "payload_kind", 77), "FIELD_REQUIRED", "payload_kind"),
    ("short hash", image, lambda m: setattr(m, "content_hash", b"x" * 31), "HASH_SIZE", "content_hash"),
    ("long hash", image, lambda m: setattr(m, "content_hash", b"x" * 33), "HASH_SIZE", "content_hash"),
    ("empty hash", image, lambda m: setattr(m, "content_hash", b""), "HASH_SIZE", "content_hash"),
    ("zero grid", image, set_grid(1, 0, 4), "GRID_INVALID", "grid_thw"),
    ("negative grid", image, set_grid(-1, 2, 4), "GRID_INVALID", "grid_thw"),
    ("huge grid", image, set_grid(1, MAX_GRID + 1, 4), "GRID_INVALID", "grid_thw"),
    ("reserved dtype", image, lambda m: setattr(m.tensor, "dtype", 8), "TENSOR_DTYPE", "tensor.dtype"),
    ("short data", image, lambda m: setattr(m.tensor, "data", b"1"), "TENSOR_SIZE", "tensor.data"),
    ("rank of pixels", image, set_tensor(np.zeros((32, 64, 3), np.uint8)), "TENSOR_SHAPE", "tensor.shape"),
    ("dtype of pixels", image, set_tensor(np.zeros((1, 32, 64, 3), np.float32)), "TENSOR_DTYPE", "tensor.dtype"),
    ("rank of patches", patches, set_tensor(np.zeros((8, 3, 512), np.float32)), "TENSOR_SHAPE", "tensor.shape"),
    ("dtype of patches", patches, set_tensor(np.zeros((8, 1536), np.float64)), "TENSOR_DTYPE", "tensor.dtype"),
    ("NaN", patches, set_tensor(np.full((8, 1536), NAN, np.float32)), "TENSOR_NOT_FINITE", "tensor.data"),
    ("infinity", patches, set_tensor(np.full((8, 1536), INF, np.float16)), "TENSOR_NOT_FINITE", "tensor.data"),
    (
        "infinite BF16",
        patches,
        set_tensor(np.full((8, 1536), 0x7F80, np.uint16), "BF16"),
        "TENSOR_NOT_FINITE",
        "tensor.data",
    ),
    (
        "side tensor of NaN",
        embeddings,
        lambda m: m.side_tensors["deepstack"].CopyFrom(from_array(np.full((2, 2, 8), NAN, np.float32))),
        "TENSOR_NOT_FINITE",
        "side_tensors[deepstack]",
    ),
    (
        "short side tensor",
        embeddings,
        lambda m: setattr(m.side_tensors["deepstack"], "data", b""),
        "TENSOR_SIZE",
        "side_tensors[deepstack].data",
    ),
    ("descending times", clip, set_times(0.0, 2.0, 1.0), "TIMESTAMPS_INVALID", "timestamps"),
    ("NaN time", clip, set_times(0.0, NAN, 1.0), "TIMESTAMPS_INVALID", "timestamps"),
    ("infinite time", clip, set_times(0.0, 1.0, INF), "TIMESTAMPS_INVALID", "timestamps"),
    ("negative time", clip, set_times(-1.0, 0.0, 1.0), "TIMESTAMPS_INVALID", "timestamps[0]"),
    ("negative rate", image, lambda m: setattr(m, "sampling_rate_hz", -1.0), "SAMPLING_RATE", "sampling_rate_hz"),
    ("NaN rate", image, lambda m: setattr(m, "sampling_rate_hz", NAN), "SAMPLING_RATE", "sampling_rate_hz"),
]


@pytest.mark.parametrize(
    ("make", "edit", "reason", "field"), [row[1:] for row in BAD_MESSAGES], ids=[r[0] for r in BAD_MESSAGES]
)
def test_refused_messages(make: Callable[[], pb.MultimodalItem], edit: Edit, reason: str, field: str) -> None:
    """What can be seen from the message alone is refused without a model, with reason and field."""
    with pytest.raises(ServeError) as error:
        item_from_proto(edited(make, edit))
    assert (error.value.reason, error.value.field) == (reason, field)


BAD_ITEMS: list[tuple[str, Callable[[], pb.MultimodalItem], Edit, str, str]] = [
    ("no grid", image, lambda m: m.ClearField("grid_thw"), "GRID_REQUIRED", "grid_thw"),
    ("odd grid", image, set_grid(1, 3, 4), "GRID_INVALID", "grid_thw"),
    ("image of two", image, set_grid(2, 2, 4), "GRID_INVALID", "grid_thw.t"),
    ("grid turned", image, set_grid(1, 4, 2), "GRID_MISMATCH", "tensor.shape"),
    ("image of two frames", image, set_tensor(np.zeros((2, 32, 64, 3), np.uint8)), "GRID_MISMATCH", "grid_thw.t"),
    ("channels", image, set_tensor(np.zeros((1, 32, 64, 4), np.uint8)), "GRID_MISMATCH", "tensor.shape"),
    ("frames over t", clip, set_tensor(np.zeros((5, 32, 32, 3), np.uint8)), "GRID_MISMATCH", "grid_thw.t"),
    ("frames under t", clip, set_tensor(np.zeros((2, 32, 32, 3), np.uint8)), "GRID_MISMATCH", "grid_thw.t"),
    ("times of other frames", clip, set_times(0.0, 0.5), "TIMESTAMPS_MISMATCH", "timestamps"),
    ("rows of patches", patches, set_tensor(np.zeros((7, 1536), np.float32)), "GRID_MISMATCH", "tensor.shape"),
    ("width of patches", patches, set_tensor(np.zeros((8, 768), np.float32)), "GRID_MISMATCH", "tensor.shape"),
    ("hidden size", embeddings, set_tensor(np.zeros((2, 9), np.float32)), "GRID_MISMATCH", "tensor.shape"),
    ("tokens", embeddings, set_tensor(np.zeros((3, 8), np.float32)), "GRID_MISMATCH", "tensor.shape"),
    (
        "no deepstack",
        embeddings,
        lambda m: m.ClearField("side_tensors"),
        "SIDE_TENSOR_REQUIRED",
        "side_tensors[deepstack]",
    ),
    (
        "deepstack layers",
        embeddings,
        lambda m: m.side_tensors["deepstack"].CopyFrom(from_array(np.zeros((3, 2, 8), np.float32))),
        "TENSOR_SHAPE",
        "side_tensors[deepstack].shape",
    ),
    (
        "samples of a picture",
        patches,
        lambda m: setattr(m, "payload_kind", pb.PAYLOAD_KIND_SAMPLES),
        "PAYLOAD_KIND",
        "payload_kind",
    ),
]


@pytest.mark.parametrize(
    ("make", "edit", "reason", "field"), [row[1:] for row in BAD_ITEMS], ids=[r[0] for r in BAD_ITEMS]
)
def test_items_that_do_not_fit_the_model(
    make: Callable[[], pb.MultimodalItem], edit: Edit, reason: str, field: str
) -> None:
    """What disagrees with the model's geometry is refused before any kernel, with reason and field."""
    item = item_from_proto(edited(make, edit))
    with pytest.raises(InvalidArgument) as error:
        check_item(item, GEOMETRY)
    assert (error.value.reason, error.value.field) == (reason, field)


def test_a_name_alone_cannot_be_checked() -> None:
    """An item that is only a name is ITEM_NOT_FOUND where its bytes are needed."""
    item = item_from_proto(image()).without_bytes()
    with pytest.raises(FailedPrecondition) as error:
        check_item(item, GEOMETRY)
    assert (error.value.reason, error.value.field) == ("ITEM_NOT_FOUND", "content_hash")


def test_families_without_deepstack_take_embeddings_alone() -> None:
    """Side tensors are asked for, and taken, only where the family has them."""
    plain = ItemGeometry(patch_size=16, merge_size=2, temporal_patch_size=2, hidden_size=8)
    check_item(item_from_proto(edited(embeddings, lambda m: m.ClearField("side_tensors"))), plain)
    other = edited(embeddings, lambda m: m.side_tensors["other"].CopyFrom(m.side_tensors["deepstack"]))
    for message, geometry in ((embeddings(), plain), (other, GEOMETRY)):
        with pytest.raises(InvalidArgument) as error:
            check_item(item_from_proto(message), geometry)
        assert error.value.reason == "SIDE_TENSOR_FOREIGN"


def test_check_grid_returns_the_grid() -> None:
    """A grid that fits is handed back."""
    assert check_grid(Modality.VIDEO, (3, 2, 4), GEOMETRY) == (3, 2, 4)
