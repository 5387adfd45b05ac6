"""Draws on CUDA against torch's on the CPU, and against float64.

Next: kernels/include/sampling_race.cuh
"""

import math
from typing import Any

import numpy as np
import pytest
import torch

from tessera_kernels import cuda, reference_sampling, sampling
from tessera_kernels.sampling import ROW, SamplingBatch
from tests.cuda_ops import Target, check_guards, check_op, strided

KNOBS: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"temperature": 1.0},
    {"temperature": 0.7, "top_k": 20, "top_p": 0.8},
    {"temperature": 1.0, "top_k": 1},
    {"temperature": 1.3, "top_k": 50},
    {"temperature": 1.0, "top_p": 0.9},
    {"temperature": 1.0, "top_p": 1e-6},
    {"temperature": 1.0, "top_p": 0.999999},
    {"temperature": 1.0, "min_p": 0.05},
    {"temperature": 1.0, "min_p": 1.0},
    {"temperature": 1e-30, "top_k": 5},
    {"temperature": 100.0, "top_k": 4, "top_p": 0.6, "min_p": 0.1},
    {"temperature": 0.05, "top_p": 0.5},
    {"temperature": 2.0, "top_k": 700, "top_p": 0.95},
    {"temperature": 1.0, "top_k": 1 << 30},
    {"temperature": 1.0, "top_k": 7, "top_p": 0.99999994},
]
VOCAB_SIZES = [1, 33, 1000, 5003]


def batch_of(rows: list[dict[str, Any]], seed: int = 0) -> SamplingBatch:
    """Records of these knobs; keys depend on seed and row."""
    records = np.zeros(len(rows), ROW)
    records["changed"] = -1
    keys = np.random.default_rng(seed).integers(-(2**31), 2**31, (len(rows), 2))
    for number, row in enumerate(rows):
        least = torch.tensor(row.get("min_p", 0.0)).log().item()
        records[number] = (
            row.get("source", 0), -1, row["temperature"], row.get("top_k", 0), row.get("top_p", 1.0), -least,
            keys[number], row.get("num_top", -1),
        )  # fmt: skip
    return SamplingBatch(records)


def draw(logits: torch.Tensor, batch: SamplingBatch) -> sampling.HostRows:
    """What the ops draw."""
    assert cuda.serves(logits)
    return sampling.sample(logits, batch).fetch()


def draw_on_cpu(logits: torch.Tensor, batch: SamplingBatch) -> sampling.HostRows:
    """What torch draws."""
    return sampling.SampledRows(reference_sampling.sample(logits.cpu().float(), batch)).fetch()


def logits_like(target: Target, kind: str, rows: int, vocab_size: int) -> torch.Tensor:
    """Scores of all sorts."""
    x = target.randn(rows, vocab_size, seed=5).cpu()
    if kind == "wide":
        x = x * 4
    if kind == "equal":
        x = torch.zeros(rows, vocab_size)
    if kind == "steps":
        x = (x * 3).round()  # many ties
    if kind == "masked":
        x = x.masked_fill(torch.arange(vocab_size) % 3 != 0, -torch.inf)
    if kind == "huge":
        x = x * 1e37
    return target.guarded(x)


@pytest.mark.parametrize("vocab_size", VOCAB_SIZES)
@pytest.mark.parametrize("kind", ["narrow", "wide", "equal", "steps", "masked", "huge"])
def test_draws_are_those_of_the_cpu(target: Target, kind: str, vocab_size: int) -> None:
    """Each knob and each mix of them draws, row by row, what a CPU draws with the same keys."""
    logits = logits_like(target, kind, len(KNOBS), vocab_size)
    rows = [{"source": number, **knobs} for number, knobs in enumerate(KNOBS)]
    for seed in range(2):
        batch = batch_of(rows, seed)
        assert draw(logits, batch).tokens == draw_on_cpu(logits, batch).tokens
    check_guards(logits)


def test_types_and_layouts(target: Target, dtype: torch.dtype) -> None:
    """Logits may be of any float type, lie in rows apart and at odd addresses, and are not changed."""
    for vocab_size in (4096 * 2 + 8, 4099):
        x = target.randn(7, vocab_size, dtype=dtype)
        before = x.clone()
        batch = batch_of([{"source": n, **KNOBS[n + 1], "num_top": 3} for n in range(7)])
        ours = draw(x, batch)
        assert ours.tokens == draw_on_cpu(x, batch).tokens
        assert all(draw(apart, batch) == ours for apart in (strided(x), strided(x, 3)))
        assert torch.equal(x, before)


