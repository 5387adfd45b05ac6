"""One program that runs as a child: its log, its end.

Next: pair.py.
"""

from __future__ import annotations

import signal
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tessera_client.local.log_lines import last_words

TAIL_LINES = 200


class Child:
    """A child process whose output is read to its end.

    Args:
        name: "gateway", "worker", "worker 2".
        command: what to run.
        environment: of the process.
        write_line: takes (name, line) of its log; called from a thread.
        log_file: takes the log in place of `write_line`.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        environment: Mapping[str, str],
        write_line: Callable[[str, str], None],
        log_file: Path | None = None,
    ) -> None:
        self.name = name
        self._write_line = write_line
        self._log_file = log_file
        self._tail: deque[str] = deque(maxlen=TAIL_LINES)
        # A session of its own: Ctrl-C on the terminal reaches us alone, and we say in which order they end.
        self.process = subprocess.Popen(
            command,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, name=f"log of {name}", daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        """Process id."""
        return self.process.pid

    def exit_code(self) -> int | None:
        """Return the exit code, negative for a signal; None while it runs."""
        return self.process.poll()

    def epitaph(self) -> str:
        """Return how it ended and the line of its log that says why."""
        self._reader.join(1.0)
        code = self.process.returncode
        how = f"was killed by {_signal_name(-code)}" if code < 0 else f"ended with exit code {code}"
        return f"the {self.name} {how}; its last words: {last_words(self._tail)}"

    def send(self, number: signal.Signals) -> None:
        """Send a signal, unless it has ended."""
        if self.process.poll() is None:
            self.process.send_signal(number)

    def wait(self, timeout_s: float) -> bool:
        """Return whether it ended within `timeout_s` seconds."""
        try:
            self.process.wait(max(0.0, timeout_s))
        except subprocess.TimeoutExpired:
            return False
        return True

    def finish(self) -> None:
        """Kill it if it still runs, and collect the rest of its log."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self._reader.join(1.0)
        if self.process.stdout is not None and not self._reader.is_alive():
            self.process.stdout.close()

    def _read(self) -> None:
        assert self.process.stdout is not None
        file = self._log_file.open("a", encoding="utf-8") if self._log_file else None
        try:
            for line in self.process.stdout:
                self._tail.append(line.rstrip("\n"))
                if file is None:
                    self._write_line(self.name, line.rstrip("\n"))
                else:
                    file.write(line)
                    file.flush()
        finally:
            if file is not None:
                file.close()


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
