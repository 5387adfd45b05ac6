"""Which implementation each op has, and why.

Next: kernels/tessera_kernels/implementations.py
"""

from types import SimpleNamespace

import pytest
import torch
from structlog.testing import capture_logs

from tessera_kernels import cuda, ops
from tests.cuda_ops import emulated_library
from worker.boot import log_ops

CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_every_op_has_a_reason(dtype: torch.dtype, device: str) -> None:
    """Whatever the device and the type, each op's implementation is one of the four, and comes with its reason."""
    table = ops.implementations(dtype, torch.device(device), (64, 128))
    assert list(table) == sorted(table) and table
    for choice in table.values():
        assert choice.implementation in ("cuda", "cpp", "onednn", "torch")
        assert choice.reason


def test_what_runs_on_cuda() -> None:
    """Where the CUDA ops run, all of them do, and only products are torch's."""
    library = emulated_library()
    if library is None:
        pytest.skip("the emulated CUDA ops are not built (make emulator)")
    with cuda.using(library):
        table = ops.implementations(torch.bfloat16, CPU)
    assert {op for op, choice in table.items() if choice.implementation != "cuda"} == {"linear"}
    assert set(cuda.NAMES) <= set(table)


def test_the_start_log_names_them() -> None:
    """One line for each implementation and reason lists the ops that have it."""
    model = SimpleNamespace(dtype=torch.bfloat16, device=CPU, head_dims=(20, 20))
    with capture_logs() as lines:
        log_ops(model)  # type: ignore[arg-type]
    [line] = lines
    assert line["event"] == "ops_chosen" and line["implementation"] == "torch"
    assert line["reason"] == "the C++ library takes fp32, not bfloat16"
    assert {"linear", "segment_attention", "experts"} <= set(line["ops"])
