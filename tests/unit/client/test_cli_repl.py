"""`tessera chat` with several turns on a terminal."""

import io
import sys
from pathlib import Path

import pytest

from tessera.errors import InvalidArgument
from tessera_client.cli import main
from tessera_client.cli.console import Console
from tests.fakes.inference import FakeInference, FakeServer


class Terminal(io.StringIO):
    """Standard input that is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def talk(server: FakeServer, monkeypatch: pytest.MonkeyPatch):
    """Types lines into `tessera chat ARGS`; returns the code, stdout and stderr."""

    def talk(*lines: str | type[BaseException], args: tuple[str, ...] = ()) -> tuple[int, str, str]:
        typed = iter(lines)

        def type_line(prompt: str) -> str:
            line = next(typed, EOFError)
            if not isinstance(line, str):
                raise line
            return line

        monkeypatch.setattr(sys, "stdin", Terminal())
        monkeypatch.setattr("builtins.input", type_line)
        out, err = io.StringIO(), io.StringIO()
        console = Console(out=out, err=err, rich_out=False, rich_err=False)
        code = main(["chat", "--server", server.address, *args], console)
        return code, out.getvalue(), err.getvalue()

    return talk


def test_a_conversation_carries_its_history(talk, service: FakeInference, picture: Path) -> None:
    """Each turn is sent with those before it; a picture stands in the turn that it was given for."""
    code, out, _ = talk(f"/image {picture}", "What is this?", "And why?", args=("--system", "Be brief."))
    assert (code, out) == (0, "a red circle.\na red circle.\n\n")
    system, first, answer, second = service.last.messages
    assert [p.WhichOneof("part") for p in first.parts] == ["image", "text"]
    assert (system.parts[0].text, answer.parts[0].text, second.parts[0].text) == (
        "Be brief.",
        "a red circle.",
        "And why?",
    )


def test_reset_forgets(talk, service: FakeInference) -> None:
    """/reset begins anew; /quit leaves; anything else with a slash shows what there is."""
    code, _, err = talk("one", "/reset", "/what", "two", "/quit", "never")
    assert (code, len(service.last.messages)) == (0, 1)
    assert service.last.messages[0].parts[0].text == "two"
    assert "/reset: forget" in err.splitlines()[-1]


def test_a_failed_turn_is_not_kept(talk, service: FakeInference, picture: Path) -> None:
    """An error is told in one line and the talk goes on without that turn and its media."""
    service.fail["StreamChat:1"] = InvalidArgument("Not a picture.", reason="BAD", field="messages[0].parts[0].image")
    code, _, err = talk(f"/image {picture}", "one", "/image nothing.png", "two")
    assert code == 0
    assert f"error: {picture}: not a picture (BAD)\n(the media that were waiting are dropped)\n" in err
    assert "error: nothing.png: no such file" in err
    assert [p.text for p in service.last.messages[0].parts] == ["two"]


def test_interrupting_an_answer_goes_on_and_at_the_prompt_leaves(talk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in an answer stops that answer; at the prompt it ends the command with 130."""

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("tessera_client.cli.repl.write_stream", interrupt)
    code, out, err = talk("one", KeyboardInterrupt)
    assert (code, out) == (130, "\n")
    assert "(stopped)" in err


def test_series_wait_with_their_rate(talk, service: FakeInference, tmp_path: Path) -> None:
    """/series FILE HZ goes with what is said next, at that rate; blanks in a file's name are no rate."""
    plain, odd = tmp_path / "a.csv", tmp_path / "run 7"
    for path in (plain, odd):
        path.write_text("1\n2\n3\n")
    code, _, _ = talk(
        f"/series {plain} 12.5", f"/series {odd}", "/series", "Rising?", args=("--time-series", str(plain))
    )
    assert code == 0
    parts = service.last.messages[0].parts
    assert [p.WhichOneof("part") for p in parts] == ["time_series", "time_series", "time_series", "text"]
    assert [p.time_series.options.sampling_rate_hz for p in parts[:3]] == [0, 12.5, 0]
