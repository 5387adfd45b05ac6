"""Detokenizer: whole characters, and in the end exactly the full decode."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.stream.detokenizer import Detokenizer
from tests.unit.gateway.processor.prompt_fixtures import tokenizer

BYTE_TOKENS = {tokenizer().token_bytes(i)[0]: i for i in range(640) if len(tokenizer().token_bytes(i)) == 1}


def decoded(ids: list[int]) -> list[str]:
    detokenizer = Detokenizer(tokenizer())
    return [*(detokenizer.push(token_id) for token_id in ids), detokenizer.finish()]


@given(st.lists(st.integers(0, 639), max_size=30))
def test_pieces_join_to_the_full_decode(ids: list[int]) -> None:
    """For any ids, special and unknown ones among them, the pieces are the full decode."""
    assert "".join(decoded(ids)) == tokenizer().decode(ids)


@given(st.binary(max_size=24))
def test_any_bytes_give_what_the_full_decode_gives(raw: bytes) -> None:
    """For any bytes, valid UTF-8 or not, the pieces are the full decode."""
    ids = [BYTE_TOKENS[byte] for byte in raw]
    assert "".join(decoded(ids)) == tokenizer().decode(ids)


@given(st.lists(st.sampled_from("aé字😀\u0301\n"), max_size=12).map("".join))
def test_no_character_is_split(text: str) -> None:
    """A valid text never shows a replacement character, though its bytes come one by one."""
    pieces = decoded([BYTE_TOKENS[byte] for byte in text.encode()])
    assert "".join(pieces) == text
    assert "\ufffd" not in "".join(pieces)


def test_an_unfinished_character_waits_for_the_end() -> None:
    """The replacement character stands only where no more bytes can come."""
    start = [BYTE_TOKENS[byte] for byte in "😀".encode()[:3]]
    assert decoded(start) == ["", "", "", "\ufffd"]


def test_special_tokens_are_silent_and_do_not_break_a_character() -> None:
    """A special token between two halves of a character is left out, as in the full decode."""
    first, second = (BYTE_TOKENS[byte] for byte in "é".encode())
    assert decoded([first, tokenizer().special_tokens["<|im_end|>"], second]) == ["", "", "é", ""]


@pytest.mark.slow
def test_the_cost_of_a_token_does_not_grow() -> None:
    """Twenty times the tokens take about twenty times as long."""
    ids = [i % 400 + 20 for i in range(100_000)]
    start = time.perf_counter()
    decoded(ids[:5_000])
    middle = time.perf_counter()
    decoded(ids)
    assert time.perf_counter() - middle < 100 * (middle - start)
