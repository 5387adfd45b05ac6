"""Tests of protos/tessera/tensors.py."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.errors import InvalidArgument
from tessera.tensors import (
    MAX_RANK,
    NUMPY_DTYPES,
    all_finite,
    array_dtype_name,
    check_shape,
    dtype_name,
    dtype_value,
    from_array,
    to_array,
)
from tessera.v1 import types_pb2 as pb


@given(
    name=st.sampled_from(sorted(NUMPY_DTYPES)),
    shape=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    seed=st.integers(0, 2**32 - 1),
)
def test_round_trip(name: str, shape: list[int], seed: int) -> None:
    """An array of any dtype and shape comes back bit for bit."""
    raw = np.random.default_rng(seed).bytes(int(np.prod(shape)) * NUMPY_DTYPES[name].itemsize)
    array = np.frombuffer(raw, NUMPY_DTYPES[name]).reshape(shape)
    message = from_array(array, name)
    assert message.data == raw
    assert list(message.shape) == shape
    back = to_array(message)
    assert back.tobytes() == raw
    assert back.dtype == NUMPY_DTYPES[name]
    assert back.shape == tuple(shape)


@pytest.mark.parametrize("name", sorted(NUMPY_DTYPES))
def test_dtype_names_and_values_are_inverse(name: str) -> None:
    """Each safetensors spelling has one protobuf value, and the other way round."""
    assert dtype_name(dtype_value(name)) == name


@pytest.mark.parametrize("value", [pb.D_TYPE_UNSPECIFIED, pb.D_TYPE_F8_E4M3, pb.D_TYPE_F8_E5M2, 99, -1])
def test_refused_dtypes(value: int) -> None:
    """Unspecified, reserved and unknown dtypes are refused with the field's name."""
    with pytest.raises(InvalidArgument) as error:
        dtype_name(value)
    assert (error.value.reason, error.value.field) == ("TENSOR_DTYPE", "dtype")


@pytest.mark.parametrize("shape", [(), (1,) * (MAX_RANK + 1), (0,), (3, -1), (2, 0, 2)])
def test_refused_shapes(shape: tuple[int, ...]) -> None:
    """Rank 0, a rank above eight and extents below one are refused."""
    with pytest.raises(InvalidArgument) as error:
        check_shape(shape)
    assert (error.value.reason, error.value.field) == ("TENSOR_SHAPE", "shape")


def test_shape_product_does_not_overflow() -> None:
    """The element count of an absurd shape is exact, so that no byte length can match it by wrapping round."""
    assert check_shape((2**62, 2**62, 4)) == 2**126


@pytest.mark.parametrize("size", [0, 15, 17, 64])
def test_byte_length_must_agree(size: int) -> None:
    """One byte too few or too many is refused, and the message says how many were expected."""
    tensor = pb.Tensor(dtype=pb.D_TYPE_F32, shape=[2, 2], data=bytes(size))
    with pytest.raises(InvalidArgument, match="16 bytes") as error:
        to_array(tensor)
    assert (error.value.reason, error.value.field) == ("TENSOR_SIZE", "data")


def test_huge_shape_with_few_bytes_is_refused() -> None:
    """A shape that would need more memory than there is costs nothing to refuse."""
    with pytest.raises(InvalidArgument) as error:
        to_array(pb.Tensor(dtype=pb.D_TYPE_F32, shape=[2**62, 2**62], data=b"1234"))
    assert error.value.reason == "TENSOR_SIZE"


def test_arrays_are_views() -> None:
    """Reading copies nothing, and nobody can write through the view into the message."""
    message = from_array(np.arange(6, dtype=np.float32).reshape(2, 3))
    array = to_array(message)
    assert not array.flags.owndata
    assert not array.flags.writeable


def test_layout_is_c_order_whatever_came() -> None:
    """A transposed or strided array is written in C order."""
    array = np.arange(12, dtype=np.int32).reshape(3, 4).T[::2]
    np.testing.assert_array_equal(to_array(from_array(array)), array)


def test_big_endian_arrays_become_little_endian() -> None:
    """The wire is little-endian whatever the array's byte order."""
    array = np.array([1, 256], dtype=">i4")
    assert from_array(array).data == (1).to_bytes(4, "little") + (256).to_bytes(4, "little")


def test_headers_have_no_bytes() -> None:
    """A tensor for a header keeps dtype and shape and leaves the data empty."""
    header = from_array(np.zeros((2, 3), np.float16), with_data=False)
    assert (header.dtype, list(header.shape), header.data) == (pb.D_TYPE_F16, [2, 3], b"")


@pytest.mark.parametrize("dtype", ["c8", "u4", "?", "S3"])
def test_dtypes_without_a_counterpart(dtype: str) -> None:
    """An array that no tensor can hold is refused, not converted."""
    with pytest.raises(InvalidArgument) as error:
        array_dtype_name(np.zeros(2, dtype))
    assert error.value.reason == "TENSOR_DTYPE"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["F16", "F32", "F64"])
def test_not_finite(name: str, value: float) -> None:
    """NaN and both infinities are found at any place."""
    array = np.zeros((3, 3), NUMPY_DTYPES[name])
    assert all_finite(array, name)
    array[2, 2] = value
    assert not all_finite(array, name)


@pytest.mark.parametrize(("bits", "finite"), [(0x7F80, False), (0xFF80, False), (0x7FC0, False), (0x7F7F, True)])
def test_not_finite_bfloat16(bits: int, finite: bool) -> None:
    """bfloat16 patterns with all exponent bits set are infinity or NaN; the largest number is finite."""
    assert all_finite(np.array([0, bits], np.uint16), "BF16") is finite


def test_integers_are_finite() -> None:
    """An integer is always finite, also where its bits would spell an infinity."""
    assert all_finite(np.array([0x7F800000], np.int32), "I32")
