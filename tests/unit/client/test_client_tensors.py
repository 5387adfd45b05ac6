"""Tensor.from_array: whatever holds an array, as it is, or a typed error."""

import array
import gc

import numpy as np
import pytest
import torch

from tessera.v1 import types_pb2 as types
from tessera_client import InvalidArgument, Item, Tensor
from tessera_client.messages import write_item
from tessera_client.uploads import Bag

VALUES = np.arange(24).reshape(2, 3, 4)


@pytest.mark.parametrize(
    ("dtype", "name"),
    [("u1", "U8"), ("i4", "I32"), ("i8", "I64"), ("f2", "F16"), ("f4", "F32"), ("f8", "F64"), (">f4", "F32")],
)
def test_numpy_arrays_come_through(dtype: str, name: str) -> None:
    """Every dtype of the contract, in either byte order, keeps shape and values; so does its message."""
    tensor = Tensor.from_array(VALUES.astype(dtype))
    assert (tensor.dtype, tensor.shape) == (name, (2, 3, 4))
    again = Tensor.from_proto(tensor.to_proto())
    np.testing.assert_array_equal(again.to_array(), VALUES)


@pytest.mark.parametrize("name", ["uint8", "int32", "int64", "float16", "float32", "float64", "bfloat16"])
def test_torch_tensors_come_through(name: str) -> None:
    """By DLPack, bfloat16 included, from any layout."""
    source = torch.from_numpy(VALUES).to(getattr(torch, name))
    for view in (source, source.transpose(0, 2), source[:, ::2, 1:], source[1], source.expand(2, 3, 4)):
        tensor = Tensor.from_array(view)
        assert tensor.shape == tuple(view.shape)
        taken = torch.frombuffer(bytearray(tensor.data), dtype=view.dtype).reshape(view.shape)
        assert torch.equal(taken, view)


def test_views_of_numpy_come_through() -> None:
    """Transposed, stepped, reversed, broadcast and read-only arrays are copied in C order."""
    base = VALUES.astype("f4")
    fixed = base.copy()
    fixed.flags.writeable = False
    for view in (base.T, base[::-1, ::2], base[:, :, ::-1], np.broadcast_to(base[0], (5, 3, 4)), fixed):
        np.testing.assert_array_equal(Tensor.from_array(view).to_array(), view)


class Reversed:
    """An array that is walked backwards, by DLPack alone."""

    def __init__(self, values: np.ndarray) -> None:
        self._values = values

    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)

    def __dlpack__(self) -> object:
        return self._values.__dlpack__()


def test_negative_strides_come_through_dlpack() -> None:
    """The first element may be the last in memory."""
    view = VALUES.astype("i8")[::-1, :, ::-2]
    np.testing.assert_array_equal(Tensor.from_array(Reversed(view)).to_array(), view)


def test_plain_buffers_come_through() -> None:
    """bytes, array.array and strided memoryviews need no library."""
    assert Tensor.from_array(b"\1\2") == Tensor("U8", (2,), b"\1\2")
    assert Tensor.from_array(array.array("d", [1.0, 2.0])).to_array().tolist() == [1.0, 2.0]
    assert Tensor.from_array(array.array("i", [1, -2])).dtype == "I32"
    assert Tensor.from_array(memoryview(b"abcdef")[::2]).data == b"ace"


def test_bit_patterns_are_named() -> None:
    """uint16 is bfloat16 where the caller says so, and refused where not."""
    bits = np.full((2, 2), 0x3F80, np.uint16)
    assert Tensor.from_array(bits, "BF16").dtype == "BF16"
    with pytest.raises(InvalidArgument) as caught:
        Tensor.from_array(bits)
    assert caught.value.reason == "TENSOR_DTYPE"


class OnDevice:
    """An array on a GPU."""

    def __dlpack_device__(self) -> tuple[int, int]:
        return (2, 1)

    def __dlpack__(self) -> object:
        raise AssertionError("not asked for")


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (np.zeros(2, bool), "TENSOR_DTYPE"),
        (np.zeros(2, complex), "TENSOR_DTYPE"),
        (np.zeros(2, np.int8), "TENSOR_DTYPE"),
        (np.zeros(2, object), "TENSOR_DTYPE"),
        (np.array(["a"]), "TENSOR_DTYPE"),
        (torch.zeros(2, dtype=torch.bool), "TENSOR_DTYPE"),
        (torch.zeros(2, dtype=torch.complex64), "TENSOR_DTYPE"),
        (torch.zeros(2, dtype=torch.int16), "TENSOR_DTYPE"),
        (torch.zeros(2, requires_grad=True), "TENSOR_SOURCE"),
        (torch.zeros(2, device="meta"), "TENSOR_DEVICE"),
        pytest.param(OnDevice(), "TENSOR_DEVICE", id="on a GPU"),
        ([1.0, 2.0], "TENSOR_SOURCE"),
        (array.array("b", [1]), "TENSOR_DTYPE"),
        (np.float32(1.0), "TENSOR_SHAPE"),
        (np.zeros((0, 2), np.float32), "TENSOR_SHAPE"),
        (torch.zeros(3, 0), "TENSOR_SHAPE"),
        (np.zeros((1,) * 9, np.float32), "TENSOR_SHAPE"),
    ],
    ids=str,
)
def test_what_is_no_tensor_is_a_typed_error(source: object, reason: str) -> None:
    """An unsupported dtype, device, shape or object is refused with its reason, before anything is sent."""
    with pytest.raises(InvalidArgument) as caught:
        Tensor.from_array(source)
    assert caught.value.reason == reason


def test_nothing_is_held_behind() -> None:
    """The exported array is free again once it has been copied."""
    source = torch.zeros(1000)
    before = source.untyped_storage()._use_count() if hasattr(source.untyped_storage(), "_use_count") else None
    for _ in range(20):
        Tensor.from_array(source)
    gc.collect()
    after = source.untyped_storage()._use_count() if hasattr(source.untyped_storage(), "_use_count") else None
    assert after == before


def test_items_take_any_array() -> None:
    """A torch tensor is an item's payload as it is, side tensors too; a refused one is named by its path."""
    grid, embeddings = (1, 4, 4), torch.ones(4, 8, dtype=torch.bfloat16)
    item = Item("image", "embeddings", embeddings, grid_thw=grid, side_arrays={"deepstack": embeddings[None]})
    message = item.to_proto()
    assert (message.tensor.dtype, list(message.tensor.shape)) == (types.D_TYPE_BF16, [4, 8])
    assert list(message.side_tensors["deepstack"].shape) == [1, 4, 8]
    wrong = Item("image", "embeddings", embeddings, grid_thw=grid, side_arrays={"deepstack": embeddings > 0})
    with pytest.raises(InvalidArgument) as caught:
        write_item(types.MultimodalItem(), wrong, Bag(), "items[3]")
    assert (caught.value.reason, caught.value.field) == ("TENSOR_DTYPE", "items[3].side_tensors[deepstack]")
