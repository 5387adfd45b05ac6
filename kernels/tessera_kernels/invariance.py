"""Batch invariance: a mode in which a row's numbers do not depend on the rows beside it, nor on the number of threads.

Kernels take a fixed order of sums while it is on; what torch computes goes through `elementwise` or `one_thread`. The
mode is the process's own: a worker runs one model.

Next: kernels/tessera_kernels/ops.py
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from tessera_kernels import cpu, cuda

_PIECE = 1024  # numbers: whole vectors, and too few for torch to share them out to threads
_VECTOR = 64  # numbers: a multiple of what torch takes at once

_enabled = False


def enabled() -> bool:
    """Tell whether the mode is on."""
    return _enabled


def switch(on: bool) -> None:
    """Turn the mode on or off for good; see `obstacle`."""
    global _enabled
    _enabled = on


@contextmanager
def using(on: bool) -> Iterator[None]:
    """Turn the mode on or off meanwhile; for tests and comparisons on one thread."""
    before = _enabled
    switch(on)
    try:
        yield
    finally:
        switch(before)


def obstacle(dtype: torch.dtype, device: torch.device) -> str | None:
    """Return why the mode cannot hold for a model of this type here, as the end of a sentence; None where it can."""
    if cuda.runs_on(device, dtype):
        return None
    if device.type != "cpu":
        return f"the CUDA ops do not run here: {cuda.reason()}"
    if dtype is not torch.float32:
        return f"it is built for float32 and the model runs in {str(dtype).removeprefix('torch.')}"
    if not cpu.available():
        return "the C++ library is not built, or not for this processor: run `make kernels`"
    return None


def head_obstacle(head_dim: int, dtype: torch.dtype, device: torch.device) -> str | None:
    """Return why it cannot hold for a language model with heads of this size; None where it can."""
    if not cuda.runs_on(device, dtype) and head_dim % cpu.lanes():
        return f"the language model's heads of {head_dim} are no whole vectors of {cpu.lanes()} here"
    return None


def elementwise(function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """Return function(x), in the mode so that every number goes through the same code.

    Torch takes whole vectors by one routine and what is left over by another, which may round differently; where the
    vectors begin depends on the size of the tensor and on the threads.

    Args:
        function: of torch, element by element, shape and type kept.
        x: any shape.
    """
    if not _enabled:
        return function(x)
    count = x.numel()
    padded = torch.zeros(-(-count // _VECTOR) * _VECTOR, dtype=x.dtype, device=x.device)
    padded[:count] = x.reshape(-1)
    done = [function(piece) for piece in padded.split(_PIECE)]
    return (done[0] if len(done) == 1 else torch.cat(done))[:count].view(x.shape)


@contextmanager
def one_thread() -> Iterator[None]:
    """In the mode, let torch compute on one thread, so that its sums are not cut by how many there are."""
    threads = torch.get_num_threads()
    if not _enabled or threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
