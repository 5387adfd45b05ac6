"""Norm, rotation and paging of the language model's heads on CUDA against float64.

Next: kernels/csrc/rotary.cu
"""

from dataclasses import dataclass

import pytest
import torch

from tessera_kernels import ops
from tests.cuda_ops import Target, check_error, check_guards, check_op, strided

EPS = 1e-6
# (rows, heads, kv_heads, head_dim, half): the families' heads, turned in whole, in part and not at all; heads that no
# vector divides, the largest heads, more rows than take all their heads at once, no rows
SHAPES = [
    (3, 4, 2, 128, 64),
    (1, 6, 2, 64, 32),
    (2, 2, 1, 256, 32),
    (5, 3, 3, 16, 8),
    (2, 5, 1, 80, 10),
    (3, 2, 2, 7, 2),
    (2, 1, 1, 512, 256),
    (2, 2, 1, 511, 3),
    (3, 2, 1, 12, 0),
    (1, 40, 8, 128, 64),
    (515, 3, 1, 16, 8),
    (0, 2, 1, 64, 32),
]


@dataclass(frozen=True)
class Case:
    """Arguments of one call, and the exact result."""

    qkv: torch.Tensor
    weights: tuple[torch.Tensor | None, torch.Tensor | None]
    tables: tuple[torch.Tensor, torch.Tensor]
    heads: tuple[int, int, int]
    exact: torch.Tensor  # (rows, heads + 2 * kv_heads, head_dim)

    def arguments(self, qkv: torch.Tensor) -> tuple[object, ...]:
        """Those of the op, on rows that may lie elsewhere."""
        return (qkv, *self.weights, EPS, *self.tables, *self.heads)


