"""Tests of protos/tessera/items.py for time series."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tessera.errors import FailedPrecondition, InvalidArgument, ResourceExhausted, ServeError, Unimplemented
from tessera.items import ItemGeometry, check_item, item_from_proto, item_to_proto, series_tokens
from tessera.tensors import from_array
from tessera.time_series import MAX_CHANNELS
from tessera.v1 import types_pb2 as pb

GEOMETRY = ItemGeometry(patch_size=16, merge_size=2, temporal_patch_size=2, hidden_size=8, time_series=True)
Edit = Callable[[pb.MultimodalItem], Any]


def samples(shape: tuple[int, ...] = (600, 3), rate: float = 100.0) -> pb.MultimodalItem:
    """A good series."""
    return pb.MultimodalItem(
        modality=pb.MODALITY_TIME_SERIES,
        payload_kind=pb.PAYLOAD_KIND_SAMPLES,
        tensor=from_array(np.ones(shape, np.float32)),
        sampling_rate_hz=rate,
        channels=shape[-1],
    )


def embeddings() -> pb.MultimodalItem:
    """A good series as an encoder returns it."""
    return pb.MultimodalItem(
        modality=pb.MODALITY_TIME_SERIES,
        payload_kind=pb.PAYLOAD_KIND_EMBEDDINGS,
        tensor=from_array(np.zeros((7, 8), np.float16)),
    )


def edited(make: Callable[[], pb.MultimodalItem], edit: Edit) -> pb.MultimodalItem:
    """A good item with one thing changed."""
    message = make()
    edit(message)
    return message


def set_tensor(shape: tuple[int, ...], dtype: type = np.float32, fill: float = 0) -> Edit:
    """An edit that puts another tensor in, and says nothing of its channels."""
    array = np.full(shape, fill, dtype)
    return lambda m: (m.tensor.CopyFrom(from_array(array)), m.ClearField("channels"))


@pytest.mark.parametrize("make", [samples, embeddings])
def test_good_series_pass_and_come_back(make: Callable[[], pb.MultimodalItem]) -> None:
    """A good series is taken, and its message, rate and channels included, is restored from it."""
    item = item_from_proto(make())
    check_item(item, GEOMETRY)
    assert item.content_hash == item.compute_hash()
    assert item_to_proto(item) == make()


@pytest.mark.parametrize(("make", "tokens"), [(samples, 6), (embeddings, 7)])
def test_tokens(make: Callable[[], pb.MultimodalItem], tokens: int) -> None:
    """Samples own what their length and rate give, embeddings a token a row."""
    assert series_tokens(item_from_proto(make()), GEOMETRY) == tokens


def test_channels_may_be_left_to_the_shape() -> None:
    """A message that does not say its channels gets them from the tensor."""
    item = item_from_proto(edited(samples, lambda m: m.ClearField("channels")))
    assert item.channels == 3
    assert item.content_hash == item_from_proto(samples()).content_hash


def test_a_named_series_keeps_rate_and_channels() -> None:
    """Without bytes a series is its hash, kind, rate and channels."""
    message = item_to_proto(item_from_proto(samples()), with_bytes=False)
    assert (message.WhichOneof("payload"), message.sampling_rate_hz, message.channels) == ("content_hash", 100.0, 3)
    named = item_from_proto(message)
    assert (named.content_hash, named.channels) == (item_from_proto(samples()).content_hash, 3)


@pytest.mark.parametrize(
    "edit",
    [
        lambda m: setattr(m, "sampling_rate_hz", 200.0),
        lambda m: m.ClearField("sampling_rate_hz"),
        set_tensor((900, 2), fill=1),
        set_tensor((600, 3), fill=2),
    ],
    ids=["rate", "no rate", "shape", "values"],
)
def test_the_name_covers_what_the_encoder_sees(edit: Edit) -> None:
    """Rate, shape and values change a series' hash."""
    assert item_from_proto(edited(samples, edit)).content_hash != item_from_proto(samples()).content_hash


