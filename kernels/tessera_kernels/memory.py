"""Memory that is read from end to end at every step: in huge pages, so that translating addresses does not slow it.

With pages of 4 KiB, streaming weights at batch 1 ran at 20 GB/s on the development machine; with 2 MiB, at 30.

Next: kernels/tessera_kernels/linear.py
"""

import ctypes
import math
import sys
from collections.abc import Sequence

import torch

_MADV_HUGEPAGE = 14  # <linux/mman.h>
_HUGE_PAGE = 2 << 20
_PAGE = 4096
_ALIGNMENT = 64  # bytes: a cache line, and the widest vector


def allocate(shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """Return an uninitialised CPU tensor that begins at a huge page, of which the system is asked to use many.

    Memory is committed as it is first written, not here.
    """
    count = math.prod(shape) * dtype.itemsize
    with torch.inference_mode(False):  # the tensor may outlast the mode that it is asked for in
        memory = torch.empty(count + _HUGE_PAGE, dtype=torch.uint8)
        skip = -memory.data_ptr() % _HUGE_PAGE
        aligned = memory[skip : skip + count]
        _advise(aligned.data_ptr(), count)
        return aligned.view(dtype).view(*shape)


def _advise(start: int, length: int) -> None:
    """Ask for huge pages behind [start, start + length), which begins at a page; a hint that may go unheard."""
    if sys.platform == "linux" and length >= _HUGE_PAGE:
        libc = ctypes.CDLL(None)
        libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        libc.madvise(start, length // _PAGE * _PAGE, _MADV_HUGEPAGE)


class Arena:
    """Hands out fp32 vectors side by side from large chunks: small weights share huge pages instead of wasting them.

    A chunk lives as long as any vector of it. What is not handed out is never touched, and so costs no memory.

    Args:
        chunk_bytes: size of a chunk; larger requests get one of their own.
    """

    def __init__(self, chunk_bytes: int = 256 << 20) -> None:
        self._chunk_floats = chunk_bytes // 4
        self._chunk = torch.empty(0)
        self._used = 0

    def take(self, count: int) -> torch.Tensor:
        """Return an uninitialised fp32 vector of `count` elements."""
        if self._used + count > self._chunk.numel():
            self._chunk = allocate((max(count, self._chunk_floats),), torch.float32)
            self._used = 0
        vector = self._chunk[self._used : self._used + count]
        self._used += -(-count * 4 // _ALIGNMENT) * _ALIGNMENT // 4
        return vector
