"""Ops of the batch-invariant mode: a row alone, in any batch, in any chunk and by any threads gives the same bits.

Next: tests/parity/test_batch_invariance.py
"""

from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F

from tessera_kernels import bicubic, cpu, invariance, ops, reference
from tessera_kernels.linear import CppWeight
from tessera_kernels.moe import CppExperts

CPU = torch.device("cpu")
COUNTS = (1, 2, 3, 4, 5, 6, 7, 11, 12, 13, 25, 40)


@pytest.fixture(autouse=True)
def mode(native: str) -> Iterator[None]:
    """The mode, on each build."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with invariance.using(True):
        yield
    torch.set_num_threads(threads)


def on_two_threads(function: Callable[[], torch.Tensor]) -> torch.Tensor:
    """Run with two threads."""
    torch.set_num_threads(2)
    try:
        return function()
    finally:
        torch.set_num_threads(1)


def assert_rows_alone(function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> None:
    """Batches of every size, from different rows on, by one thread and by two, give what all rows give."""
    full = function(x)
    for count in COUNTS:
        for start in {0, 1, len(x) - count}:
            assert torch.equal(function(x[start : start + count].clone()), full[start : start + count]), (count, start)
    assert torch.equal(on_two_threads(lambda: function(x)), full)


def made_linear(out_features: int, in_features: int, activation: str) -> CppWeight:
    weight = CppWeight(
        out_features, in_features, torch.float32, CPU, bias=activation != "swiglu", activation=activation
    )
    weight.write_rows(0, torch.randn(out_features, in_features))
    if activation != "swiglu":
        weight.write_bias(0, torch.randn(out_features))
    return weight


@pytest.mark.parametrize("activation", ["none", "gelu_tanh", "gelu", "swiglu"])
@pytest.mark.parametrize(("out_features", "in_features"), [(1, 1), (34, 7), (16, 129), (50, 300), (100, 513)])
def test_linear(out_features: int, in_features: int, activation: str) -> None:
    """Rows of a product, at odd sizes and depths beyond one block of them."""
    out_features += out_features % 2 if activation == "swiglu" else 0
    weight = made_linear(out_features, in_features, activation)
    assert_rows_alone(weight.apply, torch.randn(41, in_features))


def test_linear_of_more_rows_than_are_packed_at_once() -> None:
    """The first and the last of 771 rows."""
    weight, x = made_linear(17, 140, "none"), torch.randn(771, 140)
    full = weight.apply(x)
    assert torch.equal(weight.apply(x[:1]), full[:1]) and torch.equal(weight.apply(x[-3:]), full[-3:])


def test_the_fixed_order_is_as_exact() -> None:
    """One row in the fixed order is within rounding of float64."""
    weight, dense, x = CppWeight(64, 2000, torch.float32, CPU), torch.randn(64, 2000), torch.randn(1, 2000)
    weight.write_rows(0, dense)
    exact = x.double() @ dense.double().t()
    error = (weight.apply(x) - exact).abs().max()
    with invariance.using(False):
        usual = (weight.apply(x) - exact).abs().max()
    assert error < 2e-4 and error < 8 * usual


@pytest.mark.parametrize(("hidden", "inner"), [(33, 20), (144, 272)])
def test_experts(hidden: int, inner: int) -> None:
    """A token among others that share its experts."""
    experts = CppExperts(5, hidden, inner, torch.float32, CPU)
    for index in range(5):
        experts.write_gate_up(index, 0, torch.randn(2 * inner, hidden))
        experts.write_down(index, 0, torch.randn(hidden, inner))
    chosen, weights = torch.rand(41, 5).topk(2).indices, torch.rand(41, 2)
    x = torch.randn(41, hidden)
    rows = torch.arange(41.0)[:, None]

    def apply(marked: torch.Tensor) -> torch.Tensor:
        which = marked[:, -1].long()
        return experts.apply(marked[:, :-1].contiguous(), chosen[which], weights[which])

    assert_rows_alone(apply, torch.cat((x, rows), dim=1))


class Paged:
    """A sequence whose keys and values lie in shuffled blocks, and what its queries give in one go."""

    def __init__(self, length: int, heads: int, kv_heads: int, head_dim: int, block_size: int) -> None:
        self.length, self.width = length, -(-length // block_size)
        shape = (self.width + 2, kv_heads, block_size, head_dim)
        self.caches = torch.full(shape, float("nan")), torch.full(shape, float("nan"))
        self.table = torch.randperm(self.width + 2)[: self.width].int()
        self.query = torch.randn(length, heads, head_dim)
        slots = torch.tensor([int(self.table[i // block_size]) * block_size + i % block_size for i in range(length)])
        key, value = torch.randn(2, length, kv_heads, head_dim)
        ops.store_kv(key, value, *self.caches, slots)

    def attend(self, spans: list[tuple[int, int]]) -> torch.Tensor:
        """Return what runs of its tokens give, as so many sequences of one step."""
        lens, kv_lens = [end - start for start, end in spans], [end for _, end in spans]
        start = torch.tensor([0, *lens]).cumsum(0).int()
        tables = self.table.expand(len(spans), -1).contiguous()
        query = torch.cat([self.query[first:last] for first, last in spans])
        return ops.paged_attention(query, *self.caches, tables, start, torch.tensor(kv_lens).int(), lens, kv_lens, 0.3)


@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim", "block_size"), [(2, 2, 16, 8), (4, 2, 48, 16), (5, 1, 64, 3), (9, 1, 128, 16)]
)
def test_paged_attention(heads: int, kv_heads: int, head_dim: int, block_size: int) -> None:
    """A token decoded, in chunks of any length, or in the prompt as a whole, beside whatever else runs."""
    paged = Paged(75, heads, kv_heads, head_dim, block_size)
    full = paged.attend([(0, 75)])
    for chunk in (1, 2, 3, 5, 8, 17, 33):
        spans = [(start, min(start + chunk, 75)) for start in range(0, 75, chunk)]
        assert torch.equal(paged.attend(spans), full), chunk
        assert torch.equal(torch.cat([paged.attend([span]) for span in spans]), full), chunk
    assert torch.equal(on_two_threads(lambda: paged.attend([(0, 31), (31, 75)])), full)
    lens = [75], [75]
    expected = reference.paged_attention(paged.query, *paged.caches, paged.table[None], *lens, 0.3)
    assert torch.allclose(full, expected, atol=2e-5)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("head_dim", [4, 16, 24, 64])
def test_segment_attention(head_dim: int, causal: bool) -> None:
    """A segment alone and among others; heads that are no whole vectors too."""
    lens = [1, 37, 5, 150, 13]
    qkv = torch.randn(sum(lens), 3, 2, head_dim)
    full = ops.segment_attention(qkv, lens, 0.3, causal)
    parts = [ops.segment_attention(part.clone(), [len(part)], 0.3, causal) for part in qkv.split(lens)]
    assert torch.equal(torch.cat(parts), full)
    assert torch.equal(on_two_threads(lambda: ops.segment_attention(qkv, lens, 0.3, causal)), full)
    assert torch.allclose(full, reference.segment_attention(qkv, lens, 0.3, causal), atol=2e-5)


@pytest.mark.parametrize("hidden", [5, 37, 64, 515])
def test_norms(hidden: int) -> None:
    """Rows that begin at any address."""
    weight, bias = torch.randn(hidden), torch.randn(hidden)
    x = torch.randn(41, hidden)
    assert_rows_alone(lambda rows: ops.rms_norm(rows, weight, 1e-6), x)
    assert_rows_alone(lambda rows: ops.layer_norm(rows, weight, bias, 1e-6), x)
    assert_rows_alone(lambda rows: ops.add_rms_norm(rows, rows.flip(1).contiguous(), weight, 1e-6), x)
    assert_rows_alone(lambda rows: ops.gated_rms_norm(rows[:, None], rows.flip(1).contiguous(), weight, 1e-6), x)


def test_head_norms_and_rotation() -> None:
    """Heads of a token among others."""
    weight, angles = torch.randn(24), torch.randn(41, 12)

    def apply(marked: torch.Tensor) -> torch.Tensor:
        turn, qkv = angles[marked[:, -1].long()], marked[:, :-1].contiguous()
        ops.qk_norm_rope(qkv, weight, weight, 1e-6, turn.cos(), turn.sin(), 3, 1)
        return qkv

    assert_rows_alone(apply, torch.cat((torch.randn(41, 5 * 24), torch.arange(41.0)[:, None]), dim=1))


@pytest.mark.parametrize("chunk", [1, 2, 7, 64, 65])
def test_linear_attention(chunk: int) -> None:
    """A sequence in chunks beside another one, and in one go: what it reads, and the state that it leaves."""
    key_heads, heads, dim, taps, length = 1, 2, 20, 4, 130
    channels = 2 * key_heads * dim + heads * dim
    x, gates, weight = torch.randn(length, channels), torch.randn(length, 2 * heads), torch.randn(taps, channels)
    rate, bias = torch.rand(heads), torch.randn(heads)

    def run(step: int, beside: int) -> list[torch.Tensor]:
        carried, states = torch.zeros(2, channels, taps - 1), torch.zeros(2, heads, dim, dim)
        reads = []
        for start in range(0, length, step):
            rows = slice(start, min(start + step, length))
            own = rows.stop - start
            ends = torch.tensor([0, beside, beside + own]).int()
            kv_lens = (beside, rows.stop)
            sequences = ops.Sequences(torch.tensor([1, 0]), ends, torch.tensor(kv_lens).int(), (beside, own), kv_lens)
            mixed = ops.causal_conv(torch.cat((x[:beside], x[rows])), weight, carried, sequences)
            both = torch.cat((gates[:beside], gates[rows]))
            reads.append(ops.gated_delta_rule(mixed, both, rate, bias, states, sequences, key_heads)[beside:])
        return [torch.cat(reads), carried[0], states[0]]

    for found, expected in zip(run(chunk, beside=3), run(length, beside=0), strict=True):
        assert torch.equal(found, expected)


def test_the_functions_of_torch_that_are_taken_as_they_are() -> None:
    """Row-wise softmax, log softmax and sums, and exponentials and logarithms anywhere in a tensor."""
    x = torch.randn(41, 1003) * 4
    for row_wise in (
        lambda rows: rows.softmax(-1),
        lambda rows: rows.log_softmax(-1),
        lambda rows: rows[:, :8].sum(-1),
        lambda rows: rows.clone().addcmul_(rows.flip(1), rows[:, :1]),
        lambda rows: rows.view(len(rows), 17, 59).mean(1),
        torch.exp,
        lambda rows: rows.abs().log(),
        lambda rows: rows.abs().log1p(),
    ):
        assert_rows_alone(row_wise, x)


@pytest.mark.parametrize("function", [torch.sigmoid, F.gelu, F.silu, torch.cos, torch.sin])
@pytest.mark.parametrize("width", [1, 7, 60])
def test_elementwise(function: Callable[[torch.Tensor], torch.Tensor], width: int) -> None:
    """A number gives the same wherever it stands; torch alone rounds sigmoids of whole vectors in another way."""
    x = torch.randn(411, width) * 4
    assert_rows_alone(lambda rows: invariance.elementwise(function, rows), x)
    assert torch.allclose(invariance.elementwise(function, x), function(x), atol=1e-6)
    assert invariance.elementwise(function, x[:0]).shape == (0, width)


def test_positions_do_not_depend_on_threads() -> None:
    """Learned positions resampled by one thread and by two."""
    table = torch.randn(24 * 24, 40)
    one = bicubic.interpolate_positions_bicubic(table, 14, 22, 2)
    assert torch.equal(on_two_threads(lambda: bicubic.interpolate_positions_bicubic(table, 14, 22, 2)), one)
    assert torch.get_num_threads() == 1


def test_outside_of_the_mode_a_row_shows_its_neighbours() -> None:
    """One row alone and among four differ in their last bits: the comparison can fail."""
    weight, x = made_linear(64, 513, "none"), torch.randn(41, 513)
    with invariance.using(False):
        assert not torch.equal(weight.apply(x[:1]), weight.apply(x)[:1])


def test_what_is_in_the_way_is_named(native: str) -> None:
    """Types, devices, libraries and heads that the mode does not hold for."""
    assert invariance.obstacle(torch.float32, CPU) is None
    assert "bfloat16" in str(invariance.obstacle(torch.bfloat16, CPU))
    if not torch.cuda.is_available():
        assert "no CUDA device" in str(invariance.obstacle(torch.bfloat16, torch.device("cuda")))
    assert invariance.head_obstacle(128, torch.float32, CPU) is None
    assert "heads of 20" in str(invariance.head_obstacle(20, torch.float32, CPU))
    with cpu.using(None):
        assert "make kernels" in str(invariance.obstacle(torch.float32, CPU))
