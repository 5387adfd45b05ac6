"""What moves on a terminal while a user waits: spinner, upload bars, the loading of a model.

Next: answer.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Self

from tessera_client.ready import ReadyCallback
from tessera_client.results import Model
from tessera_client.uploads import UploadProgress

STATES = {
    "downloading": "downloading the model",
    "loading": "loading the weights",
    "warming": "warming up",
    "ready": "ready",
}
WAITING = "waiting for a worker"


class Activity:
    """A spinner, which makes room for a bar while something is uploaded.

    Args:
        terminal: rich's console; None = show nothing.
        label: beside the spinner.
    """

    def __init__(self, terminal: Any, label: str) -> None:
        self._terminal = terminal
        self._label = label
        self._shown: Any = None
        self._task: Any = None

    def __enter__(self) -> Self:
        self._spin()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def upload(self, progress: UploadProgress) -> None:
        """Show how far an upload is."""
        if self._terminal is None:
            return
        if self._task is None:
            self._show(_upload_bar(self._terminal))
            self._task = self._shown.add_task(progress.name, total=progress.total_bytes)
        self._shown.update(self._task, completed=progress.sent_bytes)
        if progress.sent_bytes >= progress.total_bytes:
            self._spin()

    def stop(self) -> None:
        """Show nothing more; what was shown is taken away."""
        shown, self._shown, self._task = self._shown, None, None
        if shown is not None:
            shown.stop()

    def _spin(self) -> None:
        if self._terminal is not None:
            self._show(self._terminal.status(self._label, spinner="dots"))

    def _show(self, live: Any) -> None:
        self.stop()
        self._shown = live
        live.start()


def state_text(model: Model | None) -> str:
    """Return what a model is doing, in words."""
    return "starting" if model is None else STATES.get(model.state or "", WAITING)


@contextmanager
def loading_bar(terminal: Any) -> Iterator[ReadyCallback]:
    """Hold a bar that shows the state of a model and the share of it that is done."""
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=terminal, transient=True) as progress:
        task = progress.add_task("starting", total=None)

        def update(model: Model | None) -> None:
            share = model.progress if model is not None and model.state in STATES else 0.0
            # Without a share the bar runs to and fro.
            total = 1.0 if share else None
            progress.update(task, description=state_text(model), total=total, completed=share)

        yield update


def loading_lines(write: Callable[[str], None]) -> ReadyCallback:
    """Return what writes a line for each new state."""
    told: set[str] = {"ready"}

    def update(model: Model | None) -> None:
        news = state_text(model)
        if news not in told:
            told.add(news)
            write(f"{news}...")

    return update


def _upload_bar(terminal: Any) -> Any:
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("[dim]upload[/] {task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    return Progress(*columns, console=terminal, transient=True)
