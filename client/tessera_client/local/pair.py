"""A gateway and its workers: wait until they serve, end both when one ends.

Next: cli/serve.py.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Sequence

from tessera.healthcheck import check
from tessera_client.errors import TesseraError
from tessera_client.local.child import Child
from tessera_client.ready import ReadyCallback
from tessera_client.results import Model
from tessera_client.sync_client import Client

GRACE_S = 15.0
POLL_S = 0.1
CALL_TIMEOUT_S = 2.0


class ChildEnded(Exception):
    """One of the programs ended by itself; the text says which, how and why."""


class Stopped(Exception):
    """A signal asked for the end."""

    def __init__(self, number: signal.Signals) -> None:
        super().__init__(number.name)
        self.number = number


class Pair:
    """The running programs.

    Args:
        gateway: one child.
        workers: one or more.
        address: of the gateway, for its clients.
    """

    def __init__(self, gateway: Child, workers: Sequence[Child], address: str) -> None:
        self.gateway = gateway
        self.workers = tuple(workers)
        self.address = address
        self._signal: signal.Signals | None = None
        self._signals = 0

    def catch_signals(self) -> None:
        """Take SIGINT and SIGTERM from now on; a second one ends the wait for an orderly stop."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._take_signal)

    def wait_ready(self, on_progress: ReadyCallback, timeout_s: float | None = None) -> Model:
        """Wait until every worker is ready and the gateway says SERVING; return the model.

        Raises:
            ChildEnded: a program ended first.
            Stopped: a signal came first.
            TimeoutError: it took longer than `timeout_s` seconds.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        with Client(self.address, timeout=CALL_TIMEOUT_S) as client:
            while True:
                model = self._look(client)
                on_progress(model)
                if model is not None and self._all_ready(model) and check(self.address) == "SERVING":
                    return model
                if deadline is not None and time.monotonic() > deadline:
                    raise TimeoutError(f"not ready after {timeout_s:g} s")
                self.check()
                time.sleep(POLL_S)

    def watch(self) -> None:
        """Go on until something ends it.

        Raises:
            ChildEnded: a program ended.
            Stopped: a signal came.
        """
        while True:
            self.check()
            time.sleep(POLL_S)

    def check(self) -> None:
        """Look once.

        Raises:
            ChildEnded: a program has ended.
            Stopped: a signal has come.
        """
        if self._signal is not None:
            raise Stopped(self._signal)
        for child in (*self.workers, self.gateway):
            if child.exit_code() is not None:
                raise ChildEnded(child.epitaph())

    def stop(self, grace_s: float = GRACE_S, clock: Callable[[], float] = time.monotonic) -> None:
        """End the gateway, which lets its requests finish, then the workers; kill what is left after the grace."""
        deadline = clock() + grace_s
        for group in ((self.gateway,), self.workers):
            for child in group:
                child.send(signal.SIGTERM)
            for child in group:
                while not child.wait(POLL_S) and clock() < deadline and self._signals < 2:
                    pass
        for child in (self.gateway, *self.workers):
            child.finish()

    def _look(self, client: Client) -> Model | None:
        try:
            models = client.list_models()
        except TesseraError:
            return None  # not up yet; whether it still can be is asked of the processes
        return models[0] if models else None

    def _all_ready(self, model: Model) -> bool:
        states = [worker.state for worker in model.workers]
        return model.ready and len(states) >= len(self.workers) and all(state == "ready" for state in states)

    def _take_signal(self, number: int, _frame: object) -> None:
        self._signals += 1
        self._signal = self._signal or signal.Signals(number)
