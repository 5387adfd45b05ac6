"""ChoiceStream: tokens in, deltas out; one finish; nothing past a stop."""

from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.stream.choice import ChoiceStream, Finish
from gateway.stream.delta import Delta, DeltaBuffer, FinishReason, merge
from gateway.stream.stop_strings import StopStrings
from tessera.v1 import types_pb2 as pb
from tests.unit.gateway.processor.prompt_fixtures import tokenizer

EOS = tokenizer().special_tokens["<|im_end|>"]


@dataclass
class FakeTokenLogprob:
    """A token as the worker sends it: without text and bytes."""

    token_id: int
    logprob: float
    token: str = ""
    token_bytes: bytes = b""


@dataclass
class FakeLogprob:
    """Log probabilities of one token."""

    chosen: FakeTokenLogprob
    top: list[FakeTokenLogprob] = field(default_factory=list)


def encode(text: str) -> list[int]:
    return tokenizer().encode(text, allow_special=False)


def logprobs(ids: list[int]) -> list[FakeLogprob]:
    return [FakeLogprob(FakeTokenLogprob(i, -0.5), [FakeTokenLogprob(i, -0.5)]) for i in ids]


def stream(*stops: str) -> ChoiceStream:
    return ChoiceStream(tokenizer(), 0, StopStrings(stops))


def text_of(deltas: list[Delta]) -> str:
    return "".join(delta.text for delta in deltas)


def test_tokens_become_text_at_once() -> None:
    """Without a reason to wait, each token's text comes with it."""
    ids = encode("red circle")
    choice = stream()
    deltas = [choice.push([token_id]) for token_id in ids]
    assert [d.token_ids for d in deltas if d] == [(i,) for i in ids]
    assert text_of([d for d in deltas if d]) == "red circle"
    assert choice.num_tokens == len(ids)


def test_an_end_of_sequence_token_is_returned_but_not_shown() -> None:
    """The stop token is among the ids, its text is not; the last delta says what ended the choice."""
    ids = encode("red")
    delta = stream().push([*ids, EOS], finish=Finish(FinishReason.STOP, EOS))
    assert delta == Delta(0, "red", (*ids, EOS), (), FinishReason.STOP, EOS)


def test_a_stop_token_that_is_ordinary_text_is_not_shown_either() -> None:
    """A stop token id may be any token."""
    *ids, last = encode("red.")
    delta = stream().push([*ids, last], finish=Finish(FinishReason.STOP, last))
    assert delta is not None
    assert (delta.text, delta.matched_stop) == ("red", last)


def test_a_choice_at_its_limit_shows_what_it_held_back() -> None:
    """With LENGTH, a beginning of a stop string and an unfinished character are shown."""
    choice = stream("circles")
    first = choice.push(encode("a circle"))
    byte = encode("é")[0]
    last = choice.push([byte], finish=Finish(FinishReason.LENGTH))
    assert first is not None
    assert last is not None
    assert first.text == "a "
    assert last.text == "circle\ufffd"
    assert (last.finish_reason, last.matched_stop) == (FinishReason.LENGTH, None)


def test_a_finish_may_come_without_tokens() -> None:
    """What was held back comes with it."""
    choice = stream("circles")
    choice.push(encode("a circle"))
    last = choice.push([], finish=Finish(FinishReason.LENGTH))
    assert last == Delta(0, "circle", finish_reason=FinishReason.LENGTH)


def test_nothing_past_a_stop_string_is_returned_or_counted() -> None:
    """The tokens up to the one that completed it count; later ones of the same step and of later steps do not."""
    ids = encode("red. blue")
    dot = next(i for i in range(len(ids)) if "." in tokenizer().decode(ids[: i + 1]))
    choice = stream(".")
    delta = choice.push(ids, logprobs(ids))
    assert delta is not None
    assert (delta.text, delta.token_ids) == ("red", tuple(ids[: dot + 1]))
    assert (delta.finish_reason, delta.matched_stop) == (FinishReason.STOP, ".")
    assert len(delta.logprobs) == choice.num_tokens == dot + 1
    assert choice.ended_early
    assert choice.push(ids, finish=Finish(FinishReason.LENGTH)) is None
    assert choice.num_tokens == dot + 1


