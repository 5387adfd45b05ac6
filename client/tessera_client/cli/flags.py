"""Flags that several subcommands share, and what they become.

Next: chat.py.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tessera_client.channel import normalize_address
from tessera_client.cli.console import Console
from tessera_client.embeddings import load_embeddings
from tessera_client.errors import InvalidArgument
from tessera_client.items import Item
from tessera_client.media import JPEG_LIST
from tessera_client.options import SamplingOptions
from tessera_client.parts import Image, MediaId, ServerPath, TimeSeries, Video
from tessera_client.sync_client import Client

SERVER_VARIABLE = "TESSERA_SERVER"
IMAGE_FLAGS = {"min_pixels": "min_pixels", "max_pixels": "max_pixels"}
VIDEO_FLAGS = {
    "fps": "fps",
    "num_frames": "num_frames",
    "min_frames": "min_frames",
    "max_frames": "max_frames",
    "max_duration": "max_duration_s",
    "frame_indices": "frame_indices",
    "video_min_pixels": "min_pixels",
    "video_max_pixels": "max_pixels",
}


class InOrder(argparse.Action):
    """Keeps --image, --video, --time-series and --embeddings in one list, in the order of the command line."""

    def __call__(self, parser, namespace, values, option_string=None):  # type: ignore[no-untyped-def]
        kind = (option_string or "").lstrip("-").replace("-", "_")
        setattr(namespace, self.dest, [*(getattr(namespace, self.dest) or []), (kind, values)])


class Rate(argparse.Action):
    """Keeps --rate for the --time-series before it; before the first, for all that have none of their own."""

    def __call__(self, parser, namespace, values, option_string=None):  # type: ignore[no-untyped-def]
        media = namespace.media or []
        last = max((index for index, (kind, _) in enumerate(media) if kind == "time_series"), default=None)
        namespace.rates = {**(namespace.rates or {}), last: values}


def add_server_flags(parser: argparse.ArgumentParser, *, model: bool = True) -> None:
    """Add --server, --timeout, --wait, --json, and --model."""
    group = parser.add_argument_group("server")
    group.add_argument("--server", metavar="HOST:PORT", help=f"address [{SERVER_VARIABLE}, localhost:50051]")
    group.add_argument("--timeout", type=float, metavar="SECONDS", help="give up after this long [never]")
    group.add_argument(
        "--wait", action="store_true", help="first wait for the server to be up and the model to be loaded"
    )
    group.add_argument("--json", action="store_true", help="write JSON: one object, or one a line for streams")
    if model:
        group.add_argument("--model", metavar="NAME", help="which model [the only one served]")


def add_sampling_flags(parser: argparse.ArgumentParser) -> None:
    """Add a flag for each of SamplingParams."""
    group = parser.add_argument_group("sampling (unset: the model's own)")
    group.add_argument("--max-tokens", type=int, metavar="N", help="most tokens to generate")
    group.add_argument("--temperature", type=float, metavar="T", help="0 = greedy")
    group.add_argument("--top-p", type=float, metavar="P", help="nucleus")
    group.add_argument("--top-k", type=int, metavar="K", help="keep the k likeliest")
    group.add_argument("--min-p", type=float, metavar="P", help="keep what is this likely beside the likeliest")
    group.add_argument("--presence-penalty", type=float, metavar="X", help="for tokens generated before")
    group.add_argument("--frequency-penalty", type=float, metavar="X", help="for each time generated before")
    group.add_argument("--repetition-penalty", type=float, metavar="X", help="for tokens seen before; 1 = none")
    group.add_argument("--seed", type=int, metavar="N", help="same seed, same answer")
    group.add_argument("--n", type=int, metavar="N", help="number of answers")
    group.add_argument("--stop", action="append", metavar="TEXT", help="end before this text; repeatable")
    group.add_argument(
        "--stop-token-id", action="append", type=int, metavar="ID", dest="stop_token_ids", help="repeatable"
    )
    group.add_argument("--ignore-eos", action="store_true", default=None, help="go on after the model's end")
    group.add_argument("--logprobs", action="store_true", default=None, help="with --json: of each token")
    group.add_argument("--top-logprobs", type=int, metavar="K", help="and of the k likeliest")
    group.add_argument("--logit-bias", action="append", type=_bias, metavar="ID=BIAS", help="repeatable")
    group.add_argument("--priority", type=int, metavar="N", help="higher runs first")


def add_media_flags(parser: argparse.ArgumentParser) -> None:
    """Add --image, --video, --time-series, --embeddings and their options."""
    group = parser.add_argument_group(
        "media (SOURCE: file, - for standard input, http(s) or data URL, id:HEX of an upload, server:PATH)"
    )
    group.add_argument("--image", action=InOrder, dest="media", metavar="SOURCE", help="a picture; repeatable")
    group.add_argument("--video", action=InOrder, dest="media", metavar="SOURCE", help="a clip, or a folder of frames")
    group.add_argument(
        "--time-series", action=InOrder, dest="media", metavar="SOURCE", help="npy, csv, wav, ...; repeatable"
    )
    group.add_argument(
        "--rate",
        action=Rate,
        dest="rates",
        type=float,
        metavar="HZ",
        help="samples a second of the --time-series before it, or of all [the file's]",
    )
    group.add_argument(
        "--embeddings", action=InOrder, dest="media", metavar="FILE", help="precomputed, safetensors or npy; repeatable"
    )
    group.add_argument("--grid", type=_grid, metavar="T,H,W", help="patches of --embeddings whose file does not say")
    group.add_argument("--min-pixels", type=int, metavar="N", help="fewest pixels of a picture after resize")
    group.add_argument("--max-pixels", type=int, metavar="N", help="most pixels of a picture after resize")
    group.add_argument("--fps", type=float, metavar="X", help="frames to use for each second of a clip")
    group.add_argument("--num-frames", type=int, metavar="N", help="frames to use of a clip")
    group.add_argument("--min-frames", type=int, metavar="N", help="fewest frames of a clip")
    group.add_argument("--max-frames", type=int, metavar="N", help="most frames of a clip")
    group.add_argument("--max-duration", type=float, metavar="SECONDS", help="only the first seconds of a clip")
    group.add_argument("--frame-indices", type=_numbers, metavar="I,J,...", help="exactly these frames")
    group.add_argument(
        "--source-fps", type=float, metavar="X", help="frames a second of separate frames [2 in data URLs]"
    )
    group.add_argument("--video-min-pixels", type=int, metavar="N", help="fewest pixels of a whole clip")
    group.add_argument("--video-max-pixels", type=int, metavar="N", help="most pixels of a whole clip")
    group.add_argument("--video-layout", choices=("v5", "v4"), help="how a clip's markers are laid out [v5]")


def add_chat_flags(parser: argparse.ArgumentParser) -> None:
    """Add the text and what goes with a conversation."""
    parser.add_argument("text", nargs="*", metavar="TEXT", help='what to say; "-" or none: read from standard input')
    parser.add_argument("--system", metavar="TEXT", help="instructions")
    parser.add_argument(
        "--template-arg",
        action="append",
        type=_argument,
        metavar="NAME=JSON",
        help="argument of the chat template, such as enable_thinking=false; repeatable",
    )


@contextmanager
def open_client(args: argparse.Namespace, console: Console) -> Iterator[Client]:
    """Hold a client of the server that the flags name, after the wait that they ask for."""
    args.address = normalize_address(args.server or os.environ.get(SERVER_VARIABLE))
    with Client(args.address, timeout=args.timeout) as client:
        if args.wait:
            with console.loading() as update:
                client.wait_until_ready(args.model, timeout=args.timeout, on_progress=update)
        yield client


def sampling(args: argparse.Namespace) -> dict[str, Any]:
    """Return the sampling options that were given."""
    values = {name: getattr(args, name, None) for name in SamplingOptions.__annotations__}
    if values["logit_bias"] is not None:
        values["logit_bias"] = dict(values["logit_bias"])
    return {name: value for name, value in values.items() if value is not None}


def chat_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return options of the request: model, media of each kind, template."""
    return {
        "model": args.model,
        "image_options": _renamed(args, IMAGE_FLAGS),
        "video_options": _renamed(args, VIDEO_FLAGS),
        "time_series_options": {"sampling_rate_hz": args.rates[None]} if None in (args.rates or ()) else None,
        "video_layout": args.video_layout,
        "template_args": dict(args.template_arg) if args.template_arg else None,
    }


