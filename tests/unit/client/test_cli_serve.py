"""`tessera serve`: what is started, how it ends, and what is said; the programs are stand-ins."""

import io
import json
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tessera.healthcheck import check
from tessera.healthcheck import main as healthcheck
from tessera_client.cli import main
from tessera_client.cli.console import Console
from tessera_client.local import log_lines, programs
from tessera_client.local.child import Child

GATEWAY = """
import signal, sys, threading
from tests.fakes.inference import FakeInference, FakeServer
flags = sys.argv[1:]
done = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: done.set())
with FakeServer(FakeInference(), port=int(flags[flags.index("--port") + 1])):
    print('{"event": "gateway_started", "level": "info", "timestamp": "2030-01-01T10:00:00Z"}', flush=True)
    while not done.wait(0.05):
        pass
print("gateway drained", flush=True)
"""
WORKER = """
import signal, sys, threading
if "--die" in sys.argv:
    print('{"event": "worker_failed", "level": "error", "reason": "no weights"}', flush=True)
    print("last line", flush=True)
    sys.exit(3)
done = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: done.set())
print(" ".join(sys.argv[1:]), flush=True)
done.wait()
print("worker drained", flush=True)
"""


class Announced(io.StringIO):
    """Standard output that sends a signal to this process when the ready line is written."""

    def __init__(self, number: signal.Signals | None) -> None:
        super().__init__()
        self._number = number

    def write(self, text: str) -> int:
        if self._number is not None and "ready" in text:
            os.kill(os.getpid(), self._number)
        return super().write(text)


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout whose gateway and worker are stand-ins."""
    for name, source in (("gateway", GATEWAY), ("worker", WORKER)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
        (tmp_path / name / "__main__.py").write_text(source)
    model = tmp_path / "models" / "shapes" / "checkpoint"
    model.mkdir(parents=True)
    (model / "config.json").write_text("{}")
    monkeypatch.setattr(programs, "repository_root", lambda: tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    return tmp_path


Serve = Callable[..., tuple[int, str, str]]


@pytest.fixture
def serve(checkout: Path) -> Iterator[Serve]:
    """Runs `tessera serve --port 0 ARGS`, and sends `number` when it is ready."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def serve(*args: str, number: signal.Signals | None = signal.SIGTERM, terminal: bool = False):
        out, err = Announced(number), io.StringIO()
        console = Console(json="--json" in args, out=out, err=err, rich_out=False, rich_err=terminal)
        return main(["serve", "--port", "0", *args], console), out.getvalue(), err.getvalue()

    yield serve
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.slow
def test_it_serves_until_it_is_told_to_end(serve: Serve, checkout: Path) -> None:
    """One ready line with the address and what to try; SIGTERM ends both, the gateway first, with code 0."""
    code, out, err = serve(
        "--dtype", "float32", "--max-model-len", "99", "--batch-invariant", "--disable-vision-encoder",
        "--check-launches",
        "--worker-arg=--a 1 --b '2 3'",
    )  # fmt: skip
    assert code == 0
    assert out.startswith("ready: shapes at 127.0.0.1:")
    assert "; try: tessera chat --server 127.0.0.1:" in out
    assert out.count("\n") == 1
    assert f"--model {checkout}/models/shapes/checkpoint --host 127.0.0.1 --port " in err
    assert "--dtype float32 --max-model-len 99 --disable-vision-encoder --batch-invariant --check-launches " in err
    assert " --check-launches --a 1 --b 2 3\n" in err
    assert err.index("gateway drained") < err.index("worker drained")


@pytest.mark.slow
def test_interruption_ends_both_with_130(serve: Serve) -> None:
    """Ctrl-C is an orderly end too."""
    code, _, err = serve(number=signal.SIGINT)
    assert code == 130
    assert "worker drained" in err


@pytest.mark.slow
def test_a_dead_worker_ends_all_with_its_last_words(serve: Serve) -> None:
    """When a program dies, the other is ended, and the line says which, how, and its last error."""
    code, out, err = serve("--worker-arg=--die", number=None)
    assert (code, out) == (1, "")
    assert err.endswith("error: the worker ended with exit code 3; its last words: worker_failed reason=no weights\n")


@pytest.mark.slow
def test_logs_go_to_a_folder(serve: Serve, tmp_path: Path) -> None:
    """With --log-dir each program has its file, and standard error stays quiet."""
    code, out, err = serve("--log-dir", str(tmp_path / "logs"), "--json")
    assert code == 0
    told = json.loads(out)
    assert told["ready"]
    assert told["pids"]["gateway"] != told["pids"]["workers"][0]
    assert "drained" not in err
    assert "gateway drained" in (tmp_path / "logs" / "gateway.log").read_text()
    assert "worker drained" in (tmp_path / "logs" / "worker.log").read_text()


