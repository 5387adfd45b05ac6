"""The command `tessera`: one file a subcommand.

Next: program.py.
"""

from collections.abc import Sequence
from typing import Any

INTERRUPTED = 130


def main(argv: Sequence[str] | None = None, console: Any = None) -> int:
    """Run the command; see program.main. Ctrl-C is clean from the first import on."""
    try:
        from tessera_client.cli import program

        return program.main(argv, console)
    except KeyboardInterrupt:
        return INTERRUPTED
