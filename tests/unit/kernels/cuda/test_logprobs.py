"""Log probabilities and changed logits on CUDA: against float64, and bit for bit against torch on the CPU.

Next: kernels/include/sampling_top.cuh
"""

import numpy as np
import pytest
import torch

from tessera_kernels import reference_sampling, sampling
from tessera_kernels.sampling import CHANGE, TOKEN_VALUE, SamplingBatch
from tests.cuda_ops import Target, check_error, check_guards, check_op, strided
from tests.unit.kernels.cuda.test_sampling import batch_of, draw, draw_on_cpu

VOCAB_SIZES = [40, 1000, 5003, 12288]


@pytest.mark.parametrize("vocab_size", VOCAB_SIZES)
def test_log_probabilities(target: Target, dtype: torch.dtype, vocab_size: int) -> None:
    """The drawn token's and the likeliest ones' are the raw softmax's, whatever the knobs, as many as are asked for."""
    logits = target.guarded((target.randn(5, vocab_size).cpu() * 5).to(dtype))
    asked = [20, 0, -1, 3, 20]
    rows = [{"source": 4 - n, "temperature": 0.5 * n, "top_k": n, "num_top": top} for n, top in enumerate(asked)]
    ours = draw(logits, batch_of(rows))
    exact = logits.cpu().double().log_softmax(-1).flip(0)
    found, expected = [], []
    for number, num_top in enumerate(asked):
        if num_top >= 0:
            order = exact[number].sort(descending=True, stable=True)  # equals by id
            assert ours.top_tokens[number][:num_top] == order.indices[:num_top].tolist()
            found += [ours.logprobs[number], *ours.top_logprobs[number][:num_top]]
            expected += [exact[number, ours.tokens[number]].item(), *order.values[:num_top].tolist()]
    check_error("logprobs", torch.tensor(found), torch.tensor(expected, dtype=torch.float64))
    check_guards(logits)


def test_the_likeliest_where_they_lie_together(target: Target) -> None:
    """The likeliest tokens come in order wherever they are: all in one warp's part, all equal, or few beside -inf."""
    x = torch.zeros(3, 9000)
    x[0] = -torch.arange(9000) * 0.01
    x[2] = -torch.inf
    x[2, [8999, 4, 4096]] = torch.tensor([1.0, 0.5, 0.25])
    ours = draw(target.guarded(x), batch_of([{"source": n, "temperature": 0.0, "num_top": 32} for n in range(3)]))
    assert ours.top_tokens[:2] == [list(range(32))] * 2
    assert ours.top_tokens[2][:5] == [8999, 4, 4096, 0, 1]
    torch.testing.assert_close(torch.tensor(ours.top_logprobs[2]), x[2].log_softmax(0)[ours.top_tokens[2]])


def test_the_likeliest_of_a_large_vocabulary(target: Target) -> None:
    """Where a row has more slices than a block merges at once, none of their lists is lost."""
    x = torch.zeros(1, 290_000)
    likeliest = [4, 64 * 4096, 70 * 4096 + 1]
    x[0, likeliest] = torch.tensor([3.0, 2.0, 1.0])
    ours = draw(target.guarded(x), batch_of([{"temperature": 0.0, "num_top": 4}]))
    assert ours.top_tokens == [[*likeliest, 0]]
    exact = x[0].double().log_softmax(0)[[*likeliest, 0]]
    check_error("logprobs", torch.tensor(ours.top_logprobs[0]), exact)


def changes_of(vocab_size: int, seed: int = 0) -> SamplingBatch:
    """Five changes: of nothing, of biases, of penalties, of both, and of all tokens."""
    random = np.random.default_rng(seed)
    changes = np.zeros(5, CHANGE)
    lists: dict[str, list[np.ndarray]] = {"bias": [], "seen": []}
    for change, counts in zip(changes, [(0, 0), (7, 0), (0, 300), (40, 40), (300, vocab_size)], strict=True):
        change["source"] = random.integers(3)
        change["repetition"], change["frequency"], change["presence"] = random.uniform(0.7, 1.6, 3)
        for (name, entries), count in zip(lists.items(), counts, strict=True):
            values = random.normal(size=count) * 30 if name == "bias" else random.integers(0, 5, count)
            new = np.zeros(min(count, vocab_size), TOKEN_VALUE)
            new["token"], new["value"] = random.permutation(vocab_size)[: len(new)], values[: len(new)]
            change[f"{name}_begin"] = sum(len(one) for one in entries)
            entries.append(new)
            change[f"{name}_end"] = sum(len(one) for one in entries)
    biases, seen = (np.concatenate(entries) for entries in lists.values())
    return SamplingBatch(batch_of([]).rows, changes, biases, seen)


