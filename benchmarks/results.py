"""The rows on disk, with what is needed to read them later: command, versions, machine, limits.

Next: checkpoint.py, which makes the model.
"""

import datetime
import json
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.row import Row

LATEST = Path(__file__).resolve().parent / "results" / "latest.json"
_PACKAGES = ("torch", "transformers", "tokenizers", "numpy", "grpcio", "opencv-python-headless", "pillow")


def describe_run(command: Sequence[str], threads: int) -> dict[str, Any]:
    """Return what the figures depend on besides the code.

    Args:
        command: as typed.
        threads: of each process.
    """
    return {
        "command": " ".join(command),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "cpu": cpu_name(Path("/proc/cpuinfo")),
        "threads": threads,
        "dtype": "float32",
        "python": platform.python_version(),
        "versions": {package: version(package) for package in _PACKAGES},
    }


def cpu_name(cpuinfo: Path) -> str:
    """Return the processor's name as Linux tells it, else as Python does."""
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def write_results(path: Path, rows: Sequence[Row], run: Mapping[str, Any], order: Sequence[str]) -> None:
    """Write {"rows": [...], ...} as JSON; rows of the file that were not asked this time stay as they were.

    Each row names the command and date of its own run; what stands beside the rows is of the last run.

    Args:
        path: file to write; its folder is made where needed.
        rows: that were asked.
        run: see describe_run.
        order: names of all rows, in the table's order.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = json.loads(path.read_text())["rows"] if path.is_file() else []
    by_name = {row["name"]: row for row in kept}
    for row in rows:
        by_name[row.name] = row.to_json() | {"command": run["command"], "date": run["date"]}
    document = dict(run) | {"rows": [by_name[name] for name in order if name in by_name]}
    path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n")
