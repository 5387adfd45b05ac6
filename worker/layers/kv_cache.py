"""Paged key/value cache: storage only; which block belongs to whom is the block pool's business.

Next: worker/layers/state_cache.py
"""

from collections.abc import Sequence

import torch

from tessera_kernels import memory, ops
from worker.layers.state_cache import StateCache


class KVCache:
    """Keys and values of every attention layer, in blocks that block tables point into.

    A block holds `block_size` tokens of one layer *head by head*, so that the attention of one KV head streams
    contiguous memory; that is what decides the speed of decoding on a CPU, and paged GPU kernels take it too.

    Args:
        num_layers: attention layers that keep keys and values.
        num_blocks: blocks for each layer; block ids are shared by all layers.
        block_size: tokens in a block.
        num_kv_heads: key/value heads (of this rank).
        head_dim: elements of a head.
        dtype: storage type.
        device: where the blocks live.
        states: recurrent state of the layers that keep one in place of keys and values, or None.
    """

    def __init__(
        self,
        num_layers: int,
        num_blocks: int,
        block_size: int,
        num_kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device | str,
        states: StateCache | None = None,
    ) -> None:
        self.states = states
        self.num_layers = num_layers
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.num_kv_heads = num_kv_heads
        self.head_dim = head_dim
        # blocks: (num_layers, key and value, num_blocks, num_kv_heads, block_size, head_dim)
        shape = (num_layers, 2, num_blocks, num_kv_heads, block_size, head_dim)
        # Never zeroed: what was not written is never read, and the CPU commits memory as blocks come into use.
        on_cpu = torch.device(device).type == "cpu"
        self.blocks = memory.allocate(shape, dtype) if on_cpu else torch.empty(shape, dtype=dtype, device=device)
        self._layers = [(self.blocks[index, 0], self.blocks[index, 1]) for index in range(num_layers)]

    @staticmethod
    def block_bytes(num_layers: int, block_size: int, num_kv_heads: int, head_dim: int, dtype: torch.dtype) -> int:
        """Return the bytes that one block id costs over all layers."""
        return num_layers * 2 * block_size * num_kv_heads * head_dim * dtype.itemsize

    @property
    def dtype(self) -> torch.dtype:
        """Storage type of the blocks."""
        return self.blocks.dtype

    @property
    def device(self) -> torch.device:
        """Device of the blocks."""
        return self.blocks.device

    @property
    def size_bytes(self) -> int:
        """Bytes of the whole cache."""
        return self.blocks.numel() * self.blocks.element_size()

    def layer(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return one layer's (key, value), each (num_blocks, num_kv_heads, block_size, head_dim)."""
        return self._layers[index]

    def copy_blocks(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copy whole blocks in all layers, as a fork of a sequence needs for its last, partly filled block.

        Args:
            pairs: (source block id, destination block id); no block is both.
        """
        layers, _, num_blocks = self.blocks.shape[:3]
        ops.copy_slots(self.blocks.view(2 * layers, num_blocks, -1), pairs)
