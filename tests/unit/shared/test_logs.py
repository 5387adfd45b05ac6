"""Tests of protos/tessera/logs.py, in a process of their own: the set-up is global."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

PROTOS = Path(__file__).parents[3] / "protos"
PROGRAM = """
import logging, sys
sys.path.insert(0, {protos!r})
import structlog
from tessera.logs import configure_logs
configure_logs("gateway", {level!r})
log = structlog.get_logger("test")
with structlog.contextvars.bound_contextvars(request_id="r1"):
    log.debug("hidden")
    log.info("request_done", tokens=3, text="two\\nlines \\x1b[31m")
    logging.getLogger("grpc").warning("from %s", "grpc")
    def fail(prompt):
        raise ValueError("inside")
    try:
        fail("what the " + "user said")
    except ValueError as error:
        log.error("unexpected_error", exc_info=error)
"""


def lines(level: str) -> list[dict]:
    """What a process writes to stderr, as JSON lines."""
    program = PROGRAM.format(protos=str(PROTOS), level=level)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == ""
    return [json.loads(line) for line in done.stderr.splitlines()]


@pytest.mark.slow
def test_one_json_line_an_event() -> None:
    """Every event is one line of JSON with level, time, service and the bound request id."""
    events = lines("info")
    assert [event["event"] for event in events] == ["request_done", "from grpc", "unexpected_error"]
    assert {event["service"] for event in events} == {"gateway"}
    assert {event["request_id"] for event in events} == {"r1"}
    assert [event["level"] for event in events] == ["info", "warning", "error"]
    assert all("timestamp" in event for event in events)


@pytest.mark.slow
def test_text_cannot_forge_a_line() -> None:
    """Line breaks and control characters of a value stay inside its JSON string."""
    assert lines("info")[0]["text"] == "two\nlines \x1b[31m"


@pytest.mark.slow
def test_a_traceback_is_a_field() -> None:
    """An exception is logged with its traceback on the same line."""
    assert "inside" in json.dumps(lines("error")[-1]["exception"])


@pytest.mark.slow
def test_a_traceback_shows_no_values() -> None:
    """Local variables hold prompts, pictures and tokens: a traceback leaves them out."""
    assert "user said" not in json.dumps(lines("error")[-1])
