"""`tessera upload`: send media ahead, and print the ids by which requests name them.

Next: flags.py.
"""

from __future__ import annotations

import argparse

from tessera_client.cli import flags
from tessera_client.cli.console import Console
from tessera_client.cli.models import size_text


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this subcommand."""
    parser.add_argument("files", nargs="+", metavar="FILE", help="a picture, clip or time series")
    flags.add_server_flags(parser, model=False)
    parser.epilog = "Then: tessera chat --video id:HEX ..."


def run(args: argparse.Namespace, console: Console) -> int:
    """Send the files; one line, or one object in `uploads`, for each."""
    args.model = None
    results = []
    with flags.open_client(args, console) as client, console.activity("uploading") as activity:
        for name in args.files:
            results.append((name, client.upload(name, on_upload=activity.upload)))
    if console.json:
        console.object({"uploads": [{"file": name} | vars(result) for name, result in results]})
        return 0
    for name, result in results:
        assert result.media_id is not None
        kept = f", held for {result.held_for_s / 60:.0f} min after its last use" if result.held_for_s else ""
        already = ", was there already" if result.existed else ""
        console.line(f"id:{result.media_id.hex()}\t{name} ({size_text(result.size_bytes)}{already}{kept})")
    return 0
