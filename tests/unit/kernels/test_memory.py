"""The memory behind packed weights and the KV cache.

Next: tests/unit/worker/layers/test_positions.py
"""

import pytest
import torch

from tessera_kernels.memory import Arena, allocate


def test_vectors_share_a_chunk_on_cache_lines() -> None:
    """Small requests lie side by side in one chunk, each at the start of a cache line."""
    arena = Arena(chunk_bytes=1 << 16)
    first, second = arena.take(10), arena.take(100)
    assert second.data_ptr() - first.data_ptr() == 64
    assert first.untyped_storage().data_ptr() == second.untyped_storage().data_ptr()


def test_vectors_never_overlap_across_chunks() -> None:
    """What does not fit into the rest of a chunk, or into any, gets a new one."""
    arena = Arena(chunk_bytes=1 << 12)
    vectors = [arena.take(count) for count in (600, 600, 5000, 10)]
    for index, vector in enumerate(vectors):
        vector.fill_(index)
    assert [int(vector.sum()) for vector in vectors] == [0, 600, 10000, 30]


@pytest.mark.parametrize("shape", [(0,), (3, 5), (2, 3, 300_000)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_allocated_tensors_are_plain_and_aligned(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Any shape and type can be had; it begins at a huge page and may be written outside of inference mode."""
    with torch.inference_mode():
        tensor = allocate(shape, dtype)
    assert tensor.shape == shape
    assert tensor.dtype is dtype
    assert tensor.data_ptr() % (2 << 20) == 0
    tensor.fill_(1)
    assert tensor.float().sum() == tensor.numel()
