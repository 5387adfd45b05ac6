"""The arena behind packed weights.

Next: tests/unit/worker/layers/test_positions.py
"""

import torch

from tessera_kernels.memory import Arena, advise_huge_pages


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


def test_advice_is_harmless_to_small_and_empty_tensors() -> None:
    """A tensor smaller than a huge page is left alone."""
    for tensor in (torch.zeros(0), torch.zeros(5), torch.zeros(3 << 20)):
        advise_huge_pages(tensor)
        assert not tensor.any()
