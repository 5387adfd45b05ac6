"""Where the command writes: answers on stdout, everything else on stderr; rich only on a terminal.

Next: progress.py, then the subcommands.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TextIO

from tessera_client.cli.progress import Activity, loading_bar, loading_lines
from tessera_client.decoding import to_json
from tessera_client.ready import ReadyCallback


class Console:
    """Output of one run of the command.

    Args:
        json: write objects for programs.
        out: answers.
        err: progress and errors.
        rich_out, rich_err: draw with rich there; None = where it is a terminal and rich is installed.
    """

    def __init__(
        self,
        *,
        json: bool = False,
        out: TextIO | None = None,
        err: TextIO | None = None,
        rich_out: bool | None = None,
        rich_err: bool | None = None,
    ) -> None:
        self.json = json
        self.out = out or sys.stdout
        self.err = err or sys.stderr
        self.rich_out = _is_terminal(self.out) if rich_out is None else rich_out
        self.rich_err = _is_terminal(self.err) if rich_err is None else rich_err

    def write(self, text: str) -> None:
        """Write a piece of an answer at once."""
        self.out.write(text)
        self.out.flush()

    def line(self, text: str = "") -> None:
        """Write a line on stdout."""
        self.write(text + "\n")

    def object(self, value: Any) -> None:
        """Write one JSON object on a line of stdout."""
        self.line(json.dumps(to_json(value), ensure_ascii=False))

    def note(self, text: str) -> None:
        """Write a dim line on stderr."""
        self._stderr(text, "dim")

    def log(self, line: str) -> None:
        """Write a program's log line on stderr, above what moves there."""
        self._stderr(line, "")

    def error(self, line: str, value: dict[str, Any] | None = None) -> None:
        """Write the one line of a failure on stderr; an object with --json."""
        if self.json and value is not None:
            self.err.write(json.dumps(to_json(value), ensure_ascii=False) + "\n")
        elif self.rich_err:
            from rich.text import Text

            # Written by hand where nothing may wrap: a line that is copied stays a line.
            rich = self._rich(self.err)
            rich.print(Text.assemble(("error: ", "bold red"), line), soft_wrap=True)
        else:
            self.err.write(f"error: {line}\n")
        self.err.flush()

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Write a table: drawn on a terminal, tab-separated elsewhere."""
        if not self.rich_out:
            for row in (columns, *rows):
                self.line("\t".join(str(cell) for cell in row))
            return
        from rich import box
        from rich.table import Table
        from rich.text import Text

        table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
        for index, column in enumerate(columns):
            numeric = bool(rows) and all(str(row[index]).replace(",", "").isdigit() for row in rows)
            table.add_column(column, justify="right" if numeric else "left", overflow="fold")
        for row in rows:
            table.add_row(*(Text(str(cell)) for cell in row))
        self._rich(self.out).print(table)

    def facts(self, facts: Sequence[tuple[str, Any]]) -> None:
        """Write names and values, one a line."""
        if not self.rich_out:
            for name, value in facts:
                self.line(f"{name}:\t{value}")
            return
        from rich.table import Table
        from rich.text import Text

        grid = Table.grid(padding=(0, 2))
        for name, value in facts:
            grid.add_row(Text(name, "dim"), Text(str(value)))
        self._rich(self.out).print(grid)

    def activity(self, label: str) -> Activity:
        """Return what is shown while an answer is awaited; silent where stderr is no terminal."""
        return Activity(self.terminal() if self.rich_err and not self.json else None, label)

    @contextmanager
    def loading(self) -> Iterator[ReadyCallback]:
        """Hold what is shown of a model that is being loaded: a bar on a terminal, lines elsewhere."""
        if self.json:
            yield lambda model: None
        elif self.rich_err:
            with loading_bar(self.terminal()) as update:
                yield update
        else:
            yield loading_lines(self.note)

    def terminal(self) -> Any:
        """Return rich's console over stderr."""
        return self._rich(self.err)

    def _stderr(self, text: str, style: str) -> None:
        if self.rich_err:
            from rich.text import Text

            self._rich(self.err).print(Text(text, style), soft_wrap=True)
        else:
            self.err.write(text + "\n")
            self.err.flush()

    def _rich(self, file: TextIO) -> Any:
        import rich.console

        key = "_rich_out" if file is self.out else "_rich_err"
        if key not in self.__dict__:
            self.__dict__[key] = rich.console.Console(file=file, highlight=False, markup=False, force_terminal=True)
        return self.__dict__[key]


def _is_terminal(stream: TextIO) -> bool:
    if not stream.isatty() or os.environ.get("TERM") == "dumb":
        return False
    try:
        import rich  # noqa: F401 - only asks whether it is there
    except ImportError:
        return False
    return True