@pytest.mark.slow
def test_on_a_terminal_log_lines_are_short(serve: Serve) -> None:
    """Log objects are made lines for people there."""
    _, _, err = serve(terminal=True)
    assert "10:00:00 gateway   gateway_started" in err


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (("--model", "./nowhere"), "nowhere: no such folder"),
        (("--host", "203.0.113.9", "--port", "7"), "203.0.113.9:7: cannot assign"),
    ],
)
def test_what_cannot_be_started_is_told(serve: Serve, args: tuple[str, ...], text: str) -> None:
    """A folder or host that is not there is one line and code 2, and nothing is started."""
    code, _, err = serve(*args)
    assert code == 2
    assert err.startswith("error: ")
    assert text in err


def test_a_port_in_use_is_told(serve: Serve) -> None:
    """The line says how to choose another port."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, _, err = serve("--port", str(port))
    assert (code, err) == (2, f"error: port {port}: is in use: choose another with --port (0 = any that is free)\n")


def test_models_are_found_by_folder_or_name(tmp_path: Path) -> None:
    """No name and "shapes" are the embedded model, folders become absolute, other names go to the hub."""
    folder = tmp_path / "models" / "shapes" / "checkpoint"
    folder.mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="embedded model is not here"):
        programs.embedded_model(tmp_path, installed=tmp_path / "none")
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        programs.resolve_model(str(folder), tmp_path)
    (folder / "config.json").write_text("{}")
    assert programs.resolve_model(None, tmp_path) == programs.resolve_model("shapes", tmp_path) == str(folder)
    assert programs.resolve_model(str(folder), tmp_path) == str(folder)
    assert programs.embedded_model(None, installed=tmp_path / "models") == folder
    assert programs.resolve_model("Qwen/Qwen3-VL-2B-Instruct", None) == "Qwen/Qwen3-VL-2B-Instruct"


def test_this_checkout_is_found() -> None:
    """The repository around the package is where the programs are taken from."""
    root = programs.repository_root()
    assert root == Path(__file__).resolve().parents[3]
    assert programs.child_environment(root, {"PYTHONPATH": "/x"})["PYTHONPATH"].endswith(os.pathsep + "/x")
    assert programs.child_environment(None, {})["PYTHONUNBUFFERED"] == "1"


def test_a_missing_program_is_told_by_name() -> None:
    """Where a program is not installed the line says what to install."""
    with pytest.raises(ImportError, match="absent_program is not installed"):
        programs.check_installed(None, ["absent_program"])


def test_free_ports_differ() -> None:
    """Ports for several workers are all different."""
    assert len(set(programs.free_ports(5))) == 5


def test_a_program_that_ends_says_how() -> None:
    """Exit codes and signals are told, with the last line of the log."""
    lines: list[tuple[str, str]] = []
    child = Child(
        "worker", [sys.executable, "-Sc", "print('one'); print('two')"], os.environ, lambda *x: lines.append(x)
    )
    assert child.wait(10)
    assert child.epitaph() == "the worker ended with exit code 0; its last words: two"
    child.finish()
    assert lines == [("worker", "one"), ("worker", "two")]
    child = Child("gateway", [sys.executable, "-Sc", "input()\nimport time; time.sleep(60)"], os.environ, print)
    child.process.kill()
    assert child.wait(10)
    assert child.epitaph().startswith("the gateway was killed by SIGKILL")
    child.finish()


def test_last_words_are_the_last_error() -> None:
    """An error in the log says more than what was logged after it; tracebacks end with their error."""
    error = json.dumps({"event": "load_failed", "level": "error", "exception": [{"exc_type": "E", "exc_value": "x"}]})
    assert log_lines.last_words([error, '{"event": "stopped", "level": "info"}', ""]) == "load_failed E: x"
    assert log_lines.last_words(["Traceback", "  File", "ImportError: no torch", ""]) == "ImportError: no torch"
    assert log_lines.last_words(['{"event": "stopped", "n": 1}']) == "stopped n=1"
    assert log_lines.last_words([""]) == "it said nothing"
    assert log_lines.for_people("worker", "{broken") == "         worker    {broken"


def test_healthcheck_says_what_the_server_says(server, capsys: pytest.CaptureFixture[str]) -> None:
    """0 for SERVING, 1 for anything else, 2 for wrong use."""
    assert healthcheck([server.address]) == 0
    assert capsys.readouterr().out == "SERVING\n"
    assert healthcheck([server.address, "unknown.Service"]) == 1
    assert check("127.0.0.1:1", timeout_s=1).startswith("UNAVAILABLE")
    assert healthcheck([]) == 2
