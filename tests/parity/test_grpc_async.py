"""Workers that launch a step before the tokens of the one before are known, as on a GPU: the same answers."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.e2e.harness import Flags, Pair, Pairs
from tests.parity.cases import chat_request
from tests.parity.oracle import Oracle
from tests.parity.test_grpc_pressure import few_blocks, run_all
from tests.parity.test_grpc_sampling import CASE, TEXT, tokens

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]
OracleOf, PairOf = Callable[[str], Oracle], Callable[..., Pair]
ASYNC = ("--async-scheduling", "on")


def test_sixteen_at_once(oracle: OracleOf, pair_of: PairOf) -> None:
    """Sixteen requests that run together are answered as each alone."""
    run_all(pair_of("5.x", worker=ASYNC), oracle("5.x"))


def test_few_blocks_and_small_chunks(oracle: OracleOf, pairs: Pairs, tiny: Callable[[str], Path]) -> None:
    """Preemptions, and chunks that cut inside items, find tokens that nobody has fetched yet, and change nothing."""
    flags = few_blocks(oracle("5.x"), tiny("5.x"))
    small = (*flags.worker, "--max-batched-tokens", "32", "--max-sequences", "8", *ASYNC)
    with pairs.fresh(Flags(flags.model, worker=small)) as pair:
        run_all(pair, oracle("5.x"))
        pair.assert_idle()


def test_draws_are_those_of_a_worker_that_takes_steps_in_turn(oracle: OracleOf, pair_of: PairOf) -> None:
    """Seeds, choices, penalties, biases, stop tokens and log probabilities give the same tokens, all at once."""
    stop = oracle("5.x").answer(CASE).generated[5]
    asked = [
        chat_request(CASE, temperature=1.0, n=4, seed=7),
        chat_request(TEXT, temperature=0.8, seed=3, repetition_penalty=1.3, frequency_penalty=0.4, max_tokens=60),
        chat_request(CASE, presence_penalty=-1.0, logit_bias={77: 2.0}, max_tokens=60),
        chat_request(CASE, stop_token_ids=[stop]),
        chat_request(TEXT, temperature=0.7, top_p=0.9, top_k=20, presence_penalty=1.5, seed=1, n=2),
    ]
    answers = []
    for flags in ((), ASYNC):
        pair = pair_of("5.x", worker=flags)
        with ThreadPoolExecutor(len(asked)) as threads:
            answers.append(list(threads.map(pair.stub.Chat, asked)))
    for in_turn, ahead in zip(*answers, strict=True):
        assert tokens(ahead) == tokens(in_turn)
        for one, other in zip(ahead.choices, in_turn.choices, strict=True):
            assert (one.text, one.finish_reason, len(one.logprobs)) == (
                other.text, other.finish_reason, len(other.logprobs),
            )  # fmt: skip
