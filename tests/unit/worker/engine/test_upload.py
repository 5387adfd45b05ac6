"""Arrays that travel side by side come out as they went in.

Next: tests/unit/worker/engine/test_sampler.py
"""

import numpy as np
import pytest
import torch

from worker.engine.upload import Upload

ARRAYS = [
    np.arange(7, dtype=np.int64),
    np.arange(12, dtype=np.int64).reshape(3, 4)[:, :3],  # its rows lie apart
    np.zeros((2, 0), np.int32),
    np.array([3, 1, 4], np.int32),
]


@pytest.mark.parametrize("staged", [False, True])
def test_arrays_keep_shape_type_and_values(staged: bool) -> None:
    """Each array is a tensor of its own shape and type, empty ones too, also when the memory has to grow."""
    upload = Upload(torch.device("cpu"), staged)
    for arrays in (ARRAYS[:1], ARRAYS, [np.ones(5000, np.int64), *ARRAYS]):
        tensors = upload(arrays)
        for array, tensor in zip(arrays, tensors, strict=True):
            assert tensor.numpy().dtype == array.dtype
            assert np.array_equal(tensor.numpy(), array)
            assert tensor.data_ptr() % array.itemsize == 0


def test_what_was_uploaded_is_a_copy() -> None:
    """A tensor that was uploaded keeps its values while its array takes those of the next step."""
    array = np.arange(5, dtype=np.int64)
    [staged] = Upload(torch.device("cpu"), True)([array])
    array += 1
    assert staged.tolist() == [0, 1, 2, 3, 4]
