"""The reference ops against plain formulas in float64.

Next: tests/unit/kernels/test_cpu.py
"""

import math

import pytest
import torch

from tessera_kernels import reference


def randn(*shape: int) -> torch.Tensor:
    """A tensor of the test's own generator."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(math.prod(shape)))


def close(ours: torch.Tensor, exact: torch.Tensor, tolerance: float = 2e-6) -> bool:
    """Whether the largest error is below the tolerance, relative to the largest value."""
    return bool((ours.double() - exact).abs().max() <= tolerance * exact.abs().max().clamp(min=1))


def test_rms_norm() -> None:
    """A row is divided by the root of its mean square, then scaled."""
    x, weight = randn(5, 63), randn(63)
    exact = x.double() / (x.double().square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight.double()
    assert close(reference.rms_norm(x, weight, 1e-6), exact)


def test_add_rms_norm_changes_the_residual() -> None:
    """The sum stays in the residual, and its norm comes back."""
    x, residual, weight = randn(3, 16), randn(4, 16)[:3].clone(), randn(16)
    total = x + residual
    out = reference.add_rms_norm(x, residual, weight, 1e-6)
    assert torch.equal(residual, total)
    assert torch.equal(out, reference.rms_norm(total, weight, 1e-6))


def test_layer_norm() -> None:
    """A row has its mean taken off and is divided by its deviation, then scaled and shifted."""
    x, weight, bias = randn(5, 63), randn(63), randn(63)
    wide = x.double()
    centred = wide - wide.mean(-1, keepdim=True)
    exact = centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight.double() + bias.double()
    assert close(reference.layer_norm(x, weight, bias, 1e-6), exact)


def test_swiglu() -> None:
    """The first half gates the second."""
    x = randn(4, 14)
    gate, up = x.double().chunk(2, -1)
    assert close(reference.swiglu(x), gate / (1 + (-gate).exp()) * up)


def test_gelus() -> None:
    """The tanh formula and the exact one are different functions."""
    x = randn(200)
    wide = x.double()
    inner = math.sqrt(2 / math.pi) * (wide + 0.044715 * wide**3)
    assert close(reference.gelu_tanh(x), 0.5 * wide * (1 + inner.tanh()))
    assert close(reference.gelu(x), 0.5 * wide * (1 + torch.erf(wide / math.sqrt(2))))


def test_rotary_table_takes_each_frequency_from_its_axis() -> None:
    """Angle i of a token is the position on axis i's row times frequency i."""
    positions = torch.tensor([[1, 2], [10, 20], [100, 200]])
    cos, sin = reference.rotary_table(positions, torch.tensor([0.1, 0.2, 0.3]), torch.tensor([2, 0, 1]))
    angles = torch.tensor([[10.0, 0.2, 3.0], [20.0, 0.4, 6.0]])
    assert close(cos, angles.double().cos(), 1e-5)
    assert close(sin, angles.double().sin(), 1e-5)


def test_rotation_leaves_lengths_and_the_rest_of_a_partial_head() -> None:
    """Pairs keep their length; elements past the rotary part stay as they are."""
    x, angles = randn(3, 2, 10), randn(3, 4)
    turned = reference.rotate_half(x, angles.cos(), angles.sin())
    assert torch.equal(turned[..., 8:], x[..., 8:])
    before, after = x[..., :8].unflatten(-1, (2, 4)), turned[..., :8].unflatten(-1, (2, 4))
    assert close(after.square().sum(-2), before.square().sum(-2).double())


@pytest.mark.parametrize(("head_dim", "half", "padded"), [(72, 36, 80), (10, 3, 10)])
@pytest.mark.parametrize("with_bias", [True, False])
def test_vision_heads_are_prepared(head_dim: int, half: int, padded: int, with_bias: bool) -> None:
    """Parts and heads come apart, biases are added, queries and keys turn, values do not, and zeros fill heads up."""
    rows, heads = 3, 2
    qkv, angles, bias = randn(rows, 3 * heads * head_dim), randn(rows, half), randn(3 * heads * head_dim)
    ours = reference.qkv_prepare(qkv, bias if with_bias else None, angles.cos(), angles.sin(), heads, padded)
    assert ours.shape == (3, rows, heads, padded)
    assert not ours[..., head_dim:].any()
    given = (qkv + bias if with_bias else qkv).view(rows, 3, heads, head_dim)
    for part in range(2):
        turned = reference.rotate_half(given[:, part], angles.cos(), angles.sin())
        assert close(ours[part, ..., :head_dim], turned.double())
    assert torch.equal(ours[2, ..., :head_dim], given[:, 2])


