"""Copies inside a cache: KV blocks for forks, recurrent states for forks and checkpoints.

Next: kernels/tessera_kernels/transfer.py
"""

from collections.abc import Collection

import torch

from tessera_kernels import cuda
from tessera_kernels.transfer import on_device


def copy_slots(cache: torch.Tensor, pairs: Collection[tuple[int, int]]) -> None:
    """Copy slots of all layers to other slots, *in place*; no device is waited for.

    Args:
        cache: contiguous (layers, slots, width).
        pairs: (source, destination); no slot is both.
    """
    if not pairs:
        return
    listed = on_device(torch.tensor(list(pairs), dtype=torch.int64), cache.device)
    if cuda.serves(cache):
        cuda.ops().copy_slots(cache, listed)
    else:
        cache[:, listed[:, 1]] = cache[:, listed[:, 0]]
