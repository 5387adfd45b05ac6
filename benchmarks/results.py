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


def write_results(path: Path, rows: Sequence[Row], run: Mapping[str, Any]) -> None:
    """Write {"rows": [...], ...} as JSON, making the folder where needed.

    Args:
        path: file to write.
        rows: in the table's order.
        run: see describe_run.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    document = dict(run) | {"rows": [row.to_json() for row in rows]}
    path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n")
