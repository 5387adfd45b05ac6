"""The sampler: each parameter does what it says, draws are functions of their keys, logprobs are of raw logits."""

import math

import pytest
import torch

from tessera_kernels.sampling import gumbel
from tests.unit.worker.engine.fakes import make_item, place
from worker.engine.noise import row_key
from worker.engine.sampler import Sampler
from worker.engine.sampling_params import SamplingParams
from worker.engine.sequence import Sequence, SequenceGroup

LOGITS = torch.tensor([[1.0, 3.0, 2.0, -1.0, 0.0, 2.5]])


def sequence(prompt=(0,), generated=(), choice=0, items=(), **params):
    group = SequenceGroup("r", tuple(prompt), SamplingParams(max_tokens=9, **params), tuple(items), choices=(choice,))
    return Sequence(group, choice, [*prompt, *generated], 0)


def draw(logits=LOGITS, **fields):
    return Sampler().sample(logits, [(0, sequence(**fields))])[0].token_id


def draws(count, logits=LOGITS, **params):
    """Return many draws of one row, at different positions."""
    rows = [(0, sequence(prompt=(0,) * (n + 1), temperature=1.0, **params)) for n in range(count)]
    return [one.token_id for one in Sampler().sample(logits, rows)]


def keys(words):
    return torch.tensor(list(words), dtype=torch.int32)


def test_greedy_takes_the_lowest_id_of_equals():
    """Equal logits are decided for the lower id, on the fast path and beside random rows."""
    logits = torch.tensor([[0.0, 5.0, 5.0, 5.0]])
    rows = [(0, sequence()), (0, sequence(temperature=1.0)), (0, sequence(logprobs=True))]
    assert draw(logits) == 1
    assert [one.token_id for one in Sampler().sample(logits, rows)][::2] == [1, 1]


def test_bias_comes_before_everything():
    """A bias moves the argmax, and is not part of the log probabilities."""
    assert draw(logit_bias=((3, 100.0),)) == 3
    rows = [(0, sequence(logit_bias=((3, 100.0),), logprobs=True, top_logprobs=2))]
    logprob = Sampler().sample(LOGITS, rows)[0].logprob
    raw = LOGITS.log_softmax(-1)[0]
    assert logprob.chosen.token_id == 3
    assert logprob.chosen.logprob == pytest.approx(raw[3].item())
    assert [token for token, _ in logprob.top] == [1, 5]
    assert [value for _, value in logprob.top] == pytest.approx([raw[1].item(), raw[5].item()])


def test_presence_and_frequency_look_at_generated_tokens_alone():
    """Presence counts once, frequency each time; the prompt does not count."""
    assert draw(prompt=(1, 1, 1), presence_penalty=2.0, frequency_penalty=2.0) == 1
    assert draw(generated=(1,), presence_penalty=1.0) == 5
    assert draw(generated=(1, 1, 5), presence_penalty=0.4) == 1
    assert draw(generated=(1, 1, 5), frequency_penalty=0.4) == 1
    assert draw(generated=(1, 1, 1, 5), frequency_penalty=0.3) == 5


def test_repetition_looks_at_prompt_and_generated_but_not_at_placeholders():
    """Positive logits are divided, negative ones multiplied; ids inside an item's range are no text."""
    assert draw(prompt=(1,), repetition_penalty=2.0) == 5
    assert draw(generated=(1, 5), repetition_penalty=2.0) == 2
    placed = place(make_item(1, 2), (0, 2))
    assert draw(prompt=(1, 1), items=[placed], repetition_penalty=2.0) == 1
    assert draw(prompt=(1, 1, 1), items=[placed], repetition_penalty=2.0) == 5
    negative = torch.tensor([[-1.0, -1.5]])
    assert draw(negative, prompt=(0,), repetition_penalty=2.0) == 1


def test_counts_grow_with_the_sequence():
    """Tokens that come between two steps are counted once each, past the first sixty-four too."""
    one = sequence(prompt=(1,), frequency_penalty=0.01)
    logits = torch.zeros(1, 200)
    for _ in range(150):
        one.token_ids.append(Sampler().sample(logits, [(0, one)])[0].token_id)
    assert one.token_ids[1:] == list(range(150))
    assert one.logit_changes.seen["value"].sum() == 149