def exact_heads(case: Case, qkv: torch.Tensor) -> torch.Tensor:
    """The formula in float64."""
    heads, kv_heads, head_dim = case.heads
    parts = list(
        qkv.double().unflatten(1, (-1, head_dim))[:, : heads + 2 * kv_heads].split((heads, kv_heads, kv_heads), 1)
    )
    for index, weight in enumerate(case.weights):
        if weight is not None:
            root = (parts[index].square().mean(-1, keepdim=True) + EPS).sqrt()
            parts[index] = parts[index] / root * weight.double()
        cos, sin = (table.double() if table.dim() == 3 else table.double()[:, None] for table in case.tables)
        if cos.shape[1] > 1:
            cos, sin = (table.repeat_interleave(parts[index].shape[1] // kv_heads, 1) for table in (cos, sin))
        half = cos.shape[-1]
        first, second, rest = parts[index].split((half, half, head_dim - 2 * half), -1)
        parts[index] = torch.cat((first * cos - second * sin, second * cos + first * sin, rest), -1)
    return torch.cat(parts, 1)


def make(
    target: Target, dtype: torch.dtype, shape: tuple[int, ...], weight: str = "own", *, own_tables: bool = False
) -> Case:
    """A call with numbers that depend on the shape alone; a gate of 16 columns follows the values."""
    rows, heads, kv_heads, head_dim, half = shape
    gate = -(-16 // head_dim) * head_dim
    qkv = target.randn(rows, (heads + 2 * kv_heads) * head_dim + gate, dtype=dtype)
    angles = target.randn(rows, *(kv_heads,) * own_tables, half, seed=1).mul(3).cpu()
    weights = {
        "none": lambda seed: None,
        "own": lambda seed: target.randn(head_dim, dtype=dtype, seed=seed),
        "fp32": lambda seed: target.randn(head_dim, seed=seed),
    }[weight]
    case = Case(
        qkv, (weights(2), weights(3)), (target.guarded(angles.cos()), target.guarded(angles.sin())),
        (heads, kv_heads, head_dim), torch.empty(0),
    )  # fmt: skip
    return Case(case.qkv, case.weights, case.tables, case.heads, exact_heads(case, qkv))


def caches(target: Target, dtype: torch.dtype, case: Case, rows: int) -> tuple[torch.Tensor, ...]:
    """Empty keys and values, full of NaN, and a slot of its own for each row."""
    _, kv_heads, head_dim = case.heads
    blocks, block_size = rows // 4 + 2, 5
    empty = torch.full((blocks, kv_heads, block_size, head_dim), float("nan"), dtype=dtype)
    order = torch.randperm(blocks * block_size, generator=torch.Generator().manual_seed(rows))[:rows]
    return target.guarded(empty), target.guarded(empty), target.guarded(order)


def paged(cache: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
    """What lies at the slots, (rows, kv_heads, head_dim)."""
    return cache.transpose(1, 2).flatten(0, 1)[slots]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("weight", ["none", "own", "fp32"])
def test_qk_norm_rope(target: Target, dtype: torch.dtype, shape: tuple[int, ...], weight: str) -> None:
    """Queries and keys are normed and turned in place, wherever the rows lie; values and what follows stay."""
    case = make(target, dtype, shape, weight)
    heads, kv_heads, head_dim = case.heads
    turned = (heads + kv_heads) * head_dim
    before = case.qkv.clone()
    for qkv in (case.qkv, strided(before), strided(before, 3)):
        target.ops.qk_norm_rope(*case.arguments(qkv))
        name = "rope" if weight == "none" else "qk_norm_rope"
        check_error(name, qkv[:, :turned].unflatten(1, (-1, head_dim)), case.exact[:, : heads + kv_heads])
        assert torch.equal(qkv[:, turned:], before[:, turned:])
    check_guards(case.qkv)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("weight", ["none", "own"])
def test_qk_norm_rope_store(target: Target, dtype: torch.dtype, shape: tuple[int, ...], weight: str) -> None:
    """Queries turn in place; keys and values go to their slots and nowhere else; the bits are those of two calls."""
    case = make(target, dtype, shape, weight)
    heads, kv_heads, head_dim = case.heads
    before = case.qkv.clone()
    for qkv, turned in (
        (case.qkv, before.clone()), (strided(before), strided(before)), (strided(before, 3), strided(before, 3)),
    ):  # fmt: skip
        target.ops.qk_norm_rope(*case.arguments(turned))
        keys, values, slots = caches(target, dtype, case, shape[0])
        target.ops.qk_norm_rope_store(*case.arguments(qkv), keys, values, slots)
        check_guards(keys, values)
        assert torch.equal(qkv[:, : heads * head_dim], turned[:, : heads * head_dim])
        assert torch.equal(qkv[:, heads * head_dim :], before[:, heads * head_dim :])
        heads_of = turned.unflatten(1, (-1, head_dim))
        assert torch.equal(paged(keys, slots), heads_of[:, heads : heads + kv_heads])
        assert torch.equal(paged(values, slots), heads_of[:, heads + kv_heads : heads + 2 * kv_heads])
        for cache in (keys, values):
            assert int((~cache.isnan()).sum()) == shape[0] * kv_heads * head_dim


@pytest.mark.parametrize("shape", [(3, 6, 2, 64, 32), (2, 3, 3, 16, 6), (5, 4, 1, 16, 8), (0, 2, 2, 16, 8)])
def test_each_kv_head_has_its_own_table(target: Target, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    """With tables head by head, a key head and the queries that read it turn by the same one."""
    case = make(target, dtype, shape, own_tables=True)
    heads, kv_heads, head_dim = case.heads
    keys, values, slots = caches(target, dtype, case, shape[0])
    ops.qk_norm_rope_store(*case.arguments(case.qkv), keys, values, slots)
    query = case.qkv[:, : heads * head_dim].unflatten(1, (-1, head_dim))
    check_error("qk_norm_rope", query, case.exact[:, :heads])
    check_error("qk_norm_rope", paged(keys, slots), case.exact[:, heads : heads + kv_heads])


def test_tokens_without_a_slot_are_written_nowhere(target: Target, dtype: torch.dtype) -> None:
    """Rows that pad a captured step have negative slots, and leave the cache alone; others find theirs all the same."""
    case = make(target, dtype, (6, 4, 2, 16, 8))
    keys, values, slots = caches(target, dtype, case, 6)
    slots[1::2] = torch.tensor([-1, -7, -(1 << 40)], device=target.device)
    heads = case.qkv.clone().unflatten(1, (-1, 16))
    alone = caches(target, dtype, case, 6)
    target.ops.store_kv(heads[:, 4:6], heads[:, 6:8], alone[0], alone[1], slots)
    target.ops.qk_norm_rope_store(*case.arguments(case.qkv), keys, values, slots)
    for cache in (keys, values, *alone[:2]):
        assert int((~cache.isnan()).sum()) == 3 * 2 * 16
    check_error("qk_norm_rope", paged(keys, slots[::2]), case.exact[::2, 4:6])
    assert torch.equal(paged(values, slots[::2]), heads[::2, 6:8])
    assert torch.equal(paged(alone[0], slots[::2]), heads[::2, 4:6])


@pytest.mark.parametrize(("rows", "kv_heads", "head_dim"), [(5, 2, 64), (3, 3, 7), (1, 20, 128), (0, 2, 16)])
def test_store_kv(target: Target, dtype: torch.dtype, rows: int, kv_heads: int, head_dim: int) -> None:
    """Keys and values go to their slots bit by bit, out of wider rows and out of ones that no vector fits."""
    width = 2 * kv_heads * head_dim
    case = make(target, dtype, (rows, kv_heads, kv_heads, head_dim, 0))
    wide = case.qkv[:, :width]
    for source in (wide, strided(wide), strided(wide, 3)):
        key, value = source[:, : width // 2], source[:, width // 2 :]
        keys, values, slots = caches(target, dtype, case, rows)
        ops.store_kv(*(part.unflatten(1, (kv_heads, head_dim)) for part in (key, value)), keys, values, slots)
        check_guards(keys, values)
        for cache, part in ((keys, key), (values, value)):
            assert torch.equal(paged(cache, slots).flatten(1), part)
            assert int((~cache.isnan()).sum()) == rows * width // 2


@pytest.mark.parametrize(("rows", "half"), [(1, 64), (7, 36), (300, 5), (0, 8), (3, 1)])
def test_rotary_table(target: Target, rows: int, half: int) -> None:
    """Each frequency turns by the position of its axis, exactly: positions in the hundreds of thousands, too."""
    positions = torch.randint(0, 300_000, (3, rows), generator=torch.Generator().manual_seed(rows))
    inv_freq = 1e6 ** (-torch.arange(half) / half)
    axes = torch.arange(half) % 3
    angles = (positions.t()[:, axes].float() * inv_freq).double()
    wide = torch.full((3, rows + 5), -1)
    wide[:, :rows] = positions
    for given in (target.guarded(positions), target.guarded(wide)[:, :rows]):
        cos, sin = ops.rotary_table(given, target.guarded(inv_freq), target.guarded(axes))
        assert cos.is_contiguous() and sin.is_contiguous()
        check_error("rotary_table", cos, angles.cos())
        check_error("rotary_table", sin, angles.sin())


def test_bad_arguments_are_refused(target: Target) -> None:
    """A wrong shape or type is an error that names the argument, not a wrong result."""
    case = make(target, torch.float32, (4, 4, 2, 16, 8))
    keys, values, slots = caches(target, torch.float32, case, 4)
    qkv, q_weight, k_weight, eps, cos, sin, *heads = case.arguments(case.qkv)
    turn, store = target.ops.qk_norm_rope, target.ops.qk_norm_rope_store
    for message, arguments in {
        "qkv has fewer columns": (qkv[:, :95], q_weight, k_weight, eps, cos, sin, *heads),
        "last axis contiguous": (target.randn(144, 4).t(), q_weight, k_weight, eps, cos, sin, *heads),
        "rows that overlap": (qkv[:1].expand(4, 144), q_weight, k_weight, eps, cos, sin, *heads),
        "q_weight has another shape": (qkv, q_weight[:8], k_weight, eps, cos, sin, *heads),
        "k_weight has another dtype": (qkv, q_weight, k_weight.bfloat16(), eps, cos, sin, *heads),
        "cos has another shape": (qkv, q_weight, k_weight, eps, cos[:3], sin, *heads),
        "sin has another shape": (qkv, q_weight, k_weight, eps, cos, sin[:, :4].contiguous(), *heads),
        "cos has another dtype": (qkv, q_weight, k_weight, eps, cos.double(), sin, *heads),
        "more than half a head": (qkv, None, None, eps, target.randn(4, 9), target.randn(4, 9), *heads),
        "multiple of num_kv_heads": (qkv, q_weight, k_weight, eps, cos, sin, 4, 3, 16),
        "head_dim must be": (qkv, None, None, eps, cos, sin, 1, 1, 513),
    }.items():
        with pytest.raises(RuntimeError, match=message):
            turn(*arguments)
    for message, paging in {
        "slots has another shape": (keys, values, slots[:3]),
        "slots has another dtype": (keys, values, slots.int()),
        "key_cache has another shape": (keys[:, :1].contiguous(), values, slots),
        "value_cache has another shape": (keys, values[:2], slots),
        "value_cache has another dtype": (keys, values.bfloat16(), slots),
        "key_cache must be contiguous": (keys.transpose(1, 2), values, slots),
    }.items():
        with pytest.raises(RuntimeError, match=message):
            store(*case.arguments(case.qkv), *paging)
    with pytest.raises(RuntimeError, match="value has another shape"):
        target.ops.store_kv(target.randn(4, 2, 16), target.randn(4, 2, 15), keys, values, slots)
    with pytest.raises(RuntimeError, match="positions has another dtype"):
        target.ops.rotary_table(torch.zeros(1, 2, device=target.device), target.randn(4), slots)


def test_ops_trace(target: Target, dtype: torch.dtype) -> None:
    """Schemas, fakes and tracing hold up to torch's own checks."""
    with torch.inference_mode(False):
        device = target.device
        qkv, weight = torch.randn(3, 96, dtype=dtype, device=device), torch.randn(16, device=device)
        table, slots = torch.randn(3, 8, device=device), torch.tensor([4, -1, 9], device=device)
        keys = torch.zeros(2, 1, 5, 16, dtype=dtype, device=device)
        arguments = (qkv, weight, weight, EPS, table, table, 4, 1, 16)
        check_op(target.ops.qk_norm_rope, arguments)
        check_op(target.ops.qk_norm_rope_store, (*arguments, keys, keys.clone(), slots))
        heads = qkv.view(3, 6, 16)
        check_op(target.ops.store_kv, (heads[:, :1], heads[:, 1:2], keys, keys.clone(), slots))
        positions, axes = torch.arange(6, device=device).view(2, 3), torch.tensor([0, 1, 1, 0], device=device)
        check_op(target.ops.rotary_table, (positions, torch.rand(4, device=device), axes))
