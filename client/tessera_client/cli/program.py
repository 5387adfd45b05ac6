"""Entry of the command `tessera`: picks the subcommand, and turns failures into one line and an exit code.

Exit codes:
    0    it worked
    1    the server failed (INTERNAL), or `serve` lost a program
    2    the request or a flag is wrong, or a file cannot be read
    3    no server, or no worker
    4    the model, an upload or a feature is not there
    5    the server is overloaded, or media are above its caps
    6    the timeout has passed
    7    not allowed
    130  Ctrl-C

Next: chat.py, generate.py, prepare.py, models.py, upload.py, serve.py.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from tessera import __version__
from tessera_client import errors
from tessera_client.cli.console import Console
from tessera_client.cli.failure import exit_code, failure_line, failure_object

COMMANDS = {
    "chat": "ask about pictures, clips and time series; the answer streams as it comes",
    "generate": "continue a raw prompt or token ids, exactly",
    "prepare": "show what a chat would run: tokens, frames, times",
    "models": "show what is served: state, limits, workers",
    "upload": "send media ahead and print their ids",
    "serve": "start a gateway and its workers on this machine",
}


def main(argv: Sequence[str] | None = None, console: Console | None = None) -> int:
    """Run the command.

    Args:
        argv: without the program's name; None = sys.argv.
        console: where to write; None = stdout and stderr.

    Returns:
        The exit code.
    """
    # gRPC's C core would write its own lines about refused connections.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        args = _parser(arguments).parse_args(arguments)
    except SystemExit as exited:  # argparse has written its line
        return exited.code if isinstance(exited.code, int) else 2
    console = console or Console(json=getattr(args, "json", False))
    try:
        return args.run(args, console)
    except BrokenPipeError:
        # The reader (head, less) has left: nothing more to say, also not at the interpreter's exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (errors.TesseraError, OSError, ImportError, ValueError) as error:
        console.error(failure_line(error, args), failure_object(error))
        return exit_code(error)


def _parser(arguments: Sequence[str]) -> argparse.ArgumentParser:
    """Return the parser; only the named subcommand's module is imported."""
    parser = argparse.ArgumentParser(
        prog="tessera",
        description="Talk to a Tessera server, or start one.",
        epilog="The server's address: --server, or TESSERA_SERVER, or localhost:50051. "
        "Exit codes: 1 the server failed, "
        "2 wrong use or request, 3 no server or worker, 4 not there, 5 overloaded or too large, 6 timeout, "
        "7 not allowed, 130 Ctrl-C.",
    )
    parser.add_argument("--version", action="version", version=f"tessera {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, summary in COMMANDS.items():
        command = commands.add_parser(
            name, help=summary, description=summary[0].upper() + summary[1:] + ".", allow_abbrev=False
        )
        if name in arguments:
            module = importlib.import_module(f"tessera_client.cli.{name}")
            module.add_flags(command)
            command.set_defaults(run=module.run)
    return parser