@pytest.mark.parametrize(
    ("params", "kept"),
    [
        ({"top_k": 2}, {1, 5}),
        ({"top_k": 1}, {1}),
        ({"top_p": 0.5}, {1, 5}),
        ({"top_p": 1e-6}, {1}),
        ({"min_p": 0.3}, {1, 2, 5}),
        ({"min_p": 1.0}, {1}),
        ({"top_k": 3, "top_p": 0.8}, {1, 5}),
        ({"top_k": 100, "top_p": 1.0}, {0, 1, 2, 3, 4, 5}),
        ({"top_p": 0.999, "min_p": 0.3}, {1, 2, 5}),
    ],
)
def test_filters_keep_what_they_say(params, kept):
    """Only the tokens inside top-k, top-p and min-p are drawn, and all of them are."""
    assert set(draws(600, **params)) == kept


def test_top_p_counts_what_top_k_has_left():
    """The nucleus is taken of the probabilities renormalised after top-k, as transformers does."""
    probabilities = torch.tensor([[0.4, 0.3, 0.2, 0.1]])
    # Of 0.4 and 0.3 renormalised the first is 0.571 of the mass: below 0.6, so both stay; 0.55 keeps one.
    assert set(draws(300, probabilities.log(), top_k=2, top_p=0.6)) == {0, 1}
    assert set(draws(300, probabilities.log(), top_k=2, top_p=0.55)) == {0}


def test_a_wide_nucleus_sorts_all():
    """Where the thousand likeliest do not make up top-p, the whole vocabulary is sorted for that row."""
    flat = torch.linspace(0.0, 0.001, 4000)[None]
    kept = draws(60, flat, top_p=0.5)
    assert 1990 <= min(kept) < 2500
    assert min(draws(60, flat, top_k=2000)) >= 2000


def test_draws_follow_the_probabilities():
    """Frequencies of many draws agree with the softmax at that temperature."""
    rows = [(0, sequence(temperature=0.7, seed=n)) for n in range(1200)]
    found = torch.tensor([one.token_id for one in Sampler().sample(LOGITS, rows)]).bincount(minlength=6) / 1200
    assert torch.allclose(found, (LOGITS[0] / 0.7).softmax(-1), atol=0.045)


def test_a_draw_is_a_function_of_seed_choice_and_position():
    """Neighbours, their parameters and the row's place do not change a draw; seed, choice and position do."""
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(5, 2000, generator=generator)
    one = sequence(temperature=1.0, seed=3, top_p=0.9)
    alone = Sampler().sample(logits, [(2, one)])[0].token_id
    others = [
        (0, sequence(temperature=2.0, top_k=5)),
        (2, one),
        (4, sequence(top_p=0.5, temperature=1.0)),
        (1, sequence(frequency_penalty=1.0, generated=(4,))),
    ]
    assert Sampler().sample(logits, others)[1].token_id == alone
    flat = torch.zeros(1, 100_000)
    base = {"temperature": 1.0, "seed": 3}
    different = [
        draw(flat, **base),
        draw(flat, temperature=1.0, seed=4),
        draw(flat, choice=1, **base),
        draw(flat, generated=(7,), **base),
        draw(flat, temperature=1.0, seed=3 + (1 << 32)),
    ]
    assert len(set(different)) == 5
    assert draw(flat, **base) == different[0]


def test_a_tiny_temperature_is_greedy():
    """Dividing by almost nothing overflows to minus infinity alone, never to NaN."""
    assert {draw(temperature=1e-30, seed=n) for n in range(20)} == {1}


def test_noise_is_gumbel_and_rows_are_independent():
    """The noise has the mean and variance of a standard Gumbel variable, is finite, and rows do not correlate."""
    noise = gumbel(keys(row_key(1, 0, n) for n in range(4)), torch.arange(200_000, dtype=torch.int32))
    assert torch.isfinite(noise).all()
    assert noise.mean().item() == pytest.approx(0.5772, abs=0.01)
    assert noise.var().item() == pytest.approx(math.pi**2 / 6, abs=0.02)
    correlation = torch.corrcoef(noise)
    assert (correlation - torch.eye(4)).abs().max() < 0.01
    assert torch.corrcoef(torch.stack([noise[0, :-1], noise[0, 1:]]))[0, 1].abs() < 0.01


def test_noise_is_pinned():
    """The numbers are part of the contract between workers of different versions: they must not drift."""
    found = gumbel(keys([row_key(7, 1, 12)]), torch.arange(4, dtype=torch.int32))[0].tolist()
    assert found == pytest.approx(PINNED, abs=1e-5)


PINNED = [-0.3005451, 1.0182558, 2.4113481, 1.3724263]


def test_no_rows():
    """A step in which nobody reaches its last token draws nothing."""
    assert Sampler().sample(torch.zeros(0, 6), []) == []
