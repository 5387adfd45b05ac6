"""Attention inside segments that the device knows: the reference, and torch's flash kernel beside ours.

Next: kernels/tessera_kernels/flash.py
"""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from tessera_kernels import flash, ops, reference_attention


@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
def test_the_reference_stays_inside_segments(causal: bool) -> None:
    """A segment's rows are those of the segment alone, empty ones are nothing, rows behind the last are zeros."""
    parts = torch.randn(3, 13, 2, 8, generator=torch.Generator().manual_seed(0))
    out = ops.varlen_attention(*parts, torch.tensor([0, 4, 4, 11]), 0.4, causal)
    for start, end in ((0, 4), (4, 11)):
        query, key, value = parts[:, start:end].double()
        scores = torch.einsum("qhd,khd->hqk", query, key) * 0.4
        if causal:
            scores += torch.full((end - start, end - start), -torch.inf).triu(1)
        expected = torch.einsum("hqk,khd->qhd", scores.softmax(-1), value)
        assert torch.allclose(out[start:end].double(), expected, atol=1e-6)
    assert not out[11:].any()


def test_flash_is_for_cuda() -> None:
    """Asked for elsewhere, torch's kernel is refused rather than replaced."""
    parts, starts = torch.zeros(3, 4, 1, 8, dtype=torch.float16), torch.tensor([0, 4], dtype=torch.int32)
    with pytest.raises(ValueError, match=r"bf16 and fp16 on CUDA, not torch\.float16 on cpu"):
        ops.varlen_attention(*parts, starts, 1.0, flash_max_len=4)


@pytest.mark.slow
def test_flash_arguments_fit_this_torch() -> None:
    """Torch's own shape function takes the call, of views of one tensor as well; what its kernel cannot is refused."""
    with FakeTensorMode():
        starts = torch.empty(4, dtype=torch.int32, device="cuda")
        query, key, value = torch.empty(10, 3, 2, 72, dtype=torch.bfloat16, device="cuda").unbind(1)
        out = ops.varlen_attention(query, key, value, starts, 0.125, flash_max_len=7)
        assert out.shape == (10, 2, 72)
        assert out.dtype is torch.bfloat16
        with pytest.raises(ValueError, match="starts must be int32"):
            flash.flash_varlen(query, key, value, starts.long(), 7, 0.125, False)
        for dim in (20, 264):
            parts = torch.empty(3, 4, 1, dim, dtype=torch.float16, device="cuda")
            with pytest.raises(ValueError, match=f"not of {dim}"):
                flash.flash_varlen(*parts, starts, 7, 0.125, False)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
def test_it_attends_inside_segments(causal: bool) -> None:
    """Both give the reference's result, empty segments among the others."""
    starts = torch.tensor([0, 5, 5, 300], dtype=torch.int32, device="cuda")
    parts = torch.randn(300, 3, 2, 72, dtype=torch.bfloat16, device="cuda").unbind(1)
    expected = reference_attention.varlen_attention(*(part.float() for part in parts), starts, 0.1, causal)
    for flash_max_len in (295, None):
        ours = ops.varlen_attention(*parts, starts, 0.1, causal, flash_max_len)
        assert (ours.float() - expected).square().mean() < (8e-3 * expected).square().mean()
