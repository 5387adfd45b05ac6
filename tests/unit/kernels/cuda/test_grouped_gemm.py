"""Grouped products on CUDA against float64.

Next: kernels/csrc/grouped_gemm.cu
"""

import pytest
import torch

from tests.cuda_ops import NAN, Target, check_error, check_guards, check_op, strided

# rows of x, choices, experts, in, out
SIZES = [
    (1, 2, 9, 72, 40),  # one token; k and out that fill no tile
    (6, 4, 300, 16, 8),  # more experts than threads
    (9, 3, 4, 136, 72),  # tiles of 16 rows
    (40, 2, 5, 64, 136),  # of 64
    (150, 1, 1, 200, 24),  # of 128, all from one expert
    (270, 1, 3, 40, 8),
]
UNALIGNED = [(3, 2, 4, 63, 33), (5, 1, 2, 7, 3)]


def choose(rows: int, choices: int, experts: int) -> torch.Tensor:
    """Distinct experts for each row, the last expert nobody's choice where there are others."""
    open_to = max(experts - 1, choices)
    generator = torch.Generator().manual_seed(rows + experts)
    return torch.rand(rows, open_to, generator=generator).argsort(1)[:, :choices].int().contiguous()


def sort(target: Target, chosen: torch.Tensor, experts: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Guarded `order` and `starts`."""
    flat = chosen.flatten().cpu()
    starts = torch.cat((torch.zeros(1), flat.bincount(minlength=experts).cumsum(0))).int()
    return target.guarded(flat.argsort(stable=True).int()), target.guarded(starts)


def expect(x: torch.Tensor, weight: torch.Tensor, chosen: torch.Tensor, swiglu: bool) -> torch.Tensor:
    """Entry by entry in float64."""
    rows = x.cpu().double().repeat_interleave(chosen.shape[1], 0)
    out = torch.einsum("nk,nok->no", rows, weight.cpu().double()[chosen.flatten().long()])
    if not swiglu:
        return out
    gate, up = out.chunk(2, -1)
    return gate * gate.sigmoid() * up


@pytest.mark.parametrize("swiglu", [False, True])
@pytest.mark.parametrize(("rows", "choices", "experts", "in_features", "out_features"), [*SIZES, *UNALIGNED])
def test_products(
    target: Target, dtype: torch.dtype, rows: int, choices: int, experts: int, in_features: int, out_features: int,
    swiglu: bool,
) -> None:  # fmt: skip
    """Each row goes through its experts, whatever the sizes; what nobody chose, NaN throughout, is not read."""
    chosen = choose(rows, choices, experts)
    x = target.randn(rows, in_features, dtype=dtype)
    weight = target.randn(experts, (1 + swiglu) * out_features, in_features, dtype=dtype, seed=1)
    if int(chosen.max()) < experts - 1:
        weight[-1] = NAN
    order, starts = sort(target, chosen, experts)
    exact = expect(x, weight, chosen, swiglu)
    for view in (x, strided(x), strided(x, 3)) if rows < 40 else (x,):
        ours = target.ops.grouped_linear(view, weight, order, starts, swiglu)
        assert ours.dtype is dtype
        check_error("grouped_linear" + ", swiglu" * swiglu, ours, exact)
    check_guards(order, starts)


def test_all_rows_on_one_expert(target: Target) -> None:
    """One expert may take all rows, over several tiles, and the others none."""
    x, weight = target.randn(70, 64, dtype=torch.bfloat16), target.randn(20, 16, 64, dtype=torch.bfloat16, seed=1)
    chosen = torch.full((70, 1), 17, dtype=torch.int32)
    ours = target.ops.grouped_linear(x, weight, *sort(target, chosen, 20), False)
    check_error("grouped_linear", ours, expect(x, weight, chosen, False))


@pytest.mark.parametrize("swiglu", [False, True])
def test_a_row_does_not_depend_on_its_neighbours(target: Target, dtype: torch.dtype, swiglu: bool) -> None:
    """A row's numbers are the same to the bit alone and among any others, in tiles of every size."""
    x, weight = target.randn(140, 200, dtype=dtype), target.randn(2, 16, 200, dtype=dtype, seed=1)
    chosen = choose(140, 2, 2)
    together = target.ops.grouped_linear(x, weight, *sort(target, chosen, 2), swiglu).view(140, 2, -1)
    for some in (slice(0, 1), slice(7, 12), slice(100, 140)):
        apart = target.ops.grouped_linear(x[some], weight, *sort(target, chosen[some], 2), swiglu)
        assert torch.equal(apart.view(-1, 2, apart.shape[1]), together[some])


def test_no_rows(target: Target, dtype: torch.dtype) -> None:
    """No rows give none."""
    chosen = torch.zeros(0, 2, dtype=torch.int32)
    x, weight = target.randn(0, 16, dtype=dtype), target.randn(3, 8, 16, dtype=dtype)
    assert target.ops.grouped_linear(x, weight, *sort(target, chosen, 3), True).shape == (0, 4)


def test_bad_arguments_are_refused(target: Target) -> None:
    """A wrong shape or type is an error that names the argument."""
    x, weight = target.randn(4, 16), target.randn(3, 7, 16)
    order, starts = sort(target, choose(4, 2, 3), 3)
    call = target.ops.grouped_linear
    for arguments, match in (
        ((target.randn(4, 15), weight, order, starts, False), "weight has another shape"),
        ((x, weight, order, starts, True), "weight has another shape"),
        ((x.bfloat16(), weight, order, starts, False), "weight has another dtype"),
        ((x, weight, order.long(), starts, False), "order has another dtype"),
        ((x, weight, order, starts[:-1], False), "starts has another shape"),
        ((x, weight, order[:-1], starts, False), "order is no multiple"),
        ((x, weight.transpose(1, 2), order, starts, False), "weight must be contiguous"),
    ):
        with pytest.raises(RuntimeError, match=match):
            call(*arguments)


@pytest.mark.parametrize("swiglu", [False, True])
def test_ops_trace(target: Target, swiglu: bool) -> None:
    """Schema, fake and tracing hold up to torch's own checks."""
    with torch.inference_mode(False):
        x, weight = (torch.randn(shape, dtype=torch.bfloat16, device=target.device) for shape in ((4, 16), (3, 8, 16)))
        check_op(target.ops.grouped_linear, (x, weight, *sort(target, choose(4, 2, 3), 3), swiglu))