def test_tokens_without_a_slot_are_written_nowhere() -> None:
    """A negative slot leaves the cache alone; its neighbours are written."""
    caches = [torch.full((2, 1, 4, 3), float("nan")) for _ in range(2)]
    key, value = randn(3, 1, 3), randn(3, 1, 4)[..., 1:]
    reference.store_kv(key, value, *caches, torch.tensor([6, -1, 1]))
    for cache, part in zip(caches, (key, value), strict=True):
        assert torch.equal(cache[[1, 0], :, [2, 1]], part[[0, 2]])
        assert int((~cache.isnan()).sum()) == 6


def exact_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> torch.Tensor:
    """Causal attention of the last tokens in float64. query: (q, heads, dim), key, value: (k, kv_heads, dim)."""
    group = query.shape[1] // key.shape[1]
    key, value = (x.double().repeat_interleave(group, dim=1) for x in (key, value))
    scores = torch.einsum("qhd,khd->hqk", query.double(), key) * scale
    hidden = torch.arange(key.shape[0])[None] > torch.arange(key.shape[0] - query.shape[0], key.shape[0])[:, None]
    return torch.einsum("hqk,khd->qhd", scores.masked_fill(hidden, -math.inf).softmax(-1), value)


@pytest.mark.parametrize(("query_lens", "kv_lens"), [((1,), (1,)), ((1, 1, 1), (5, 16, 17)), ((7, 1, 3), (7, 9, 20))])
def test_paged_attention(query_lens: tuple[int, ...], kv_lens: tuple[int, ...]) -> None:
    """Each sequence attends to its own blocks up to its own tokens, whatever lies beside them in the cache."""
    block_size, heads, kv_heads, dim = 8, 4, 2, 16
    tables = torch.tensor([[7, 2, 5], [1, 8, 3], [6, 0, 4]], dtype=torch.int32)[: len(kv_lens)]
    key_cache, value_cache = (torch.full((9, kv_heads, block_size, dim), float("nan")) for _ in range(2))
    query = randn(sum(query_lens), heads, dim)
    exact, start = [], 0
    for table, query_len, kv_len in zip(tables, query_lens, kv_lens, strict=True):
        key, value = randn(kv_len, kv_heads, dim), randn(kv_len + 1, kv_heads, dim)[1:]
        slots = torch.tensor([int(table[i // block_size]) * block_size + i % block_size for i in range(kv_len)])
        reference.store_kv(key, value, key_cache, value_cache, slots)
        exact.append(exact_attention(query[start : start + query_len], key, value, 0.3))
        start += query_len
    out = reference.paged_attention(query, key_cache, value_cache, tables, query_lens, kv_lens, 0.3)
    assert close(out, torch.cat(exact))


def test_segment_attention_stays_inside_segments() -> None:
    """A segment's rows are those of the segment alone."""
    qkv = randn(11, 3, 2, 8)
    out = reference.segment_attention(qkv, [4, 4, 3], 0.4)
    for start, end in ((0, 4), (4, 8), (8, 11)):
        query, key, value = qkv[start:end].double().unbind(1)
        weights = (torch.einsum("qhd,khd->hqk", query, key) * 0.4).softmax(-1)
        assert close(out[start:end], torch.einsum("hqk,khd->qhd", weights, value))


def test_patchify_orders_patches_by_blocks_and_pixels_by_channel() -> None:
    """Row k is the k-th patch in merge order; inside it come channel, frame, line, column."""
    frames = torch.arange(2 * 8 * 12 * 3).view(2, 8, 12, 3)
    rows = reference.patchify(frames, patch=2, merge=2, temporal=2)
    assert rows.shape == (4 * 6, 3 * 2 * 2 * 2)
    order = [(0, 0), (0, 1), (1, 0), (1, 1), (0, 2), (0, 3)]
    for row, (y, x) in enumerate(order):
        patch = frames[:, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2]
        assert torch.equal(rows[row], patch.permute(3, 0, 1, 2).flatten())


@pytest.mark.parametrize(("height", "width"), [(2, 2), (4, 6), (14, 2), (2, 30)])
def test_interpolated_positions_equal_torch(height: int, width: int) -> None:
    """The table is resampled as F.interpolate does with aligned corners, then put in merge order."""
    table = randn(49, 5)
    grid = table.t().reshape(1, 5, 7, 7)
    raster = torch.nn.functional.interpolate(grid, (height, width), mode="bilinear", align_corners=True)[0]
    row, column = reference.merge_order(height, width, 2, table.device)
    exact = raster[:, row, column].t().double()
    assert close(reference.interpolate_positions(table, height, width, 2), exact)
