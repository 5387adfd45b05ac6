"""`tessera chat`: ask about pictures, clips and time series.

Next: answer.py (how it is written), repl.py (several turns).
"""

from __future__ import annotations

import argparse
from typing import Any

from tessera_client.cli import flags
from tessera_client.cli.answer import add_answer_flags, write_answer, write_stream
from tessera_client.cli.console import Console
from tessera_client.parts import Message, system, user


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this subcommand."""
    parser.usage = "tessera chat [OPTIONS] [TEXT ...]"
    flags.add_chat_flags(parser)
    flags.add_media_flags(parser)
    flags.add_sampling_flags(parser)
    add_answer_flags(parser)
    flags.add_server_flags(parser)
    parser.epilog = 'Example: tessera chat --image cat.png --video cat.mp4 "Is it the same cat?"'


def run(args: argparse.Namespace, console: Console) -> int:
    """Ask once, or talk where nothing was given and standard input is a terminal."""
    text = flags.read_text(args)
    if text is None and not console.json:
        from tessera_client.cli.repl import talk

        return talk(args, console)
    with flags.open_client(args, console) as client:
        activity = console.activity("thinking")
        options = flags.chat_options(args) | flags.sampling(args) | {"on_upload": activity.upload}
        messages = conversation(args, text or "")
        if args.no_stream:
            with activity:
                answer = client.chat(messages, **options)
            write_answer(answer, console)
        else:
            write_stream(client.stream_chat(messages, **options), console, activity, stats=args.stats)
    return 0


def conversation(args: argparse.Namespace, text: str) -> list[Message]:
    """Return the turns of the command line: system, then media in their order and the text.

    Raises:
        ValueError: there is nothing to say, or a flag is about a medium that is not there.
    """
    flags.check_media_flags(args)
    parts: list[Any] = [*flags.media_parts(args), *([text] if text else [])]
    if not parts:
        raise ValueError("nothing to say: give a text, --image, --video, --time-series or --embeddings")
    turns = [system(args.system)] if args.system else []
    args.labels = flags.media_labels(args, len(turns))
    return [*turns, user(*parts)]
