"""How the worker is set up in all questions of the table, whether as a service or as a bare engine.

Next: contestants/engine.py, contestants/served_pair.py
"""

from collections.abc import Mapping
from pathlib import Path

# The rest are the worker's own defaults. The caches are as large as eight requests need, not a share of the machine.
_OPTIONS: Mapping[str, str | int] = {
    "device": "cpu",
    "dtype": "float32",
    "max_model_len": 2048,
    "kv_cache_bytes": 512 << 20,
    "encoder_cache_bytes": 64 << 20,
    "log_level": "warning",
}


def worker_options(model_dir: Path, threads: int, options: Mapping[str, str | int] = _OPTIONS) -> dict[str, str | int]:
    """Return fields of WorkerSettings.

    Args:
        model_dir: the checkpoint.
        threads: of the arithmetic.
        options: the rest.
    """
    return {"model": str(model_dir), "threads": threads, **options}


def as_flags(options: Mapping[str, str | int]) -> list[str]:
    """Return the same as flags of `python -m worker`."""
    return [text for name, value in options.items() for text in ("--" + name.replace("_", "-"), str(value))]