def exact_kept(logits: torch.Tensor, knobs: dict[str, Any]) -> set[int]:
    """The tokens that may be drawn, in float64."""
    scaled = logits.double() / knobs["temperature"]
    values, order = scaled.sort(descending=True, stable=True)
    top_k = knobs.get("top_k", 0) or len(values)
    mass = values[:top_k].softmax(0)
    kept = int((mass.cumsum(0) - mass < knobs.get("top_p", 1.0)).sum())
    least = max(values[max(kept, 1) - 1].item(), values[0].item() + math.log(knobs.get("min_p", 0.0) or 1e-300))
    return {token for token, value in zip(order.tolist(), values.tolist(), strict=True) if value >= least}


@pytest.mark.parametrize(
    "knobs",
    [
        {"top_k": 3},
        {"top_p": 0.7},
        {"top_k": 5, "top_p": 0.9},
        {"min_p": 0.2},
        {"top_k": 6, "min_p": 0.25},
        {"top_k": 7, "top_p": 0.97, "min_p": 0.02},
    ],
)
def test_all_that_is_kept_is_drawn_and_nothing_else(target: Target, knobs: dict[str, Any]) -> None:
    """Over many keys, exactly the tokens come that the cuts keep; those at the cut, and their equals, among them."""
    x = torch.tensor([0.1, 2.0, 1.5, 1.5, 1.5, -1.0, 0.4, 1.0, 0.7, -3.0, 0.2])
    batch = batch_of([{"temperature": 0.9, **knobs}] * 80)
    assert set(draw(target.guarded(x[None]), batch).tokens) == exact_kept(x, {"temperature": 0.9, **knobs})


@pytest.mark.parametrize(
    "knobs", [{"top_p": 0.5}, {"top_k": 5000}, {"top_k": 8000, "top_p": 0.6, "min_p": 0.1}, {"top_k": 3, "top_p": 0.9}]
)
def test_more_candidates_than_the_list_holds(target: Target, knobs: dict[str, Any]) -> None:
    """Where thousands of scores lie together, the cut is found among all of them all the same."""
    generator = torch.Generator().manual_seed(3)
    close = torch.rand(1, 9001, generator=generator) * 1e-4
    for logits in (target.guarded(close), target.guarded(torch.zeros(1, 9001))):
        batch = batch_of([{"temperature": 1.0, **knobs}] * 3)
        assert draw(logits, batch).tokens == draw_on_cpu(logits, batch).tokens


def test_a_long_tail_counts(target: Target) -> None:
    """Thousands of unlikely tokens make up half of the mass: sums of small numbers lose nothing."""
    x = torch.cat((torch.zeros(1), -8.4 - torch.arange(4000) * 1e-4))[None]
    batch = batch_of([{"temperature": 1.0, "top_p": 0.8}] * 60)
    tokens = draw(target.guarded(x), batch).tokens
    assert tokens == draw_on_cpu(x, batch).tokens
    assert 1500 < max(tokens) <= max(exact_kept(x[0], {"temperature": 1.0, "top_p": 0.8})) < 3000


def test_the_likeliest_of_equals_is_the_first(target: Target) -> None:
    """A greedy row takes the lowest id of equals, in its own slice and across slices; -0 equals 0."""
    x = torch.full((4, 8200), -2.0)
    x[0, [17, 4095, 4096, 8199]] = 3.0
    x[1, [8191, 8192]] = 3.0
    x[2] = 0.0
    x[2, :5] = -0.0
    batch = batch_of([{"source": n, "temperature": 0.0} for n in range(4)])
    assert draw(target.guarded(x), batch).tokens == [17, 8191, 0, 0]


def test_rows_without_a_finite_maximum(target: Target) -> None:
    """A row that is masked throughout gives token 0, one with infinity or NaN the first such token, drawn or greedy."""
    x = torch.zeros(3, 5000)
    x[0] = -torch.inf
    x[1, [4500, 4600]] = torch.inf
    x[2, [4321, 4400]] = torch.nan
    some = KNOBS[:6]
    tokens = draw(target.guarded(x), batch_of([{"source": n, **knobs} for n in range(3) for knobs in some])).tokens
    assert tokens == [0] * 6 + [4500] * 6 + [4321] * 6