def test_a_stop_string_wins_over_the_limit() -> None:
    """A stop string complete with the last token is what ended the choice; the worker need not be told."""
    ids = encode("red.")
    choice = stream(".")
    delta = choice.push(ids, finish=Finish(FinishReason.LENGTH))
    assert delta is not None
    assert (delta.text, delta.matched_stop, choice.ended_early) == ("red", ".", False)


def test_a_stop_string_is_not_looked_for_in_a_stop_token() -> None:
    """The text of a stop token is not shown, so it completes nothing."""
    *ids, last = encode("red.")
    delta = stream(".").push([*ids, last], finish=Finish(FinishReason.STOP, last))
    assert delta is not None
    assert delta.matched_stop == last


def test_logprobs_are_named_with_text_and_bytes() -> None:
    """Each entry has its token's text and raw bytes, invalid UTF-8 as U+FFFD, and stays with its token."""
    ids = encode("é")
    assert len(ids) == 2
    entries = logprobs([*ids, EOS])
    delta = stream().push([*ids, EOS], entries, Finish(FinishReason.STOP, EOS))
    assert delta is not None
    assert delta.logprobs == tuple(entries)
    assert [entry.chosen.token_bytes for entry in entries] == ["é".encode()[:1], "é".encode()[1:], b"<|im_end|>"]
    assert [entry.top[0].token for entry in entries] == ["\ufffd", "\ufffd", "<|im_end|>"]


def test_protobuf_logprobs_are_named_in_place() -> None:
    """The worker's own messages can be passed through."""
    token_id = encode("a")[0]
    entry = pb.Logprob(chosen=pb.TokenLogprob(token_id=token_id, logprob=-1.0))
    entry.top.add(token_id=EOS, logprob=-2.0)
    stream().push([token_id], [entry])
    assert (entry.chosen.token, entry.chosen.token_bytes) == ("a", b"a")
    assert entry.top[0].token == "<|im_end|>"


def test_nothing_gives_nothing() -> None:
    """A step without tokens for a choice is no news."""
    assert stream().push([]) is None


@settings(max_examples=60)
@given(st.lists(st.integers(0, 639), max_size=30), st.lists(st.integers(1, 6), max_size=30), st.booleans())
def test_steps_of_any_size_give_the_same_choice(ids: list[int], sizes: list[int], with_stop: bool) -> None:
    """However the worker groups tokens into steps, text, ids and end are the same."""
    stops = ("e", "\ufffd\ufffd") if with_stop else ()
    whole = stream(*stops).push(ids, logprobs(ids), Finish(FinishReason.LENGTH))
    choice, buffer, rest = stream(*stops), DeltaBuffer(), list(ids)
    for size in sizes:
        step, rest = rest[:size], rest[size:]
        if delta := choice.push(step, logprobs(step)):
            buffer.add(delta)
    if delta := choice.push(rest, logprobs(rest), Finish(FinishReason.LENGTH)):
        buffer.add(delta)
    (merged,) = buffer.take()
    assert merged == whole
    assert stops or merged.text == tokenizer().decode(ids)


def test_merged_deltas_say_the_same() -> None:
    """Merging keeps order, and the end of the last one."""
    first = Delta(1, "a", (1,), ("x",))  # type: ignore[arg-type]
    last = Delta(1, "b", (2, 3), ("y", "z"), FinishReason.STOP, "s")  # type: ignore[arg-type]
    assert merge([first, last]) == Delta(1, "ab", (1, 2, 3), ("x", "y", "z"), FinishReason.STOP, "s")  # type: ignore[arg-type]
    assert merge([first]) is first


def test_a_buffer_gives_one_delta_a_choice_and_knows_its_size() -> None:
    """Deltas coalesce by choice, in order of index; taking them empties the buffer."""
    buffer = DeltaBuffer()
    assert not buffer
    for delta in (Delta(1, "b"), Delta(0, "é" * 10), Delta(1, "c")):
        buffer.add(delta)
    assert buffer
    assert buffer.size_bytes >= 22
    assert buffer.take() == [Delta(0, "é" * 10), Delta(1, "bc")]
    assert (buffer.size_bytes, buffer.take()) == (0, [])
