"""A side of a question in a process of its own, kept alive and told over a pipe what to run.

Each side has its own memory, threads and imports; since the caller waits for each answer, two never run at once.

Next: stage.py
"""

import importlib
import traceback
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

_CLOSE_TIMEOUT_S = 30.0


class ContestantError(RuntimeError):
    """A contestant failed; the message is its traceback."""


class Contestant:
    """A child process that holds one object and calls its methods.

    Args:
        target: "package.module:Class" to make there.
        arguments: of the class; they and all results must be picklable.

    Raises:
        ContestantError: making it failed.
    """

    def __init__(self, target: str, *arguments: Any) -> None:
        context = get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, target, arguments), name=target)
        self._process.start()
        theirs.close()
        self._receive()

    def call(self, method: str, *arguments: Any) -> Any:
        """Run a method there and return its result.

        Raises:
            ContestantError: it raised, or the process is gone.
        """
        self._pipe.send((method, arguments))
        return self._receive()

    def bind(self, method: str) -> Callable[..., Any]:
        """Return the method as a function."""
        return lambda *arguments: self.call(method, *arguments)

    @property
    def name(self) -> str:
        """What it was made from."""
        return self._process.name

    @property
    def pid(self) -> int:
        """Id of the process."""
        assert self._process.pid is not None
        return self._process.pid

    def close(self) -> None:
        """End the process; one that does not end by itself is killed."""
        self._pipe.close()
        self._process.join(_CLOSE_TIMEOUT_S)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def _receive(self) -> Any:
        try:
            ok, value = self._pipe.recv()
        except EOFError:
            self._process.join(_CLOSE_TIMEOUT_S)
            message = f"{self._process.name} ended with exit code {self._process.exitcode}"
            raise ContestantError(message) from None
        if not ok:
            raise ContestantError(value)
        return value


def _serve(pipe: Connection, target: str, arguments: tuple[Any, ...]) -> None:
    module, _, name = target.partition(":")
    subject: Any = None
    try:
        subject = getattr(importlib.import_module(module), name)(*arguments)
        pipe.send((True, None))
        _answer(pipe, subject)
    except (EOFError, KeyboardInterrupt):
        pass  # the bench has closed its end, or is being stopped: there is nobody to tell
    except Exception:
        pipe.send((False, traceback.format_exc()))
    finally:
        close = getattr(subject, "close", None)
        if close is not None:
            close()


def _answer(pipe: Connection, subject: Any) -> None:
    while True:
        method, arguments = pipe.recv()
        try:
            result = getattr(subject, method)(*arguments)
        except Exception:
            pipe.send((False, traceback.format_exc()))
        else:
            pipe.send((True, result))