def test_draws_follow_the_probabilities(target: Target) -> None:
    """Frequencies of many draws pass a chi-square test against the softmax at that temperature."""
    x = torch.tensor([1.0, 3.0, 2.0, -1.0, 0.0, 2.5])
    count = 400
    tokens = torch.tensor(draw(target.guarded(x[None]), batch_of([{"temperature": 0.7}] * count)).tokens)
    expected = (x.double() / 0.7).softmax(0) * count
    statistic = ((tokens.bincount(minlength=6) - expected).square() / expected).sum()
    assert statistic < 20.5  # 5 degrees of freedom, one in a thousand


def test_a_row_does_not_see_its_neighbours(target: Target) -> None:
    """Token and log probabilities of a row are the same bits alone and among others."""
    logits = target.randn(6, 5003, seed=9) * 3
    rows = [{"source": n % 6, **KNOBS[n], "num_top": n % 4} for n in range(len(KNOBS))]
    together = batch_of(rows)
    words = sampling.sample(logits, together).words
    for number in range(0, len(rows), 3):
        alone = sampling.sample(logits, SamplingBatch(together.rows[number : number + 1])).words
        num_top = number % 4
        parts = [words[number, :2], words[number, 2 : 2 + num_top], words[number, 5 : 5 + num_top]]
        assert torch.equal(torch.cat(parts), alone[0])


def test_random_bits_are_the_cpus(target: Target) -> None:
    """The integers are equal on every device; the noise made of them is right to a few units in the last place."""
    keys = torch.from_numpy(np.random.default_rng(1).integers(-(2**31), 2**31, (5, 2)).astype(np.int32))
    ids = torch.cat((torch.arange(3000), torch.tensor([151935, 2**18 - 1, 2**31 - 1]))).to(torch.int32)
    bits, noise = target.ops.gumbel(keys.to(target.device), ids.to(target.device))
    assert torch.equal(bits.cpu(), reference_sampling.gumbel_bits(keys, ids))
    uniform = ((bits.cpu().float() + 0.5) * 2.0**-31).clamp(max=1 - 2.0**-24).double()
    exact = -(-torch.log1p(-uniform)).log()
    assert ((noise.cpu().double() - exact).abs() <= 3e-7 * (1 + exact.abs())).all()
    expected = reference_sampling.gumbel(keys, ids)
    torch.testing.assert_close(sampling.gumbel(keys.to(target.device), ids.to(target.device)).cpu(), expected)


def test_ops_trace(target: Target, dtype: torch.dtype) -> None:
    """Schemas, fakes and tracing hold up to torch's own checks."""
    with torch.inference_mode(False):
        logits = torch.randn(3, 50, dtype=dtype, device=target.device)
        records = batch_of([{"source": n, "num_top": 2, **KNOBS[n]} for n in range(3)]).rows
        rows = torch.from_numpy(records.view(np.int32).reshape(3, 9)).to(target.device)
        check_op(target.ops.sample, (logits, logits.float(), rows, True, True, 2))
        check_op(target.ops.sample, (logits, None, rows, True, False, -1))
        keys = torch.ones(2, 2, dtype=torch.int32, device=target.device)
        check_op(target.ops.gumbel, (keys, keys[0]))


def test_no_rows(target: Target) -> None:
    """Nothing asked is nothing drawn."""
    assert draw(target.randn(0, 50), batch_of([])).tokens == []


def test_bad_arguments_are_refused(target: Target) -> None:
    """A wrong shape or type is an error that names the argument."""
    logits, sample = target.randn(2, 50), target.ops.sample
    rows = torch.zeros(2, 9, dtype=torch.int32, device=target.device)
    with pytest.raises(RuntimeError, match="rows has another shape"):
        sample(logits, None, rows[:, :8].contiguous(), True, True, -1)
    with pytest.raises(RuntimeError, match="rows has another dtype"):
        sample(logits, None, rows.float(), True, True, -1)
    with pytest.raises(RuntimeError, match="changed has another shape"):
        sample(logits, target.randn(2, 49), rows, True, True, -1)
    with pytest.raises(RuntimeError, match="num_top"):
        sample(logits, None, rows, True, True, 33)
    with pytest.raises(RuntimeError, match=r"more than 2 \*\* 19"):
        sample(logits[:1, :1].expand(1, 2**19 + 1).contiguous(), None, rows[:1], True, True, -1)
    with pytest.raises(RuntimeError, match="logits must have its last axis contiguous"):
        sample(logits.t(), None, rows, True, True, -1)
    with pytest.raises(RuntimeError, match="keys has another shape"):
        target.ops.gumbel(rows, rows[0])
