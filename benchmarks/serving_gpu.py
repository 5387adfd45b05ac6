"""A decode step, the host's share of it, and the pair beside transformers, on one GPU.

    python -m benchmarks.serving_gpu                    # writes benchmarks/results/<device>-serving.{json,md}
    python -m benchmarks.serving_gpu --parts step,host  # some of it; the files' names say which
    python -m benchmarks.serving_gpu --tiny             # everything once, tiny and untimed, on a machine without one

Parts: "step" holds decode steps of a 2B and an 8B shape against the bytes that they must read; "host" steps of the
engine against the device's own time; "pair" gateway and worker over gRPC against transformers' `generate` on the same
random checkpoint. Each runs in processes of its own, so one that fails, or lacks a package, leaves the others their
figures; the exit code then is 1. Missed targets leave it 0.

Next: benchmarks/gpu/serving_plan.py
"""

import argparse
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from benchmarks.gpu.machine import Machine, open_machine
from benchmarks.gpu.served import pair_figures
from benchmarks.gpu.serving_plan import FULL, TINY, Plan
from benchmarks.gpu.table import Figure, default_path, render, write, write_markdown
from benchmarks.process import Contestant, ContestantError


def main(argv: Sequence[str] | None = None) -> int:
    """Run the parts, print a table of each as it comes, write the figures; returns the exit code."""
    options = parse(argv)
    machine, plan = (Machine(torch.device("cpu")), TINY) if options.tiny else (measured_machine(), FULL)
    figures: list[Figure] = []
    complete = True
    for part in options.parts:
        started = time.monotonic()
        try:
            found = PARTS[part](machine, plan)
        except (ImportError, ContestantError) as error:
            print(f"\n{complaint(part, error)}", flush=True)
            complete = False
            continue
        print(f"\n{part}, {time.monotonic() - started:.0f} s\n\n{render(found)}", flush=True)
        figures += found
        if machine.is_timed:  # after each part: what comes later may be cut short
            save(options.output, options.parts, figures, machine)
    if options.tiny:
        print("\nTiny: this shows that everything runs; its figures mean nothing, so there are none.")
    return 0 if complete else 1


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving_gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="run everything once, tiny, on the CPU")
    parser.add_argument("--parts", type=parts, default=list(PARTS), help="some of step,host,pair (default: all)")
    parser.add_argument("--output", type=Path, help="folder for the figures (default: benchmarks/results)")
    return parser.parse_args(argv)


def parts(text: str) -> list[str]:
    """Return the parts that a comma-separated list names, in the order in which they run.

    Raises:
        ArgumentTypeError: one is unknown.
    """
    names = text.split(",")
    if not set(names) <= set(PARTS):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of {', '.join(PARTS)}")
    return [name for name in PARTS if name in names]


def measured_machine() -> Machine:
    """Return the GPU with its limits; this process keeps no memory there, which the parts' processes need.

    Raises:
        SystemExit: there is no GPU, or no op is built for it.
    """
    with open_machine(emulated=False) as machine:
        torch.cuda.empty_cache()
        return machine


def complaint(part: str, error: ImportError | ContestantError) -> str:
    """Return why a part has no figures: a sentence where something is not installed, else all that is known."""
    text = "".join(traceback.format_exception_only(error)) if isinstance(error, ImportError) else str(error)
    kind, _, reason = text.strip().splitlines()[-1].partition(": ")
    if kind in ("ImportError", "ModuleNotFoundError"):
        return f"{part}: skipped, since it needs what is not here: {reason}."
    return f"{part}: failed.\n{text}"


def save(folder: Path | None, names: Sequence[str], figures: Sequence[Figure], machine: Machine) -> None:
    """Write JSON and Markdown, named after the device and after the parts where they are not all."""
    some = "" if list(names) == list(PARTS) else "-" + "-".join(names)
    default = default_path(machine, f"serving{some}")
    path = default if folder is None else folder / default.name
    command = "python -m benchmarks.serving_gpu" + (f" --parts {','.join(names)}" if some else "")
    write(path, figures, machine, command)
    write_markdown(path.with_suffix(".md"), figures, machine, command)


def alone(target: str) -> Callable[[Machine, Plan], list[Figure]]:
    """Return a part that runs as a class of one process."""

    def run(machine: Machine, plan: Plan) -> list[Figure]:
        contestant = Contestant(target, machine, plan)
        try:
            return contestant.call("figures")
        finally:
            contestant.close()

    return run


PARTS: dict[str, Callable[[Machine, Plan], list[Figure]]] = {
    "step": alone("benchmarks.gpu.decode_step:DecodeSteps"),
    "host": alone("benchmarks.gpu.host_share:HostShares"),
    "pair": pair_figures,
}


def stop(*_: object) -> None:
    """End in order, so that processes and the checkpoint go too; once, for `timeout` signals twice."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(143)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, stop)
    sys.exit(main())
