"""Rows of kernel benchmarks: printed as one table, written as JSON with what is needed to read them later.

Next: benchmarks/vision_kernels.py
"""

import datetime
import json
import math
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.machine import Machine


@dataclass(frozen=True)
class Figure:
    """One measured case.

    Args:
        name: of the op or the question, with its size.
        ms: time of ours.
        limit_ms: the same work at the measured limit.
        limit: which, as "copy bandwidth" or "bf16 product".
        other_ms: of what it is compared with; None where nothing is.
        other: what that is.
        target: least share of the limit, or, with `of_other`, least ratio to the other.
        of_other: whether the target is on the ratio.
        note: further figures.
    """

    name: str
    ms: float
    limit_ms: float
    limit: str
    other_ms: float | None = None
    other: str = ""
    target: float | None = None
    of_other: bool = False
    note: str = ""

    @property
    def share(self) -> float:
        """Share of the limit that is reached."""
        return self.limit_ms / self.ms

    @property
    def ratio(self) -> float:
        """How many times faster than the other."""
        return math.nan if self.other_ms is None else self.other_ms / self.ms

    @property
    def verdict(self) -> str:
        """ "met", "missed", or nothing without a target or a time."""
        if self.target is None or math.isnan(self.ms):
            return ""
        return "met" if (self.ratio if self.of_other else self.share) >= self.target else "missed"


def render(figures: Sequence[Figure]) -> str:
    """Return the table in Markdown; where nothing was timed, a dash stands for all that follows from it."""
    lines = ["| case | ms | share of the limit | beside | target | |", "|---|---|---|---|---|---|"]
    for figure in figures:
        if math.isnan(figure.ms):
            cells = (figure.name, "–", f"of {figure.limit}", figure.other, figure.target or "", figure.note)
            lines.append(f"| {' | '.join(map(str, cells))} |")
            continue
        beside = "" if figure.other_ms is None else f"{figure.ratio:.2f} × {figure.other} ({figure.other_ms:.3f} ms)"
        target = "" if figure.target is None else f"{figure.target:.2f}{' ×' if figure.of_other else ''}"
        share = f"{100 * figure.share:.0f} % of {figure.limit}"
        verdict = " ".join(filter(None, (figure.verdict, figure.note)))
        lines.append(f"| {figure.name} | {figure.ms:.4f} | {share} | {beside} | {target} | {verdict} |")
    return "\n".join(lines)


def write(path: Path, figures: Sequence[Figure], machine: Machine, command: str) -> None:
    """Write all figures, the limits and the versions."""
    document: dict[str, Any] = {
        "command": command,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "device": torch.cuda.get_device_name(machine.device),
        "copy_gbps": round(machine.copy_gbps, 1),
        "bf16_tflops": round(machine.bf16_tflops, 1),
        "versions": {"torch": torch.__version__, "cuda": torch.version.cuda, "python": platform.python_version()},
        "figures": [
            asdict(figure) | {"share": round(figure.share, 4), "verdict": figure.verdict} for figure in figures
        ],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n")


def write_markdown(path: Path, figures: Sequence[Figure], machine: Machine, command: str) -> None:
    """Write the table as it is printed, below what it was measured with."""
    head = (
        f"`{command}` on {torch.cuda.get_device_name(machine.device)}, torch {torch.__version__}, "
        f"{datetime.datetime.now(datetime.UTC).date().isoformat()}; measured in the same run: copy bandwidth "
        f"{machine.copy_gbps:.0f} GB/s, bf16 product {machine.bf16_tflops:.0f} TFLOP/s."
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{head}\n\n{render(figures)}\n")


def default_path(machine: Machine, name: str) -> Path:
    """Return where results of a device go: results/<device>-<name>.json."""
    device = torch.cuda.get_device_name(machine.device).lower().removeprefix("nvidia ").replace(" ", "-")
    return Path(__file__).resolve().parents[1] / "results" / f"{device}-{name}.json"
