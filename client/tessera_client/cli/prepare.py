"""`tessera prepare`: what a chat would run, without running it.

Next: flags.py.
"""

from __future__ import annotations

import argparse

from tessera_client.cli import flags
from tessera_client.cli.chat import conversation
from tessera_client.cli.console import Console
from tessera_client.results import MediaReport, PrepareResult, SamplingPlan


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this subcommand."""
    parser.usage = "tessera prepare [OPTIONS] [TEXT ...]"
    flags.add_chat_flags(parser)
    parser.add_argument("--raw", action="store_true", help="take the text as a raw prompt, without the chat template")
    parser.add_argument("--show-prompt", action="store_true", help="also the prompt as the template renders it")
    parser.add_argument("--show-ids", action="store_true", help="also the token ids")
    flags.add_media_flags(parser)
    flags.add_server_flags(parser)
    parser.epilog = 'Example: tessera prepare --video cat.mp4 --fps 1 "What happens?"'


def run(args: argparse.Namespace, console: Console) -> int:
    """Show the counts, and for each medium its size, tokens, frames and times."""
    text = flags.read_text(args) or ""
    with flags.open_client(args, console) as client, console.activity("preparing") as activity:
        if args.raw:
            plan = client.prepare_prompt(text, model=args.model, video_layout=args.video_layout)
        else:
            messages = conversation(args, text)
            plan = client.prepare(messages, on_upload=activity.upload, **flags.chat_options(args))
    if console.json:
        console.object(plan)
    else:
        write_plan(plan, [name for _, name in args.media or ()], console, args)
    return 0


def write_plan(plan: PrepareResult, names: list[str], console: Console, args: argparse.Namespace) -> None:
    """Write a plan for people; `names` are the media as the user called them."""
    if plan.media:
        rows = [
            medium_row(number, report, names[number - 1] if number <= len(names) else "")
            for number, report in enumerate(plan.media, 1)
        ]
        console.table("Media", ("#", "kind", "source", "size", "used as", "grid", "tokens", "frames"), rows)
    for number, report in enumerate(plan.media, 1):
        if report.sampling is not None:
            console.facts(sampling_facts(number, report.sampling))
            console.line()
    console.facts(count_facts(plan))
    if args.show_prompt:
        console.line()
        console.line(plan.rendered_prompt)
    if args.show_ids:
        console.line()
        console.line(" ".join(map(str, plan.token_ids)))


def medium_row(number: int, report: MediaReport, name: str) -> tuple[object, ...]:
    """Return a row of the table of media; sizes are width x height, or samples x channels."""
    grid, plan = report.grid_thw, report.sampling
    kind = report.modality + (" (cached)" if report.cached else "")
    if report.modality == "time_series":
        return (number, kind, name, *series_cells(report), report.num_tokens, "-")
    frames = f"{len(plan.frame_indices)} of {plan.total_frames}" if plan else "1"
    return (
        number,
        kind,
        name,
        f"{report.source_width}x{report.source_height}" if report.source_width else "-",
        f"{report.width}x{report.height}" if report.width else "as given",
        f"{grid.t}x{grid.h}x{grid.w}" if grid else "-",
        report.num_tokens,
        frames,
    )


def series_cells(report: MediaReport) -> tuple[str, str, str]:
    """Return a series' samples and channels, what is used of it, and its rate in the place of the grid."""
    if not report.num_samples:
        return "-", "embeddings", "-"
    rate = f"{report.sampling_rate_hz:g} Hz" if report.sampling_rate_hz else "rate unknown"
    return f"{report.num_samples}x{report.num_channels}", f"{report.used_samples}x{report.num_channels}", rate


def sampling_facts(number: int, plan: SamplingPlan) -> list[tuple[str, str]]:
    """Return which frames of a clip are used, when they are, and why."""
    facts = [
        (f"clip {number}", f"{plan.duration_s:.2f} s at {plan.source_fps:g} frames/s, sampled by {plan.rule}"),
        ("frames", " ".join(map(str, plan.frame_indices))),
        ("times (s)", " ".join(f"{time:.2f}" for time in plan.timestamps)),
    ]
    if plan.dropped_frames:
        facts.append(("unreadable", f"{plan.dropped_frames} frames were left out"))
    return facts


def count_facts(plan: PrepareResult) -> list[tuple[str, str]]:
    """Return the counts of a plan."""
    usage = plan.usage
    text = usage.prompt_tokens - usage.media_tokens
    kinds = (
        ("text", text),
        ("images", usage.image_tokens),
        ("videos", usage.video_tokens),
        ("series", usage.time_series_tokens),
    )
    inside = ", ".join(f"{kind} {count}" for kind, count in kinds if count)
    return [
        ("prompt tokens", f"{usage.prompt_tokens} ({inside})"),
        ("left for the answer", str(plan.max_completion_tokens)),
    ]
