"""The paged cache's shape and copies.

Next: tests/unit/worker/models/test_loader.py
"""

import torch

from worker.layers.kv_cache import KVCache


def make() -> KVCache:
    """Two layers of four blocks."""
    cache = KVCache(2, 4, 8, 3, 16, torch.float32, "cpu")
    cache.blocks.zero_()
    return cache


def test_layers_are_views() -> None:
    """What is written through a layer's tensors stands in the cache."""
    cache = make()
    key, value = cache.layer(1)
    assert key.shape == value.shape == (4, 3, 8, 16)
    key[2] = 1
    assert cache.blocks[1, 0, 2].eq(1).all()
    assert cache.blocks.sum() == 3 * 8 * 16


def test_block_bytes_cover_the_cache() -> None:
    """A block's price times the number of blocks is the cache's size."""
    cache = make()
    assert KVCache.block_bytes(2, 8, 3, 16, torch.float32) * 4 == cache.size_bytes


def test_blocks_are_copied_in_all_layers() -> None:
    """A copied block has the same keys and values in every layer; the others stay."""
    cache = make()
    cache.blocks.copy_(torch.arange(cache.blocks.numel()).view_as(cache.blocks))
    before = cache.blocks.clone()
    cache.copy_blocks([(0, 3), (1, 2)])
    assert torch.equal(cache.blocks[:, :, 3], before[:, :, 0])
    assert torch.equal(cache.blocks[:, :, 2], before[:, :, 1])
    assert torch.equal(cache.blocks[:, :, :2], before[:, :, :2])
    cache.copy_blocks([])
