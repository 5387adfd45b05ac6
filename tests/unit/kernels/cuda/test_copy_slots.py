"""Copies between the slots of a cache on CUDA, against indexing.

Next: kernels/csrc/copy_slots.cu
"""

import pytest
import torch

from tessera_kernels import ops
from tests.cuda_ops import Target, check_guards, check_op

# widths: one element, odd ones, whole vectors, more than one block of a slot takes (of 2048 vectors)
WIDTHS = [1, 37, 64, 1032, 16400]
PAIRS = {"none": [], "one": [(4, 1)], "several": [(0, 5), (0, 2), (6, 1)]}


def expected_of(cache: torch.Tensor, pairs: list[tuple[int, int]]) -> torch.Tensor:
    """Slot by slot."""
    result = cache.clone()
    for source, destination in pairs:
        result[:, destination] = cache[:, source]
    return result


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", PAIRS)
def test_slots_are_copied(target: Target, dtype: torch.dtype, name: str, width: int) -> None:
    """Slots of all layers get the bits of others; a source may serve several, the rest stays as it is."""
    before = target.randn(3, 7, width, dtype=dtype)
    cache = target.guarded(before)
    ops.copy_slots(cache, PAIRS[name])
    assert torch.equal(cache, expected_of(before, PAIRS[name]))
    check_guards(cache)


def test_a_cache_at_an_odd_address(target: Target, dtype: torch.dtype) -> None:
    """Rows of whole vectors that do not begin at one are copied as well."""
    memory = target.randn(1 + 2 * 3 * 64, dtype=dtype)
    cache = memory[1:].view(2, 3, 64)
    expected = expected_of(cache, [(0, 2)])
    ops.copy_slots(cache, [(0, 2)])
    assert torch.equal(cache, expected)


def test_padding_copies_nothing(target: Target) -> None:
    """A pair with a slot below zero is none, so that recorded copies may be padded."""
    before = target.randn(2, 3, 40)
    cache = target.guarded(before)
    target.ops.copy_slots(cache, target.guarded(torch.tensor([[-1, 0], [2, 1], [1, -1]])))
    assert torch.equal(cache, expected_of(before, [(2, 1)]))


def test_ops_trace(target: Target, dtype: torch.dtype) -> None:
    """Schema, declared mutation, fake and tracing hold up to torch's own checks."""
    with torch.inference_mode(False):
        cache = torch.randn(2, 3, 8, device=target.device).to(dtype)
        check_op(target.ops.copy_slots, (cache, torch.tensor([[0, 1]], device=target.device)))


def test_bad_arguments_are_refused(target: Target) -> None:
    """A wrong shape or type is an error that names the argument."""
    cache, pairs = target.randn(2, 3, 8), target.guarded(torch.tensor([[0, 1]]))
    for match, arguments in {
        "cache has three axes": (cache[0], pairs),
        "cache": (cache.transpose(0, 1), pairs),
        "pairs has two axes": (cache, pairs[0]),
        "pairs has another dtype": (cache, pairs.int()),
        "pairs has another shape": (cache, target.guarded(torch.tensor([[0, 1, 2]]))),
    }.items():
        with pytest.raises(RuntimeError, match=match):
            target.ops.copy_slots(*arguments)
