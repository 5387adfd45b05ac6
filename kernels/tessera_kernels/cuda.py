"""The CUDA ops: their library, loaded where CUDA is, and which tensors they take.

They are called as `cuda.ops().<name>`, that is torch.ops.tessera.<name>: schemas in csrc/ops.cpp, shapes for tracing in
`fakes`. The same sources compiled for the CPU (kernels/emulator) can stand in for them, for tests without a GPU; then
CPU tensors take every path that CUDA tensors take.

Next: kernels/tessera_kernels/fakes.py
"""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tessera_kernels import fakes

LIBRARY = Path(__file__).resolve().parent / "lib" / "libtessera_cuda.so"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
OLDEST_CAPABILITY = (8, 0)
NAMES = tuple(sorted(fakes.FAKES))
"""Every op of the library."""


@dataclass(frozen=True)
class OpLibrary:
    """A library that has been loaded.

    Args:
        space: the name that its ops have below torch.ops.
        device_type: of the tensors that they take.
        native: its C functions.
    """

    space: str
    device_type: str
    native: ctypes.CDLL


def load(path: Path, space: str, device_type: str) -> OpLibrary:
    """Load a library and register its ops, once a process."""
    torch.ops.load_library(path)
    fakes.register(space)
    return OpLibrary(space, device_type, ctypes.CDLL(str(path)))


def reason() -> str:
    """Say in a few words why the CUDA ops run, or why they do not."""
    if _active is not None and _active.device_type != "cuda":
        return "the CUDA ops, compiled for the CPU"
    if not torch.cuda.is_available():
        return "this machine has no CUDA device, or torch no CUDA"
    if torch.cuda.get_device_capability() < OLDEST_CAPABILITY:
        return "the device is older than sm_80"
    if not LIBRARY.is_file():
        return "the CUDA library is not built (make kernels)"
    return "built for CUDA"


_active: OpLibrary | None = None
_active = load(LIBRARY, "tessera", "cuda") if reason() == "built for CUDA" else None


def available() -> bool:
    """Tell whether the library is loaded."""
    return _active is not None


def runs_on(device: torch.device, dtype: torch.dtype) -> bool:
    """Tell whether the library takes tensors of this type on this device."""
    return _active is not None and device.type == _active.device_type and dtype in DTYPES


def serves(x: torch.Tensor) -> bool:
    """Tell whether the library takes this tensor."""
    return _active is not None and x.device.type == _active.device_type and x.dtype in DTYPES


def ops() -> Any:
    """Return the ops as torch.ops has them."""
    assert _active is not None
    return getattr(torch.ops, _active.space)


@contextmanager
def using(chosen: OpLibrary | None) -> Iterator[None]:
    """Run on another library meanwhile, or on none; for tests and comparisons on one thread."""
    global _active
    before, _active = _active, chosen
    try:
        yield
    finally:
        _active = before


def wait_after_launches(wait: bool) -> None:
    """Let every launch wait for its end and report its own errors, which otherwise show at some later call."""
    if _active is not None and _active.device_type == "cuda":
        _active.native.tessera_launches_wait(int(wait))
