"""Who is next: small jobs pass big ones, and nobody waits for ever."""

from gateway.media.line import Line


def test_small_jobs_go_before_big_ones() -> None:
    """A picture that came later than a clip starts first."""
    line: Line[str] = Line(processes=2)
    line.push("clip", big=True)
    line.push("picture", big=False)
    assert [line.pop(), line.pop(), line.pop()] == [("picture", False), ("clip", True), None]


def test_big_jobs_leave_one_process_free() -> None:
    """Of two processes one takes clips; a single one takes everything."""
    line: Line[str] = Line(processes=2)
    line.push("a", big=True)
    line.push("b", big=True)
    assert line.pop() == ("a", True)
    assert line.pop() is None
    line.push("picture", big=False)
    assert line.pop() == ("picture", False)
    line.done(big=True)
    assert line.pop() == ("b", True)
    alone: Line[str] = Line(processes=1)
    alone.push("a", big=True)
    assert alone.pop() == ("a", True)


def test_a_big_job_is_overtaken_only_so_often() -> None:
    """After `patience` small ones the big one starts."""
    line: Line[int] = Line(processes=2, patience=3)
    line.push(100, big=True)
    for number in range(6):
        line.push(number, big=False)
    assert [line.pop() for _ in range(5)] == [(0, False), (1, False), (2, False), (100, True), (3, False)]


def test_a_waiting_job_can_leave() -> None:
    """Removal says whether it was still waiting; draining empties both queues."""
    line: Line[str] = Line(processes=2)
    line.push("a", big=True)
    line.push("b", big=False)
    assert (line.remove("a"), line.remove("a"), len(line)) == (True, False, 1)
    line.push("c", big=True)
    assert (line.drain(), len(line)) == (["b", "c"], 0)
