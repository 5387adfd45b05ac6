"""How tokens are drawn: seeds, choices, stops, penalties and limits, over gRPC."""

import threading
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest

from tessera.v1 import inference_service_pb2 as pb
from tessera.v1 import types_pb2 as types
from tessera.v1 import worker_service_pb2 as worker_pb
from tessera.v1.worker_service_pb2_grpc import WorkerServiceStub
from tests.e2e.harness import Pair
from tests.parity.cases import SMALL, Case, chat_request, greedy, user
from tests.parity.compare import LOGPROB_TOLERANCE, assert_continued
from tests.parity.oracle import MARGIN, Oracle

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]
OracleOf, PairOf = Callable[[str], Oracle], Callable[..., Pair]
CASE = Case("sampled", (user(SMALL, "Describe the image."),))
TEXT = Case("sampled_text", (user("Describe the image."),))


def tokens(response: pb.ChatResponse) -> list[tuple[int, ...]]:
    """The token ids of each choice."""
    assert [choice.index for choice in response.choices] == list(range(len(response.choices)))
    return [tuple(choice.token_ids) for choice in response.choices]


def drawn(pair: Pair, case: Case = CASE, **sampling: object) -> pb.ChatResponse:
    """An answer that is drawn at temperature 1."""
    return pair.stub.Chat(chat_request(case, temperature=1.0, **sampling))


def test_four_choices_differ_and_repeat(pair_of: PairOf) -> None:
    """n = 4 gives four different samples; the same seed gives them again, another seed others."""
    pair = pair_of("5.x")
    four = tokens(drawn(pair, n=4, seed=7))
    assert len(set(four)) == 4
    assert tokens(drawn(pair, n=4, seed=7)) == four
    assert not set(tokens(drawn(pair, n=4, seed=8))) & set(four)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_a_choice_does_not_depend_on_how_many_there_are(n: int, pair_of: PairOf) -> None:
    """The first choices of four are those of a request for fewer: each is a function of seed and index alone."""
    pair = pair_of("5.x")
    assert tokens(drawn(pair, n=n, seed=7)) == tokens(drawn(pair, n=4, seed=7))[:n]


def test_a_choice_alone_is_itself(pair_of: PairOf) -> None:
    """A worker that is asked for one choice of four draws the very tokens that it draws among the four."""
    pair = pair_of("5.x")
    response = drawn(pair, TEXT, n=4, seed=11)
    prompt = pair.stub.Prepare(pb.PrepareRequest(chat=chat_request(TEXT))).token_ids
    for index, expected in enumerate(tokens(response)):
        assert execute(pair, prompt, choices=[index])[index] == expected


def test_emitted_tokens_do_not_change_the_rest(pair_of: PairOf) -> None:
    """A choice that goes on after tokens it has emitted elsewhere draws the same rest: positions are absolute."""
    pair = pair_of("5.x")
    prompt = pair.stub.Prepare(pb.PrepareRequest(chat=chat_request(TEXT))).token_ids
    for index, expected in enumerate(tokens(drawn(pair, TEXT, n=2, seed=11))):
        emitted = [types.TokenIds(), types.TokenIds()]
        emitted[index].ids.extend(expected[:9])
        assert execute(pair, prompt, choices=[index], emitted=emitted)[index] == expected[9:]


def execute(
    pair: Pair, prompt: Sequence[int], *, choices: Sequence[int], emitted: Sequence[types.TokenIds] = ()
) -> dict[int, tuple[int, ...]]:
    """Run choices of a request on the worker itself, as a gateway would; returns the new tokens of each."""
    sampling = types.SamplingParams(
        max_tokens=24, temperature=1.0, top_p=1.0, top_k=0, min_p=0.0, presence_penalty=0.0, frequency_penalty=0.0,
        repetition_penalty=1.0, seed=11, n=len(emitted) or 4,
    )  # fmt: skip
    submit = worker_pb.Submit(
        request_id="alone", prompt_token_ids=prompt, sampling=sampling, emitted=emitted, choices=choices
    )
    got: dict[int, tuple[int, ...]] = dict.fromkeys(choices, ())
    open_choices, done = set(choices), threading.Event()

    def commands() -> Iterator[worker_pb.ExecuteRequest]:
        yield worker_pb.ExecuteRequest(hello=worker_pb.Hello(gateway_id="test"))
        yield worker_pb.ExecuteRequest(submit=submit)
        done.wait()

    call = WorkerServiceStub(pair.workers[0].channel).Execute(commands(), timeout=30)
    try:
        while open_choices:
            for update in next(call).updates:
                assert not update.HasField("error"), update.error
                got[update.choice] += tuple(update.token_ids)
                if update.finish_reason:
                    open_choices.discard(update.choice)
    finally:
        done.set()
        call.cancel()
    return got


