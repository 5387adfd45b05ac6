"""`tessera generate`: continue a raw prompt or token ids, exactly.

Next: answer.py.
"""

from __future__ import annotations

import argparse
from typing import Any

from tessera_client.cli import flags
from tessera_client.cli.answer import add_answer_flags, write_answer, write_stream
from tessera_client.cli.console import Console
from tessera_client.embeddings import load_embeddings
from tessera_client.errors import InvalidArgument
from tessera_client.items import Item


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this subcommand."""
    parser.usage = "tessera generate [OPTIONS] [TEXT ...]"
    parser.add_argument("text", nargs="*", metavar="TEXT", help='raw prompt; "-" or none: read from standard input')
    parser.add_argument("--ids", type=_ids, metavar="I,J,...", help="token ids in place of a text")
    parser.add_argument(
        "--item",
        action="append",
        type=_item,
        default=[],
        metavar="image:HEX",
        help="an item by its content hash, for the next placeholder of the prompt; repeatable",
    )
    parser.add_argument(
        "--embeddings",
        action="append",
        type=_embeddings,
        dest="item",
        metavar="FILE",
        help="an item of precomputed embeddings, safetensors with its grid; likewise",
    )
    parser.add_argument("--video-layout", choices=("v5", "v4"), help="how a clip's markers are laid out [v5]")
    flags.add_sampling_flags(parser)
    add_answer_flags(parser)
    flags.add_server_flags(parser)
    parser.epilog = 'Example: tessera generate --max-tokens 20 "Once upon a time"'


def run(args: argparse.Namespace, console: Console) -> int:
    """Continue the prompt."""
    prompt = args.ids if args.ids is not None else flags.read_text(args)
    if not prompt:
        raise ValueError("nothing to continue: give a text, or --ids")
    options: dict[str, Any] = flags.sampling(args) | {"model": args.model, "video_layout": args.video_layout}
    with flags.open_client(args, console) as client:
        activity = console.activity("thinking")
        if args.no_stream:
            with activity:
                answer = client.generate(prompt, items=args.item, **options)
            write_answer(answer, console)
        else:
            stream = client.stream_generate(prompt, items=args.item, **options)
            write_stream(stream, console, activity, stats=args.stats)
    return 0


def _ids(text: str) -> list[int]:
    return [int(number) for number in text.replace(",", " ").split()]


def _embeddings(text: str) -> Item:
    try:
        return load_embeddings(text)
    except (InvalidArgument, OSError) as error:
        raise argparse.ArgumentTypeError(f"{text}: {getattr(error, 'message', error)}") from None


def _item(text: str) -> Item:
    modality, _, digits = text.partition(":")
    if modality not in ("image", "video", "time_series") or len(digits) != 64:
        raise argparse.ArgumentTypeError(f"{text!r} is not image:HEX, video:HEX or time_series:HEX with 64 digits")
    return Item(modality, content_hash=bytes.fromhex(digits))