def media_parts(args: argparse.Namespace) -> list[Image | Video | TimeSeries | Item]:
    """Return the media of the command line, in its order."""
    rates = args.rates or {}
    return [
        media_part(kind, text, args.source_fps, rates.get(index), args.grid)
        for index, (kind, text) in enumerate(args.media or ())
    ]


def check_media_flags(args: argparse.Namespace) -> None:
    """Refuse a flag that would change nothing, since the medium that it is about is not there.

    Raises:
        ValueError: naming flag and medium.
    """
    given = args.media or ()
    kinds = {kind for kind, _ in given}
    for kind, names in (
        ("image", tuple(IMAGE_FLAGS)),
        ("video", (*VIDEO_FLAGS, "source_fps")),
        ("time_series", ("rates",)),
        ("embeddings", ("grid",)),
    ):
        for name in names:
            if getattr(args, name) is not None and kind not in kinds:
                flag = "rate" if name == "rates" else name.replace("_", "-")
                raise ValueError(f"--{flag} changes nothing: there is no --{kind.replace('_', '-')}")
    if args.source_fps is not None and not any(kind == "video" and _is_frames(text) for kind, text in given):
        raise ValueError("--source-fps belongs to separate frames (a folder, or data:video/jpeg), not to a video file")


def _is_frames(source: object) -> bool:
    return isinstance(source, str) and (os.path.isdir(source) or source.startswith(JPEG_LIST))


