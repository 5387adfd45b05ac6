"""`tessera chat` without a text, on a terminal: several turns.

Next: answer.py.
"""

from __future__ import annotations

import argparse
import os
from typing import Any

from tessera_client import errors
from tessera_client.cli import flags
from tessera_client.cli.answer import write_stream
from tessera_client.cli.console import Console
from tessera_client.cli.failure import failure_line
from tessera_client.parts import Message, assistant, system, user
from tessera_client.sync_client import Client

HELP = (
    "/image FILE, /video FILE, /series FILE [HZ]: goes with what you say next · /reset: forget · /quit or Ctrl-D: leave"
)
KINDS = {
    "image": "image",
    "video": "video",
    "series": "time_series",
    "time-series": "time_series",
    "embeddings": "embeddings",
}
PROMPT = "> "


def talk(args: argparse.Namespace, console: Console) -> int:
    """Hold a conversation until the user leaves."""
    try:
        import readline  # noqa: F401 - gives input() its line editing
    except ImportError:  # a Python built without it: plain lines then
        console.note("(no line editing here)")
    with flags.open_client(args, console) as client:
        model = client.get_model(args.model)
        console.note(f"{model.name} at {args.address}. {HELP}")
        Talk(args, console, client).run()
    return 0


Waiting = tuple[str, str, float | None]
"""Kind, source and rate of a medium that goes with the next turn."""


class Talk:
    """One conversation: its turns, and the media that wait for the next one."""

    def __init__(self, args: argparse.Namespace, console: Console, client: Client) -> None:
        self._args = args
        self._console = console
        self._client = client
        self._turns: list[Message] = []
        rates = args.rates or {}
        self._waiting: list[Waiting] = [(kind, path, rates.get(i)) for i, (kind, path) in enumerate(args.media or ())]
        self._reset()

    def run(self) -> None:
        """Read lines until the end of input."""
        while True:
            try:
                line = input(PROMPT).strip()
            except (EOFError, KeyboardInterrupt) as left:
                self._console.line()
                if isinstance(left, KeyboardInterrupt):
                    raise
                return
            if line in ("/quit", "/exit"):
                return
            if line.startswith("/"):
                self._command(line)
            elif line:
                self._say(line)

    def _command(self, line: str) -> None:
        name, _, rest = line[1:].partition(" ")
        path, rate = _path_and_rate(os.path.expanduser(rest.strip()), name)
        if name in KINDS and path:
            if ":" not in path and not os.path.exists(path):
                self._console.error(f"{path}: no such file or directory")
                return
            self._waiting.append((KINDS[name], path, rate))
            self._console.note(f"{path}: goes with what you say next")
        elif name == "reset":
            self._waiting.clear()
            self._reset()
            self._console.note("forgotten")
        else:
            self._console.note(HELP)

    def _say(self, text: str) -> None:
        """Ask; a failed or interrupted turn is not kept, nor its media, so that the talk can go on."""
        activity = self._console.activity("thinking")
        options: dict[str, Any] = flags.chat_options(self._args) | flags.sampling(self._args)
        options["on_upload"] = activity.upload
        turn = len(self._turns)
        self._args.labels = {(turn, index): path for index, (_, path, _) in enumerate(self._waiting)}
        try:
            given = self._args
            parts = [
                flags.media_part(kind, path, given.source_fps, rate, given.grid) for kind, path, rate in self._waiting
            ]
            asked = user(*parts, text)
            stream = self._client.stream_chat([*self._turns, asked], **options)
            answer = write_stream(stream, self._console, activity, stats=self._args.stats)
        except KeyboardInterrupt:
            self._console.note("\n(stopped)")
            self._waiting.clear()
        except (errors.TesseraError, OSError) as error:
            self._console.error(failure_line(error, self._args))
            if self._waiting:
                self._console.note("(the media that were waiting are dropped)")
                self._waiting.clear()
        else:
            self._turns += [asked, assistant(answer.text)]
            self._waiting.clear()

    def _reset(self) -> None:
        self._turns = [system(self._args.system)] if self._args.system else []


def _path_and_rate(text: str, name: str) -> tuple[str, float | None]:
    """Cut a rate off the end of what follows /series, where the whole is no file."""
    path, _, last = text.rpartition(" ")
    if KINDS.get(name) == "time_series" and path and not os.path.exists(text):
        try:
            return path.strip(), float(last)
        except ValueError:
            return text, None
    return text, None
