"""Where the tests of CUDA ops run: emulated on the CPU in both orders of threads, and on a GPU where there is one.

Next: tests/cuda_ops.py
"""

from collections.abc import Iterator

import pytest
import torch

from tessera_kernels import cuda
from tests.cuda_ops import DTYPES, Target, emulated_library


@pytest.fixture(params=["forward", "backward", pytest.param("cuda", marks=pytest.mark.gpu)])
def target(request: pytest.FixtureRequest) -> Iterator[Target]:
    """Run a test on each of them; skipped where the library or the device is missing."""
    library = _cuda_library() if request.param == "cuda" else _emulated_library()
    if request.param != "cuda":
        library.native.tessera_emulator_order(request.param == "backward")
    torch.use_deterministic_algorithms(True)  # memory that torch hands out holds NaN
    assert torch.empty(3).isnan().all()
    try:
        with cuda.using(library), torch.inference_mode():
            yield Target(request.param, library)
    finally:
        torch.use_deterministic_algorithms(False)


def _emulated_library() -> cuda.OpLibrary:
    library = emulated_library()
    if library is None:
        pytest.skip("the emulated CUDA ops are not built (python kernels/build.py --emulator)")
    return library


def _cuda_library() -> cuda.OpLibrary:
    if not cuda.available():
        pytest.skip(f"no GPU: {cuda.reason()}")
    return cuda.load(cuda.LIBRARY, "tessera", "cuda")


@pytest.fixture(params=DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    """Run a test in each storage type."""
    return request.param