def media_part(
    kind: str,
    text: str,
    source_fps: float | None = None,
    rate_hz: float | None = None,
    grid_thw: tuple[int, ...] | None = None,
) -> Image | Video | TimeSeries | Item:
    """Return the part of one --image, --video, --time-series or --embeddings."""
    if kind == "embeddings":
        return embeddings(text, grid_thw)
    source = media_source(text)
    if kind == "image":
        return Image(source)
    if kind == "time_series":
        return TimeSeries(source, sampling_rate_hz=rate_hz)
    return Video(source, source_fps=source_fps if _is_frames(source) else None)


def embeddings(path: str, grid_thw: tuple[int, ...] | None) -> Item:
    """Return the item of one --embeddings; a failure names the file, and the flag that would help."""
    try:
        return load_embeddings(path, grid_thw=grid_thw)
    except InvalidArgument as error:
        hint = "the file does not say its grid: give --grid T,H,W" if error.field == "grid_thw" else error.message
        raise InvalidArgument(f"{path}: {hint[0].lower()}{hint[1:]}", reason=error.reason) from None


def media_source(text: str) -> Any:
    """Return the source that a user named; see add_media_flags."""
    if text == "-":
        return sys.stdin.buffer.read()
    if text.startswith("id:"):
        return MediaId(text.removeprefix("id:"))
    if text.startswith("server:"):
        return ServerPath(text.removeprefix("server:"))
    return text


def media_labels(args: argparse.Namespace, turn: int) -> dict[tuple[int, int], str]:
    """Return what the user called each medium, by its place in the conversation."""
    return {(turn, index): text for index, (_, text) in enumerate(args.media or ())}


def read_text(args: argparse.Namespace) -> str | None:
    """Return the text of the command line, or of standard input where it is piped; None: there is none.

    Raises:
        ValueError: standard input is asked for twice.
    """
    text = " ".join(args.text)
    asked = [source for _, source in getattr(args, "media", None) or () if source == "-"]
    if len(asked) + (text == "-") > 1:
        raise ValueError("standard input can be read once: name one source -")
    if (text and text != "-") or asked:
        return text or ""
    if text == "-" or not sys.stdin.isatty():
        return sys.stdin.read().rstrip("\n")
    return None


def _renamed(args: argparse.Namespace, names: dict[str, str]) -> dict[str, Any] | None:
    values = {field: getattr(args, flag) for flag, field in names.items() if getattr(args, flag) is not None}
    return values or None


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.replace(" ", ",").split(",") if number]


def _grid(text: str) -> tuple[int, ...]:
    sides = tuple(_numbers(text))
    if len(sides) != 3:
        raise argparse.ArgumentTypeError(f"{text!r} is not T,H,W")
    return sides


def _bias(text: str) -> tuple[int, float]:
    token, _, bias = text.partition("=")
    return int(token), float(bias)


def _argument(text: str) -> tuple[str, Any]:
    """NAME=JSON; what is not JSON is taken as a string."""
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value
