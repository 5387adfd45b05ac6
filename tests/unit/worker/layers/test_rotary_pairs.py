"""Rows regrouped at load turn neighbouring elements by ops that turn half-split ones.

Next: tests/unit/worker/layers/test_rotary.py
"""

import torch

from tessera_kernels import reference
from tests.unit.worker.layers.sources import DictSource
from worker.layers.rotary_pairs import RegroupedPairs, half_split_order


def randn(*shape: int) -> torch.Tensor:
    """Float64 noise, the same for the same shape."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


def turn_neighbours(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate elements 2 i and 2 i + 1 of each head by angle i. x: (n, heads, dim), cos, sin: (n, half)."""
    out = x.clone()
    half = cos.shape[1]
    even, odd = x[..., 0 : 2 * half : 2], x[..., 1 : 2 * half : 2]
    out[..., 0 : 2 * half : 2] = even * cos[:, None] - odd * sin[:, None]
    out[..., 1 : 2 * half : 2] = odd * cos[:, None] + even * sin[:, None]
    return out


def test_regrouped_rows_turn_like_neighbours() -> None:
    """Projected by regrouped rows and turned in halves, a head holds what turned neighbours hold, in another order."""
    heads, dim, rotary, tokens = 3, 10, 6, 4
    weight, x, angles = randn(heads * dim, 7), randn(tokens, 7), randn(tokens, rotary // 2)
    order = half_split_order(heads, dim, rotary)
    expected = turn_neighbours((x @ weight.t()).view(tokens, heads, dim), angles.cos(), angles.sin())
    ours = reference.rotate_half((x @ weight[order].t()).view(tokens, heads, dim), angles.cos(), angles.sin())
    assert torch.allclose(ours, expected.flatten(1)[:, order].view(tokens, heads, dim), atol=1e-6)


def test_order_of_one_head() -> None:
    """Even elements, then odd ones, then those that do not turn; the next head follows."""
    assert half_split_order(2, 6, 4).tolist() == [0, 2, 1, 3, 4, 5, 6, 8, 7, 9, 10, 11]


def test_only_queries_and_keys_are_regrouped() -> None:
    """Weights and biases of q_proj and k_proj come in half-split order, values and all below as they are."""
    names = ["q_proj.weight", "q_proj.bias", "k_proj.weight", "k_proj.bias"]
    others = ["v_proj.weight", "o_proj.weight", "q_norm.weight"]
    source = RegroupedPairs(DictSource({name: torch.arange(4.0) for name in names + others}), 4, 4)
    for name in names:
        assert source.mapped(name, (4,)).tolist() == [0, 2, 1, 3]
    assert source.mapped("v_proj.weight", (4,)).tolist() == [0, 1, 2, 3]
    assert source.tensor("o_proj.weight", (4,)).tolist() == [0, 1, 2, 3]
    assert source.under("q_norm").mapped("weight", (4,)).tolist() == [0, 1, 2, 3]
    assert source.shape("q_proj.weight") == (4,)
