"""The C++ library in each build that this processor can run, and torch with one thread."""

from collections.abc import Iterator

import pytest
import torch

from tessera_kernels import cpu, library

BUILDS = {"AVX2": ["AVX2"], "AVX512": ["AVX2", "AVX512"]}.get(torch.backends.cpu.get_cpu_capability(), [])


@pytest.fixture(params=BUILDS or ["none"])
def native(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run a test on each build; skipped where nothing was built."""
    loaded = library.load(capability=request.param) if BUILDS else None
    if loaded is None:
        pytest.skip("the C++ CPU library is not built here (make kernels)")
    with cpu.using(loaded), torch.inference_mode():
        yield request.param