def words(target: Target, array: np.ndarray) -> torch.Tensor:
    """Records as the op takes them."""
    return target.guarded(torch.from_numpy(array.view(np.int32).reshape(len(array), array.itemsize // 4)))


@pytest.mark.parametrize("vocab_size", [1, 33, *VOCAB_SIZES])
def test_penalties_are_the_cpus(target: Target, dtype: torch.dtype, vocab_size: int) -> None:
    """Masks, biases and penalties give the same bits as on a CPU: the draw that follows must be the same."""
    batch = changes_of(vocab_size)
    batch.changes["drawn"] = [
        -1,
        2,
        0,
        1,
        2,
    ]  # of row 1 any token, of row 0 one that is among the seen, of row 2 the last
    tokens = [batch.seen["token"][5 % len(batch.seen)], 7 % vocab_size, vocab_size - 1]
    drawn = torch.tensor(tokens, dtype=torch.int32)[:, None].repeat(1, 3)
    drawn[:, 1:] = -5  # log probabilities, which are none of its business
    generator = torch.Generator().manual_seed(1)
    bits = torch.randint(-(2**31), 2**31, (5, -(-vocab_size // 32)), generator=generator, dtype=torch.int32)
    for allowed, before in ((None, None), (bits, drawn)):
        x = target.randn(3, vocab_size, dtype=dtype)
        expected = reference_sampling.penalised_logits(
            x.cpu(), SamplingBatch(batch.rows, batch.changes, batch.biases, batch.seen, before, allowed)
        )
        lists = [words(target, array) for array in (batch.changes, batch.biases, batch.seen)]
        options = [None if one is None else target.guarded(one) for one in (before, allowed)]
        for logits in (x, strided(x), strided(x, 3)):
            ours = target.ops.penalised_logits(logits, *lists, *options)
            assert torch.equal(ours.cpu(), expected)
        check_guards(x, *lists)


def test_penalties_against_float64(target: Target) -> None:
    """Repetition divides what is positive and multiplies what is negative; then frequency and presence are taken."""
    batch, x = changes_of(1000, seed=4), target.randn(3, 1000)
    lists = [words(target, array) for array in (batch.changes, batch.biases, batch.seen)]
    exact = torch.zeros(5, 1000, dtype=torch.float64)
    for number, change in enumerate(batch.changes):
        score = x[int(change["source"])].cpu().double()
        for token, bias in batch.biases[change["bias_begin"] : change["bias_end"]].tolist():
            score[token] += bias
        for token, count in batch.seen[change["seen_begin"] : change["seen_end"]].tolist():
            score[token] *= change["repetition"] if score[token] < 0 else 1 / change["repetition"]
            score[token] -= count * change["frequency"] + (count > 0) * change["presence"]
        exact[number] = score
    check_error("penalised_logits", target.ops.penalised_logits(x, *lists, None, None), exact)


@pytest.mark.parametrize("known", [0, 1, 3])
@pytest.mark.parametrize("vocab_size", [50, 5003])
def test_a_drawn_token_counts_once_more(target: Target, vocab_size: int, known: int) -> None:
    """A token that the host does not know yet changes its logit as if the host had counted it."""
    token = vocab_size - 3
    entries = np.array([(1, 2), (token, known), (4, 0)][: 3 if known else 1], TOKEN_VALUE)
    told = np.array([(1, 2), (token, known + 1), (4, 0)][: 3 if known else 2], TOKEN_VALUE)
    changes = np.zeros(1, CHANGE)
    changes["repetition"], changes["frequency"], changes["presence"], changes["drawn"] = 1.3, 0.4, 0.7, 1
    x = target.randn(1, vocab_size)
    drawn = target.guarded(torch.tensor([[0, 9], [token, 9]], dtype=torch.int32))
    results = []
    for seen, before in ((entries, drawn), (told, None)):
        changes["seen_end"] = len(seen)
        lists = [words(target, array) for array in (changes, np.zeros(0, TOKEN_VALUE), seen)]
        results.append(target.ops.penalised_logits(x, *lists, before, None))
    assert torch.equal(*results) and not torch.equal(results[0], x)


def test_changed_rows_beside_others(target: Target) -> None:
    """A draw is from the changed logits of its row where it has any; log probabilities are of the raw ones."""
    changes = changes_of(5003)
    logits = target.randn(3, 5003) * 2
    rows = [{"source": 0, "temperature": 0.6 * (n % 3), "top_k": 40 * (n % 2), "num_top": 2} for n in range(9)]
    batch = batch_of(rows)
    for number, change in enumerate([2, -1, 0, 4, -1, 1, 3, -1, 2]):
        batch.rows["changed"][number] = change
        batch.rows["source"][number] = changes.changes["source"][change] if change >= 0 else 1
    mixed = SamplingBatch(batch.rows, changes.changes, changes.biases, changes.seen)
    ours, expected = draw(logits, mixed), draw_on_cpu(logits, mixed)
    assert ours.tokens == expected.tokens and ours.top_tokens == expected.top_tokens
    torch.testing.assert_close(torch.tensor(ours.logprobs), torch.tensor(expected.logprobs))
    torch.testing.assert_close(torch.tensor(ours.top_logprobs), torch.tensor(expected.top_logprobs))
    assert ours.tokens != draw(logits, SamplingBatch(batch_of(rows).rows)).tokens


def test_ops_trace(target: Target, dtype: torch.dtype) -> None:
    """Schema, fake and tracing hold up to torch's own checks."""
    batch = changes_of(64)
    with torch.inference_mode(False):
        x = torch.randn(3, 64, dtype=dtype, device=target.device)
        lists = [words(target, array).clone() for array in (batch.changes, batch.biases, batch.seen)]
        allowed = torch.ones(5, 2, dtype=torch.int32, device=target.device)
        drawn = torch.zeros(3, 4, dtype=torch.int32, device=target.device)
        check_op(target.ops.penalised_logits, (x, *lists, drawn, allowed))
        check_op(target.ops.penalised_logits, (x, *lists, None, None))


def test_bad_arguments_are_refused(target: Target) -> None:
    """A wrong shape or type is an error that names the argument."""
    batch, x, op = changes_of(64), target.randn(3, 64), target.ops.penalised_logits
    changes, biases, seen = (words(target, array) for array in (batch.changes, batch.biases, batch.seen))
    with pytest.raises(RuntimeError, match="rows has another shape"):
        op(x, biases, biases, seen, None, None)
    with pytest.raises(RuntimeError, match="seen has another dtype"):
        op(x, changes, biases, seen.long(), None, None)
    with pytest.raises(RuntimeError, match="allowed has another shape"):
        op(x, changes, biases, seen, None, changes)
    with pytest.raises(RuntimeError, match="drawn has another dtype"):
        op(x, changes, biases, seen, seen.long(), None)
    with pytest.raises(RuntimeError, match="logits must have its last axis contiguous"):
        op(x.t(), changes, biases, seen, None, None)


def test_nothing_leaves_the_device_but_what_was_drawn(target: Target) -> None:
    """One tensor of words holds tokens and log probabilities, and the tokens can be read there before it is fetched."""
    logits = target.randn(2, 100)
    sampled = sampling.sample(logits, batch_of([{"source": n, "temperature": 0.0, "num_top": 1} for n in range(2)]))
    assert sampled.words.shape == (2, 4) and sampled.words.dtype is torch.int32
    assert sampled.tokens.device == logits.device
    assert sampled.tokens.tolist() == sampled.fetch().tokens == logits.argmax(-1).tolist()
