"""The engine's sampler on CUDA: the same sequences as on a CPU, by our ops, without waiting in between.

Next: worker/engine/sampler.py
"""

from itertools import chain
from typing import Any

import pytest
import torch

from tessera_kernels import cuda
from tests.cuda_ops import Target
from tests.dispatch import Calls
from worker.engine.sampler import Draw, Sampler, batch_of
from worker.engine.sampling_params import SamplingParams
from worker.engine.sequence import Sequence, SequenceGroup

VOCAB_SIZE = 4500
PARAMS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.7, "top_p": 0.8, "top_k": 20, "presence_penalty": 1.5},
    {"temperature": 1.2, "repetition_penalty": 1.3, "logit_bias": ((3, 9.0), (4400, 8.0))},
    {"frequency_penalty": 0.9, "logprobs": True, "top_logprobs": 4},
    {"temperature": 1.0, "min_p": 0.02, "logprobs": True},
    {"temperature": 0.9, "top_p": 0.95},
]


# Of records to the device and words back, and views of them.
MOVES = {
    "_pin_memory", "_to_copy", "copy_", "detach", "empty", "is_pinned", "lift_fresh", "split_with_sizes",
    "to.dtype_layout", "view",
}  # fmt: skip


def sequences() -> list[Sequence]:
    """Sequences of each kind, and one that forks: two choices of one row."""
    made = []
    for number, params in enumerate([*PARAMS, PARAMS[1]]):
        prompt = tuple(range(number, 900, 7))
        group = SequenceGroup(f"r{number}", prompt, SamplingParams(max_tokens=99, seed=number, **params))
        made.append(Sequence(group, number // len(PARAMS), list(prompt), 0))
    return made


def generate(device: torch.device, steps: int) -> list[list[Draw]]:
    """Run a model whose logits depend on the step alone."""
    made = sequences()
    generator = torch.Generator().manual_seed(2)
    results = []
    for _ in range(steps):
        logits = (torch.randn(len(PARAMS), VOCAB_SIZE, generator=generator) * 2).to(device)
        draws = Sampler().sample(logits, [(n % len(PARAMS), sequence) for n, sequence in enumerate(made)])
        for sequence, draw in zip(made, draws, strict=True):
            sequence.token_ids.append(draw.token_id)
        results.append(draws)
    return results


def test_sequences_are_those_of_the_cpu(target: Target) -> None:
    """A sequence that moves between a worker with a GPU and one without goes on as it would have."""
    ours = generate(target.device, 8)
    with cuda.using(None):
        theirs = generate(torch.device("cpu"), 8)
    assert [[draw.token_id for draw in step] for step in ours] == [[draw.token_id for draw in step] for step in theirs]
    for mine, other in zip(chain(*ours), chain(*theirs), strict=True):
        assert (mine.logprob is None) == (other.logprob is None)
        if mine.logprob and other.logprob:
            assert [token for token, _ in mine.logprob.top] == [token for token, _ in other.logprob.top]
            values, expected = ([one.chosen.logprob, *dict(one.top).values()] for one in (mine.logprob, other.logprob))
            assert values == pytest.approx(expected, abs=1e-5)


def test_a_step_is_two_ops_and_none_that_waits(target: Target) -> None:
    """Bias and penalties are one op, all else another; what else is dispatched copies records there and words back."""
    rows = [(n % len(PARAMS), sequence) for n, sequence in enumerate(sequences())]
    logits = target.randn(len(PARAMS), VOCAB_SIZE)
    batch_of(rows)  # parameters are looked at once
    with Calls() as calls:
        sampled = Sampler().start(logits, rows)
    assert calls.names["sample"] == calls.names["penalised_logits"] == 1
    assert set(calls.names) - MOVES == {"sample", "penalised_logits"}
    assert sampled.words.shape == (len(rows), 2 + 2 * 4)


def test_greedy_sequences_are_one_op(target: Target) -> None:
    """Where all rows take their likeliest token, nothing else is asked of the device."""
    rows = [(n, sequence) for n, sequence in enumerate(sequences()[:1] * 3)]
    logits = target.randn(3, VOCAB_SIZE)
    with Calls() as calls:
        draws = Sampler().sample(logits, rows)
    assert [draw.token_id for draw in draws] == logits.argmax(-1).tolist()
    assert calls.names["sample"] == 1 and calls.names["penalised_logits"] == 0
