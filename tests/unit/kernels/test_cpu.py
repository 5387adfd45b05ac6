"""The C++ ops against their reference, at odd lengths, in every build that runs here.

Next: tests/unit/kernels/test_linear.py
"""

import pytest
import torch

from tessera_kernels import cpu, ops, reference

pytestmark = pytest.mark.usefixtures("native")


def randn(*shape: int) -> torch.Tensor:
    """A tensor that depends on its shape alone."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def assert_close(ours: torch.Tensor, exact: torch.Tensor, tolerance: float = 1e-5) -> None:
    """Check the largest error, relative to the largest value; NaN fails."""
    assert ours.shape == exact.shape
    assert (ours - exact).abs().max() <= tolerance * exact.abs().max().clamp(min=1)


@pytest.mark.parametrize(("rows", "hidden"), [(1, 64), (3, 63), (700, 48), (0, 16)])
def test_norms(rows: int, hidden: int) -> None:
    """Both norms, alone and after the residual add, equal the reference; the residual holds the sum."""
    x, weight, bias = randn(rows, hidden), randn(hidden), randn(hidden + 1)[1:].clone()
    for op, weights in (("rms_norm", (weight,)), ("layer_norm", (weight, bias))):
        out = getattr(ops, op)(x, *weights, 1e-6)
        assert out.shape == x.shape
        if not rows:
            continue
        assert_close(out, getattr(reference, op)(x, *weights, 1e-6))
        ours, theirs = randn(rows, hidden + 1)[:, 1:].clone(), randn(rows, hidden + 1)[:, 1:].clone()
        out = getattr(ops, f"add_{op}")(x, ours, *weights, 1e-6)
        assert_close(out, getattr(reference, f"add_{op}")(x, theirs, *weights, 1e-6))
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(("rows", "head_dim", "half"), [(1, 64, 32), (5, 24, 12), (300, 32, 8)])
def test_qk_norm_rope(rows: int, head_dim: int, half: int) -> None:
    """Queries and keys are normed and turned in place, values stay, partial rotation included."""
    heads, kv_heads = 6, 2
    ours = randn(rows, (heads + 2 * kv_heads) * head_dim)
    theirs, angles = ours.clone(), randn(rows, half)
    arguments = (randn(head_dim), randn(head_dim + 1)[1:].clone(), 1e-6, angles.cos(), angles.sin(), heads, kv_heads)
    ops.qk_norm_rope(ours, *arguments)
    reference.qk_norm_rope(theirs, *arguments)
    assert_close(ours, theirs)
    values = (heads + kv_heads) * head_dim
    assert torch.equal(ours[:, values:], theirs[:, values:])


@pytest.mark.parametrize(("kv_heads", "half"), [(None, 12), (2, 12), (1, 6)])
def test_rope_qk(kv_heads: int | None, half: int) -> None:
    """Queries and keys are turned without a norm, in an encoder and where key heads are fewer, in whole or in part."""
    ours, angles = randn(9, (2 + 2 * (kv_heads or 2)) * 24), randn(9, half)
    theirs = ours.clone()
    ops.rope_qk(ours, angles.cos(), angles.sin(), 2, kv_heads)
    reference.rope_qk(theirs, angles.cos(), angles.sin(), 2, kv_heads)
    assert_close(ours, theirs)


@pytest.mark.parametrize(("rows", "heads", "kv_heads"), [(5, 6, 2), (1, 3, 3), (3, 4, 1), (0, 2, 2)])
def test_each_kv_head_turns_by_its_own_table(rows: int, heads: int, kv_heads: int) -> None:
    """With tables head by head, a key head and the queries that read it turn by the same one; the rest stays."""
    head_dim, half = 16, 6
    ours, angles = randn(rows, (heads + 2 * kv_heads + 1) * head_dim), randn(rows, kv_heads, half)
    theirs, tables = ours.clone(), (angles.cos(), angles.sin())
    arguments = (randn(head_dim), randn(head_dim + 1)[1:].clone(), 1e-6, *tables, heads, kv_heads)
    ops.qk_norm_rope(ours, *arguments)
    reference.qk_norm_rope(theirs, *arguments)
    turned = (heads + kv_heads) * head_dim
    if rows:
        assert_close(ours, theirs)
    assert torch.equal(ours[:, turned:], theirs[:, turned:])


@pytest.mark.parametrize("normed", [True, False])
def test_heads_are_turned_and_stored(normed: bool) -> None:
    """Queries turn in place, keys and values go to their slots; a token of a negative slot is written nowhere."""
    rows, heads, kv_heads, head_dim, block_size = 4, 4, 2, 16, 5
    qkv, angles = randn(rows, (heads + 2 * kv_heads + 1) * head_dim), randn(rows, 8)
    exact, weight = qkv.clone(), randn(head_dim) if normed else None
    arguments = (weight, weight, 1e-6, angles.cos(), angles.sin(), heads, kv_heads, head_dim)
    # a block before the cache, for what a negative slot must not touch
    caches = [torch.full((3, kv_heads, block_size, head_dim), float("nan")) for _ in range(2)]
    slots = torch.tensor([7, -1, 0, 4])
    ops.qk_norm_rope_store(qkv, *arguments, *(cache[1:] for cache in caches), slots)
    reference.qk_norm_rope(exact, *arguments)
    query = heads * head_dim
    assert_close(qkv[:, :query], exact[:, :query])
    for first, cache in zip((heads, heads + kv_heads), caches, strict=True):
        stored = cache[1:].transpose(1, 2).flatten(0, 1)[slots[slots >= 0]]
        assert_close(stored, exact.unflatten(1, (-1, head_dim))[slots >= 0, first : first + kv_heads])
        assert int((~cache.isnan()).sum()) == 3 * kv_heads * head_dim


CASES = [
    ((1,), (1,)),  # a first token
    ((1, 1, 1), (5, 16, 300)),  # decodes, a full block, many blocks
    ((3, 1), (3, 40)),  # few rows in a prefill
    ((17, 1, 50), (17, 9, 181)),  # prefill, decode, and a chunk far into its prompt
]


@pytest.mark.parametrize(("query_lens", "kv_lens"), CASES)
@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim"), [(4, 2, 32), (6, 3, 64), (16, 8, 128), (9, 1, 48), (2, 2, 16)]
)
def test_paged_attention(
    query_lens: tuple[int, ...], kv_lens: tuple[int, ...], heads: int, kv_heads: int, head_dim: int
) -> None:
    """Attention over scattered blocks equals the reference; slots that were never written do not show."""
    block_size, width = 16, -(-max(kv_lens) // 16) + 1
    count = len(kv_lens) * width
    tables = torch.randperm(count, generator=torch.Generator().manual_seed(count)).view(-1, width).int()
    caches = [torch.full((count, kv_heads, block_size, head_dim), float("nan")) for _ in range(2)]
    wide = randn(sum(kv_lens), 2 * kv_heads * head_dim).view(sum(kv_lens), 2 * kv_heads, head_dim)
    slots = torch.cat(
        [
            tables[s, torch.arange(length) // block_size].long() * block_size + torch.arange(length) % block_size
            for s, length in enumerate(kv_lens)
        ]
    )
    ops.store_kv(wide[:, :kv_heads], wide[:, kv_heads:], *caches, slots)
    query = randn(sum(query_lens), heads + 2, head_dim)[:, :heads]
    start = torch.tensor([0, *query_lens]).cumsum(0).int()
    lengths = (start, torch.tensor(kv_lens, dtype=torch.int32))
    ours = ops.paged_attention(query, *caches, tables, *lengths, query_lens, kv_lens, head_dim**-0.5)
    theirs = reference.paged_attention(query, *caches, tables, query_lens, kv_lens, head_dim**-0.5)
    assert_close(ours, theirs)


@pytest.mark.parametrize("head_dim", [16, 32, 64, 80])
def test_segment_attention(head_dim: int) -> None:
    """Attention inside segments of any length equals the reference."""
    lens = [4, 4, 1, 33, 150]
    qkv = randn(sum(lens), 3, 3, head_dim)
    assert_close(ops.segment_attention(qkv, lens, 0.2), reference.segment_attention(qkv, lens, 0.2))


def test_large_scores_do_not_overflow() -> None:
    """Scores in the thousands give the weights of their differences."""
    qkv = randn(40, 3, 1, 64) * 30
    assert_close(ops.segment_attention(qkv, [40], 1.0), reference.segment_attention(qkv, [40], 1.0), 1e-4)


def test_what_the_library_does_not_serve_runs_on_the_reference() -> None:
    """Another type, or heads that are no whole vectors, are torch's; the table says so, and why."""
    assert not cpu.serves(randn(2, 2).bfloat16())
    assert not cpu.serves_heads(randn(2, 12), 12)
    table = ops.implementations(torch.float32, torch.device("cpu"), (12,))
    assert table["paged_attention"] == ops.Choice("torch", "head sizes [12] are no whole vectors")
    assert table["linear"] == ops.Choice("cpp", "fp32 on this processor")
    of_bf16 = set(ops.implementations(torch.bfloat16, torch.device("cpu")).values())
    assert of_bf16 == {ops.Choice("torch", "the C++ library takes fp32, not bfloat16")}


@pytest.mark.parametrize(
    ("frames", "blocks", "patch", "merge", "temporal"),
    [(1, (1, 1), 16, 2, 1), (4, (3, 5), 16, 2, 2), (2, (2, 3), 14, 2, 2), (3, (5, 1), 6, 3, 1), (6, (1, 2), 2, 1, 3)],
)
def test_centred_patches(frames: int, blocks: tuple[int, int], patch: int, merge: int, temporal: int) -> None:
    """Every pixel lands in its row and column, bit for bit, for stills and clips, also from frames that lie strided."""
    height, width = (side * patch * merge for side in blocks)
    generator = torch.Generator().manual_seed(frames * patch)
    wide = torch.randint(0, 256, (frames, height, width + 3, 3), dtype=torch.uint8, generator=generator)
    for pixels in (wide[:, :, 3:], wide[:, :, 3:].contiguous()):
        ours = ops.centred_patches(pixels, patch, merge, temporal, 128.0, torch.float32)
        theirs = reference.centred_patches(pixels.contiguous(), patch, merge, temporal, 128.0, torch.float32)
        assert torch.equal(ours, theirs)