NAN, INF = float("nan"), float("inf")
GRID = pb.GridThw(t=1, h=2, w=2)
BAD_MESSAGES: list[tuple[str, Callable[[], pb.MultimodalItem], Edit, str, str]] = [
    ("negative channels", samples, lambda m: setattr(m, "channels", -1), "SERIES_CHANNELS", "channels"),
    ("too many", samples, lambda m: setattr(m, "channels", MAX_CHANNELS + 1), "SERIES_CHANNELS", "channels"),
    ("other channels", samples, lambda m: setattr(m, "channels", 2), "SERIES_CHANNELS", "channels"),
    ("negative rate", samples, lambda m: setattr(m, "sampling_rate_hz", -1.0), "SAMPLING_RATE", "sampling_rate_hz"),
    ("infinite rate", samples, lambda m: setattr(m, "sampling_rate_hz", INF), "SAMPLING_RATE", "sampling_rate_hz"),
    ("NaN rate", samples, lambda m: setattr(m, "sampling_rate_hz", NAN), "SAMPLING_RATE", "sampling_rate_hz"),
    ("one dimension", samples, set_tensor((600,)), "TENSOR_SHAPE", "tensor.shape"),
    ("three dimensions", samples, set_tensor((2, 300, 3)), "TENSOR_SHAPE", "tensor.shape"),
    ("float64", samples, set_tensor((600, 3), np.float64), "TENSOR_DTYPE", "tensor.dtype"),
    ("integers", samples, set_tensor((600, 3), np.int32), "TENSOR_DTYPE", "tensor.dtype"),
    ("NaN", samples, set_tensor((600, 3), fill=NAN), "TENSOR_NOT_FINITE", "tensor.data"),
    ("infinity", samples, set_tensor((600, 3), fill=INF), "TENSOR_NOT_FINITE", "tensor.data"),
    (
        "rate of a picture",
        samples,
        lambda m: setattr(m, "modality", pb.MODALITY_IMAGE),
        "FIELD_FOREIGN",
        "sampling_rate_hz",
    ),
    (
        "channels of a clip",
        samples,
        lambda m: (setattr(m, "modality", pb.MODALITY_VIDEO), m.ClearField("sampling_rate_hz")),
        "FIELD_FOREIGN",
        "channels",
    ),
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
    ("grid", samples, lambda m: m.grid_thw.CopyFrom(GRID), "GRID_FOREIGN", "grid_thw"),
    ("grid of embeddings", embeddings, lambda m: m.grid_thw.CopyFrom(GRID), "GRID_FOREIGN", "grid_thw"),
    ("one patch", samples, set_tensor((48, 3)), "SERIES_TOO_SHORT", "tensor.shape"),
    ("nine long channels", samples, set_tensor((240_000, 9)), "SERIES_TOO_LARGE", "tensor.shape"),
    ("transposed", samples, set_tensor((2, 2000)), "SERIES_CHANNELS", "tensor.shape"),
    ("hidden size", embeddings, set_tensor((7, 9), np.float16), "TENSOR_SHAPE", "tensor.shape"),
    (
        "patches",
        embeddings,
        lambda m: setattr(m, "payload_kind", pb.PAYLOAD_KIND_PATCHES),
        "PAYLOAD_KIND",
        "payload_kind",
    ),
]


@pytest.mark.parametrize(
    ("make", "edit", "reason", "field"), [row[1:] for row in BAD_ITEMS], ids=[r[0] for r in BAD_ITEMS]
)
def test_series_that_do_not_fit_the_model(
    make: Callable[[], pb.MultimodalItem], edit: Edit, reason: str, field: str
) -> None:
    """What the model cannot encode is refused before any kernel, with reason and field."""
    item = item_from_proto(edited(make, edit))
    with pytest.raises((InvalidArgument, ResourceExhausted)) as error:
        check_item(item, GEOMETRY)
    assert (error.value.reason, error.value.field) == (reason, field)


def test_a_model_without_the_modality() -> None:
    """A series for a model that takes none is unimplemented, not malformed."""
    plain = ItemGeometry(patch_size=16, merge_size=2, temporal_patch_size=2, hidden_size=8)
    with pytest.raises(Unimplemented) as error:
        check_item(item_from_proto(samples()), plain)
    assert (error.value.reason, error.value.field) == ("MODALITY_UNSUPPORTED", "modality")


def test_a_name_alone_cannot_be_checked() -> None:
    """A series that is only a name is ITEM_NOT_FOUND where its bytes are needed."""
    with pytest.raises(FailedPrecondition, match="not here"):
        check_item(item_from_proto(samples()).without_bytes(), GEOMETRY)
