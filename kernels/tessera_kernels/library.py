"""The C++ CPU library: found, checked and loaded once, when this package is first imported.

Built twice, for AVX2 and AVX-512; torch's own view of the processor decides, so ATEN_CPU_CAPABILITY steers both. It
must be loaded after torch: both then share one OpenMP run-time and its threads.

Next: kernels/tessera_kernels/cpu.py
"""

import ctypes
from pathlib import Path

import torch

INTERFACE = 3  # tessera_interface() in csrc/cpu/pointwise.cpp
LIBRARY_DIR = Path(__file__).resolve().parent / "lib"

_POINTER, _LONG, _INT, _FLOAT = ctypes.c_void_p, ctypes.c_long, ctypes.c_int, ctypes.c_float
_SIGNATURES = {
    "tessera_pack_rows": [_POINTER, _LONG, _LONG, _LONG, _LONG, _INT, _POINTER, _INT],
    "tessera_read_rows": [_POINTER, _POINTER, _LONG, _LONG, _POINTER],
    "tessera_linear": [_POINTER, _POINTER, _POINTER, _POINTER, _LONG, _LONG, _LONG, _INT, _INT, _INT],
    "tessera_centred_patches": [
        _POINTER, _POINTER, _LONG, _LONG, _LONG, _LONG, _LONG, _LONG, _FLOAT, _INT,
    ],
    "tessera_rms_norm": [_POINTER, _POINTER, _POINTER, _POINTER, _LONG, _LONG, _FLOAT, _INT],
    "tessera_layer_norm": [_POINTER, _POINTER, _POINTER, _POINTER, _POINTER, _LONG, _LONG, _FLOAT, _INT],
    "tessera_qk_norm_rope": [
        _POINTER, _LONG, _POINTER, _POINTER, _FLOAT, _POINTER, _POINTER, _LONG, _LONG, _LONG, _LONG, _LONG, _INT,
    ],
    "tessera_store_kv": [
        _POINTER, _POINTER, _LONG, _POINTER, _POINTER, _POINTER, _LONG, _LONG, _LONG, _LONG,
    ],
    "tessera_paged_attention": [
        _POINTER, _LONG, _POINTER, _POINTER, _POINTER, _POINTER, _LONG, _POINTER, _POINTER, _LONG, _LONG, _LONG, _LONG,
        _LONG, _FLOAT, _INT, _INT,
    ],
    "tessera_segment_attention": [_POINTER, _POINTER, _POINTER, _LONG, _LONG, _LONG, _FLOAT, _INT, _INT],
    "tessera_experts": [
        _POINTER, _POINTER, _POINTER, _POINTER, _POINTER, _POINTER, _LONG, _LONG, _LONG, _LONG, _LONG, _INT, _INT,
    ],
    "tessera_causal_conv": [
        _POINTER, _LONG, _POINTER, _POINTER, _POINTER, _POINTER, _POINTER, _POINTER, _LONG, _LONG, _LONG, _INT,
    ],
    "tessera_gated_delta_rule": [
        _POINTER, _LONG, _POINTER, _LONG, _POINTER, _POINTER, _POINTER, _POINTER, _POINTER, _POINTER, _POINTER, _LONG,
        _LONG, _LONG, _LONG, _LONG, _INT,
    ],
    "tessera_gated_rms_norm": [_POINTER, _POINTER, _LONG, _POINTER, _POINTER, _LONG, _LONG, _LONG, _FLOAT, _INT],
}  # fmt: skip


def load(directory: Path = LIBRARY_DIR, capability: str | None = None) -> ctypes.CDLL | None:
    """Return the fastest library that this processor can run, or None where there is none.

    Args:
        directory: where it was built.
        capability: "AVX512", "AVX2" or less; None: what torch found.

    Raises:
        RuntimeError: it was built from other sources.
    """
    capability = capability or torch.backends.cpu.get_cpu_capability()
    names = {"AVX512": ("avx512", "avx2"), "AVX2": ("avx2",)}.get(capability, ())
    for name in names:
        path = directory / f"libtessera_cpu_{name}.so"
        if path.is_file():
            return _bind(ctypes.CDLL(str(path)), path)
    return None


def _bind(library: ctypes.CDLL, path: Path) -> ctypes.CDLL:
    if library.tessera_interface() != INTERFACE or not all(hasattr(library, name) for name in _SIGNATURES):
        raise RuntimeError(f"{path} was built from other sources: run `make kernels`")
    for name, arguments in _SIGNATURES.items():
        function = getattr(library, name)
        function.argtypes = arguments
        function.restype = None
    return library
