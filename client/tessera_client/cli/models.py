"""`tessera models`: what is served, in which state, with which limits, by which workers.

Next: flags.py.
"""

from __future__ import annotations

import argparse

from tessera_client.cli import flags
from tessera_client.cli.console import Console
from tessera_client.results import Model, RequestLimits


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this subcommand."""
    parser.add_argument("name", nargs="?", metavar="NAME", help="only this model")
    flags.add_server_flags(parser, model=False)


def run(args: argparse.Namespace, console: Console) -> int:
    """Show one model, or all."""
    args.model = args.name
    with flags.open_client(args, console) as client:
        models = (client.get_model(args.name),) if args.name else client.list_models()
    if console.json:
        console.object({"models": models})
    elif not models:
        console.line("No model is served yet: no worker has answered. --wait waits for one.")
    else:
        for index, model in enumerate(models):
            if index:
                console.line()
            write_model(model, console)
    return 0


def write_model(model: Model, console: Console) -> None:
    """Write one model for people."""
    console.facts(model_facts(model))
    if model.workers:
        rows = [
            (
                worker.address,
                worker.state or "unknown",
                worker.device,
                worker.dtype,
                worker.running,
                worker.waiting,
                f"{worker.used_blocks}/{worker.total_blocks}",
            )
            for worker in model.workers
        ]
        console.line()
        console.table("Workers", ("address", "state", "device", "dtype", "running", "waiting", "KV blocks"), rows)


def model_facts(model: Model) -> list[tuple[str, str]]:
    """Return what is worth telling of a model, leaving out what the server did not say."""
    state = model.state or "unknown"
    if model.state in ("downloading", "loading", "warming"):
        state += f" ({model.progress:.0%})"
    sampling = ", ".join(f"{name} {_short(value)}" for name, value in model.default_sampling.items())
    facts = [
        ("model", model.name),
        ("state", state),
        ("architecture", model.architecture),
        ("takes", ", ".join(("text", *model.modalities))),
        ("context", f"{model.max_model_len:,} tokens"),
        ("sampling", sampling),
        ("resize", model.resize_backend),
        ("video", ", ".join(model.video_loaders)),
        ("series", ", ".join(model.series_formats)),
    ]
    if model.limits is not None:
        facts += limit_facts(model.limits)
    facts.append(("version", model.server_version))
    return [(name, value) for name, value in facts if value]


def limit_facts(limits: RequestLimits) -> list[tuple[str, str]]:
    """Return the limits that are set."""
    pixels = (("picture", limits.max_image_pixels), ("clip", limits.max_video_pixels))
    facts = [
        ("inline limit", size_text(limits.max_inline_bytes) if limits.max_inline_bytes else ""),
        ("upload limit", size_text(limits.max_media_bytes) if limits.max_media_bytes else ""),
        ("pixels", ", ".join(f"{count:,} a {kind}" for kind, count in pixels if count)),
        ("samples", f"{limits.max_series_samples:,} a series" if limits.max_series_samples else ""),
        ("frames", f"{limits.max_frames:,} a clip" if limits.max_frames else ""),
        ("media", f"{limits.max_items} a request" if limits.max_items else ""),
        ("requests", f"{limits.max_requests} at once" if limits.max_requests else ""),
    ]
    return facts


def size_text(size_bytes: float) -> str:
    """Return "32 MiB"."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size_bytes < 1024 or unit == "GiB":
            return f"{size_bytes:.4g} {unit}"
        size_bytes /= 1024
    raise AssertionError("the loop ends at GiB")


def _short(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
