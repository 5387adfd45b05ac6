"""`python -m benchmarks`: makes the model, asks the questions in turn, prints the table, writes the rows.

Next: questions.py
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.checkpoint import ModelSize
from benchmarks.process import Contestant
from benchmarks.questions import QUESTIONS
from benchmarks.results import LATEST, describe_run, write_results
from benchmarks.row import Row
from benchmarks.scale import FULL, QUICK, Scale
from benchmarks.stage import Stage
from benchmarks.table import render


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmarks; returns the exit code, which is 0 for rows that fall short, too."""
    options = parse(argv)
    scale = QUICK if options.quick else FULL
    set_environment(scale.threads)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="tessera-bench-") as folder:
        model_dir = options.model_dir or Path(folder) / "model"
        prepare_model(model_dir, scale.model)
        rows = ask(model_dir, scale, options.only or list(QUESTIONS))
    print(render(rows))
    run = describe_run(recorded(options), scale.threads)
    out = options.out or (LATEST if scale is FULL else None)
    if out is not None:
        write_results(out, rows, run | {"seconds": round(time.monotonic() - started)}, list(QUESTIONS))
    return 0


def recorded(options: argparse.Namespace) -> list[str]:
    """Return the command that gives the same rows anywhere: without the folders of this machine."""
    only = [word for name in options.only or () for word in ("--only", name)]
    return ["python -m benchmarks", *only, *(["--quick"] if options.quick else [])]


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Ratios measured side by side.")
    parser.add_argument(
        "--only",
        action="append",
        choices=sorted(QUESTIONS),
        help="one row; repeat for more; other rows of the file stay as they were",
    )
    parser.add_argument("--quick", action="store_true", help="one short round each: does it run?")
    parser.add_argument("--out", type=Path, help=f"file for the rows; a full run writes {LATEST.name} by itself")
    parser.add_argument("--model-dir", type=Path, help="keep the model here, and use it if it is there")
    return parser.parse_args(argv)


def set_environment(threads: int) -> None:
    """Give all processes that are started from here the same settings, and no network."""
    os.environ |= {
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "TOKENIZERS_PARALLELISM": "false",
    }


def prepare_model(model_dir: Path, size: ModelSize) -> None:
    """Make the checkpoint, in a process whose memory goes away with it, unless it is there."""
    if not (model_dir / "config.json").is_file():
        progress("making the model")
        Contestant("benchmarks.checkpoint:make_checkpoint", model_dir, size).close()


def ask(model_dir: Path, scale: Scale, names: Sequence[str]) -> list[Row]:
    """Return the rows of some questions, in the table's order."""
    rows = []
    with Stage(model_dir, scale) as stage:
        for name in (name for name in QUESTIONS if name in names):
            started = time.monotonic()
            row = QUESTIONS[name](stage)
            progress(f"{name}: {row.ratio:.2f} in {time.monotonic() - started:.0f} s")
            rows.append(row)
    return rows


def progress(text: str) -> None:
    """Tell a waiting person, beside the table."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