def test_an_unset_seed_is_drawn_and_echoed(pair_of: PairOf) -> None:
    """Without a seed two answers differ, and the echoed seed gives an answer again."""
    pair = pair_of("5.x")
    first, second = drawn(pair), drawn(pair)
    assert first.seed != second.seed
    assert tokens(first) != tokens(second)
    assert tokens(drawn(pair, seed=first.seed)) == tokens(first)


def test_samples_follow_the_distribution(oracle: OracleOf, pair_of: PairOf) -> None:
    """The first tokens of many choices come as often as transformers' probabilities say."""
    expected = np.exp(oracle("5.x").answer(CASE).logprobs[0])
    pair = pair_of("5.x")
    counts = np.zeros(len(expected))
    for seed in range(6):
        response = drawn(pair, n=64, seed=seed, max_tokens=1)
        for choice in response.choices:
            counts[choice.token_ids[0]] += 1
    total = counts.sum()
    likely = np.argsort(expected)[::-1][:8]
    for token in likely:
        sigma = np.sqrt(total * expected[token] * (1 - expected[token]))
        assert abs(counts[token] - total * expected[token]) < 5 * sigma + 1, token


def test_top_k_of_one_and_tiny_top_p_are_greedy(oracle: OracleOf, pair_of: PairOf) -> None:
    """With only the likeliest token left, sampling is the greedy continuation."""
    expected = oracle("5.x").answer(CASE)
    for only in ({"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}):
        assert_continued(expected, drawn(pair_of("5.x"), seed=3, **only).choices[0])


def test_zero_means_zero(oracle: OracleOf, pair_of: PairOf) -> None:
    """temperature 0 is greedy, whatever the other filters say."""
    response = pair_of("5.x").stub.Chat(chat_request(CASE, temperature=0.0, top_k=5, top_p=0.5))
    assert_continued(oracle("5.x").answer(CASE), response.choices[0])


def test_logit_bias_comes_first(oracle: OracleOf, pair_of: PairOf) -> None:
    """A bias changes what is drawn, and logprobs stay those of the raw logits."""
    expected = oracle("5.x").answer(CASE)
    banned = expected.generated[0]
    response = pair_of("5.x").stub.Chat(chat_request(CASE, max_tokens=1, logit_bias={banned: -100.0}))
    choice = response.choices[0]
    assert choice.token_ids[0] == int(np.argsort(expected.logprobs[0])[-2])
    assert choice.logprobs[0].top[0].token_id == banned
    assert abs(choice.logprobs[0].top[0].logprob - expected.logprobs[0][banned]) < LOGPROB_TOLERANCE
    forced = pair_of("5.x").stub.Chat(chat_request(CASE, logit_bias={77: 100.0})).choices[0]
    assert set(forced.token_ids) == {77}


def test_penalties_follow_the_contract(oracle: OracleOf, pair_of: PairOf) -> None:
    """A presence penalty moves greedy tokens as arithmetic on transformers' logits says, step by step."""
    expected = oracle("5.x").answer(CASE)
    response = pair_of("5.x").stub.Chat(chat_request(CASE, presence_penalty=2.0)).choices[0]
    seen: set[int] = set()
    for step, token in enumerate(response.token_ids):
        row = expected.logprobs[step].copy()
        row[list(seen)] -= 2.0
        top = np.sort(row)[-2:]
        if top[1] - top[0] < MARGIN:
            return
        assert token == int(row.argmax())
        if token != expected.generated[step]:
            return  # from here on the oracle's own history is another one
        seen.add(token)


def test_repetition_penalty_leaves_placeholders_out(oracle: OracleOf, pair_of: PairOf) -> None:
    """Repetition counts prompt and generated tokens; an image's placeholders are no words of the prompt."""
    expected, penalty = oracle("5.x").answer(CASE), 1.7
    pad = oracle("5.x").model.config.image_token_id
    row = expected.logits[0].copy()
    seen = sorted(set(expected.token_ids) - {pad})
    row[seen] = np.where(row[seen] > 0, row[seen] / penalty, row[seen] * penalty)
    request = chat_request(CASE, max_tokens=1, repetition_penalty=penalty, logit_bias={})
    assert pair_of("5.x").stub.Chat(request).choices[0].token_ids[0] == int(row.argmax())
    # Raised to just above the best other token, the placeholder's own id wins only if it is not penalised.
    bias = float(np.delete(row, pad).max() - expected.logits[0][pad]) + 0.01
    raised = chat_request(CASE, max_tokens=1, repetition_penalty=penalty, logit_bias={pad: bias})
    assert pair_of("5.x").stub.Chat(raised).choices[0].token_ids[0] == pad


def test_stop_tokens_end_and_are_returned(oracle: OracleOf, pair_of: PairOf) -> None:
    """A stop token ends the choice, is the last id, and is not in the text."""
    expected = oracle("5.x").answer(CASE)
    stop = expected.generated[5]
    first = expected.generated.index(stop)
    choice = pair_of("5.x").stub.Chat(chat_request(CASE, stop_token_ids=[stop])).choices[0]
    assert list(choice.token_ids) == list(expected.generated[: first + 1])
    assert choice.finish_reason == types.FINISH_REASON_STOP
    assert choice.matched_stop_token_id == stop
    assert choice.text == oracle("5.x").tokenizer.decode(expected.generated[:first], skip_special_tokens=True)


def test_stop_strings_cut_text_tokens_and_usage(oracle: OracleOf, pair_of: PairOf) -> None:
    """A stop string ends the choice in Chat and Generate; it and what came after it is neither returned nor counted."""
    pair = pair_of("5.x")
    whole = pair.stub.Chat(chat_request(CASE, max_tokens=24)).choices[0].text
    assert len(whole) > 8
    stop = whole[6:9]
    response = pair.stub.Chat(chat_request(CASE, stop=[stop]))
    choice = response.choices[0]
    assert choice.text == whole[: whole.index(stop)]
    assert (choice.finish_reason, choice.matched_stop_string) == (types.FINISH_REASON_STOP, stop)
    assert response.usage.completion_tokens == len(choice.token_ids) < 24
    prepared = pair.stub.Prepare(pb.PrepareRequest(chat=chat_request(CASE)))
    raw = pb.GenerateRequest(
        token_ids=types.TokenIds(ids=prepared.token_ids), items=prepared.items, sampling=greedy(stop=[stop])
    )
    assert pair.stub.Generate(raw).choices[0].text == choice.text
    streamed = [delta for message in pair.stub.StreamChat(chat_request(CASE, stop=[stop])) for delta in message.choices]
    assert "".join(delta.text for delta in streamed) == choice.text


def test_one_finish_reason_each(pair_of: PairOf) -> None:
    """Each choice of a stream ends with exactly one finish reason, and says nothing after it."""
    request = chat_request(CASE, temperature=1.0, n=5, seed=1, max_tokens=12)
    ended: set[int] = set()
    for message in pair_of("5.x").stub.StreamChat(request):
        for delta in message.choices:
            assert delta.index not in ended
            if delta.finish_reason:
                assert delta.finish_reason == types.FINISH_REASON_LENGTH
                ended.add(delta.index)
    assert ended == set(range(5))


def test_max_tokens_unset_runs_to_the_context_limit(oracle: OracleOf, pair_of: PairOf) -> None:
    """Without max_tokens an answer ends where the context does, with LENGTH."""
    pair = pair_of("5.x", worker=("--max-model-len", "128"))
    request = chat_request(CASE)
    request.sampling.ClearField("max_tokens")
    response = pair.stub.Chat(request)
    assert response.usage.total_tokens == 128 == pair.model().max_model_len
    assert response.choices[0].finish_reason == types.FINISH_REASON_LENGTH
    assert_continued(oracle("5.x").answer(CASE), response.choices[0])


def test_all_choices_run_from_one_prefill(pair_of: PairOf) -> None:
    """The prompt of many choices is counted once."""
    one, many = drawn(pair_of("5.x"), n=1).usage, drawn(pair_of("5.x"), n=8).usage
    assert many.prompt_tokens == one.prompt_tokens
    assert many.completion_tokens == 8 * one.completion_tokens
