"""What is read off the arrivals of tokens."""

import pytest

from benchmarks.timeline import Timeline, agreement


def test_one_request_decodes_from_its_first_token_on() -> None:
    """Four tokens in two seconds after the first: two a second, whatever the prefill took."""
    run = Timeline(((5.0, 5.5, 6.0, 6.5, 7.0),), (1,))
    assert run.first_token_s == 5.0
    assert run.decode_tokens_s == 2.0
    assert run.total_tokens_s == pytest.approx(5 / 7)


def test_decode_phase_is_where_all_requests_decode() -> None:
    """It begins with the last request's first token and ends with the first request's last."""
    run = Timeline(((1.0, 3.0, 4.0), (2.0, 3.0, 4.0, 9.0)), (1, 2))
    assert run.first_token_s == 2.0
    assert run.decode_tokens_s == 2.0  # in (2, 4]: two tokens of each
    assert run.wall_s == 9.0


def test_agreement_counts_equal_first_tokens_of_all_rounds() -> None:
    """Two rounds of two requests, one of which began differently."""
    run = Timeline(((1.0,), (1.0,)), (7, 8))
    other = Timeline(((1.0,), (1.0,)), (7, 9))
    assert agreement([run, run], [run, other]) == "first tokens equal: 3/4"
