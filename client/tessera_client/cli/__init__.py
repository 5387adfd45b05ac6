"""The command `tessera`: one file a subcommand.

Next: program.py.
"""

from tessera_client.cli.program import main

__all__ = ["main"]
