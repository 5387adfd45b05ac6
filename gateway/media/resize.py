"""The pixels' resize: the native library where it is built, else Pillow's.

The native one (kernels/csrc/cpu/resize.cpp) gives torch's bytes exactly; Pillow's differs by at most 2 of 255. Both
are bicubic with antialias. Which one runs is told by `Resizer.name`.

Next: gateway/media/image.py
"""

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

LIBRARY = "libtessera_resize.so"
SEARCH = (
    Path(__file__).resolve().parents[2] / "kernels" / "tessera_kernels" / "lib",
    Path("/usr/local/lib/tessera"),
)
_ABI = 1


class Resizer(Protocol):
    """Resizes frames; `name` is "native" or "pillow"."""

    name: str

    def __call__(self, frames: NDArray[np.uint8], out: NDArray[np.uint8]) -> None:
        """Resize each frame into `out`.

        Args:
            frames: (frames, height, width, 3) uint8, C order.
            out: (frames, out_height, out_width, 3) uint8, C order; overwritten.
        """


class NativeResizer:
    """The library, through ctypes, which releases the interpreter's lock.

    Args:
        path: The shared library.
        variant: 0 = the fastest that the processor has; tests choose others (resize.h).

    Raises:
        OSError: It does not load, or has another interface.
    """

    name = "native"

    def __init__(self, path: Path, variant: int = 0) -> None:
        library = ctypes.CDLL(str(path))
        if not hasattr(library, "tessera_resize_abi") or library.tessera_resize_abi() != _ABI:
            raise OSError(f"{path.name} has another interface: run `make kernels`")
        self._resize = library.tessera_resize_u8
        size = ctypes.c_int64
        self._resize.argtypes = [ctypes.c_void_p, size, size, size, ctypes.c_void_p, size, size, ctypes.c_int]
        self._variant = variant

    def __call__(self, frames: NDArray[np.uint8], out: NDArray[np.uint8]) -> None:
        """See Resizer."""
        _check(frames, out)
        if frames.shape == out.shape:
            np.copyto(out, frames)
            return
        number, height, width, _ = frames.shape
        status = self._resize(
            frames.ctypes.data, number, height, width, out.ctypes.data, out.shape[1], out.shape[2], self._variant
        )
        if status == 2:
            raise MemoryError("no memory to resize")
        assert status == 0, f"the resize library refused: {status}"


class PillowResizer:
    """Pillow's own bicubic filter, for installations without the library."""

    name = "pillow"

    def __call__(self, frames: NDArray[np.uint8], out: NDArray[np.uint8]) -> None:
        """See Resizer."""
        _check(frames, out)
        width, height = out.shape[2], out.shape[1]
        for frame, target in zip(frames, out, strict=True):
            if frame.shape == target.shape:
                np.copyto(target, frame)
            else:
                # Along x first, as torch does; left alone, Pillow takes the cheaper order, which rounds otherwise.
                wide = Image.fromarray(frame).resize((width, frame.shape[0]), Image.Resampling.BICUBIC)
                np.copyto(target, np.asarray(wide.resize((width, height), Image.Resampling.BICUBIC)))


def load_resizer(search: Sequence[Path] = SEARCH) -> Resizer:
    """The native resizer of the first directory that has it, else Pillow's.

    Args:
        search: Directories, in order.
    """
    for directory in search:
        path = directory / LIBRARY
        if path.is_file():
            return NativeResizer(path)
    return PillowResizer()


def _check(frames: NDArray[np.uint8], out: NDArray[np.uint8]) -> None:
    for array in (frames, out):
        assert array.dtype == np.uint8 and array.ndim == 4 and array.shape[3] == 3 and array.flags.c_contiguous
    assert len(frames) == len(out) and frames.size > 0 and out.size > 0
