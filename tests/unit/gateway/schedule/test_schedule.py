"""gateway/schedule: who is let in, and where it runs."""

from __future__ import annotations

import pytest

from gateway.schedule.admission import Admission
from gateway.schedule.placement import Placement, WorkerView
from tessera.errors import ResourceExhausted


def worker(in_flight: int = 0, *, ready: bool = True, reported: int = 0, most: int = 8) -> WorkerView:
    return WorkerView(ready, in_flight, reported, most)


def test_more_requests_than_allowed_are_refused_with_a_time_to_retry() -> None:
    """The request after the last one gets OVERLOADED and RetryInfo; a finished one makes room."""
    admission = Admission(1, 100)
    with admission.request(1):
        with pytest.raises(ResourceExhausted) as caught, admission.request(1):
            pass
        assert caught.value.reason == "OVERLOADED"
        assert caught.value.retry_after_s
    with admission.request(1):
        assert admission.requests == 1
    assert (admission.requests, admission.bytes) == (0, 0)


def test_media_bytes_are_bounded_over_all_requests() -> None:
    """A request whose media do not fit beside the others' is refused, and gives back what it held."""
    admission = Admission(10, 100)
    with admission.request(60):
        with pytest.raises(ResourceExhausted), admission.request(10) as ticket:
            ticket.add_bytes(50)
        assert admission.bytes == 60
    assert admission.bytes == 0


def test_a_request_alone_is_let_through() -> None:
    """One request above the byte budget runs when nothing else does: it would else wait for ever."""
    admission = Admission(10, 100)
    with admission.request(10) as ticket:
        ticket.add_bytes(500)
        assert admission.bytes == 510


def test_the_least_loaded_ready_worker_is_chosen() -> None:
    """Load is the larger of our own sequences and the reported ones, over what the worker runs at once."""
    placement = Placement()
    assert placement.choose([worker(3), worker(1), worker(2)]) == 1
    assert placement.choose([worker(3), worker(1, ready=False), worker(2)]) == 2
    assert placement.choose([worker(1), worker(0, reported=5)]) == 0
    assert placement.choose([worker(4, most=4), worker(4, most=16)]) == 1


def test_equals_take_turns() -> None:
    """Equally loaded workers are used one after the other."""
    placement = Placement()
    assert [placement.choose([worker(), worker(), worker()]) for _ in range(4)] == [0, 1, 2, 0]


def test_no_ready_worker_is_none() -> None:
    """Without a ready worker there is no choice."""
    assert Placement().choose([worker(ready=False)]) is None
    assert Placement().choose([]) is None
