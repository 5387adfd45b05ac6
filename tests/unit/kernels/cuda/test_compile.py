"""The CUDA ops inside torch.compile: one graph, the same numbers, changes in place kept.

Next: kernels/tessera_kernels/fakes.py
"""

import pytest
import torch

from tessera_kernels import ops
from tests.cuda_ops import Target


def block(x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, segments: torch.Tensor) -> torch.Tensor:
    """A norm after the residual add, attention of its rows, and an activation."""
    normed = ops.add_rms_norm(x, residual, weight, 1e-6)
    heads = normed.view(-1, 1, normed.shape[1])
    attended = ops.varlen_attention(heads, heads, heads, segments, 0.25)
    return ops.gelu(attended.flatten(1) * 2)


@pytest.mark.parametrize("dynamic", [False, True])
def test_a_compiled_block_is_one_graph(target: Target, dtype: torch.dtype, dynamic: bool) -> None:
    """Nothing breaks the graph; results and the residual equal those of the uncompiled block, at several lengths."""
    torch._dynamo.reset()
    compiled = torch.compile(block, backend="aot_eager", fullgraph=True, dynamic=dynamic)
    with torch.inference_mode(False), torch.no_grad():
        for rows in (5, 9):
            x, residual, weight = (
                torch.randn(shape, dtype=dtype, device=target.device) for shape in ((rows, 64), (rows, 64), (64,))
            )
            starts = torch.tensor([0, 3, rows], dtype=torch.int32, device=target.device)
            ours, theirs = residual.clone(), residual.clone()
            assert torch.equal(compiled(x, ours, weight, starts), block(x, theirs, weight, starts))
            assert torch.equal(ours, theirs) and not torch.equal(ours, residual)
