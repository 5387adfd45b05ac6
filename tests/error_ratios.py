"""Hooks of pytest: the largest RMS error ratio of each CUDA op and type, after the tests of all processes.

Next: tests/cuda_ops.py
"""

import sys
from collections import defaultdict
from typing import Any

import pytest

_FOUND: dict[str, dict[str, float]] = defaultdict(dict)
_KEY = "error_ratios"


def _take(ratios: dict[str, dict[str, float]]) -> None:
    for op, by_type in ratios.items():
        for dtype, ratio in by_type.items():
            _FOUND[op][dtype] = max(_FOUND[op].get(dtype, 0.0), ratio)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Take what the tests of this process have seen; a process among several hands it on."""
    ops = sys.modules.get("tests.cuda_ops")
    seen = ops.SEEN if ops is not None else {}
    _take({op: {str(dtype).removeprefix("torch."): x for dtype, x in by_type.items()} for op, by_type in seen.items()})
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput[_KEY] = dict(_FOUND)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take what another process has seen."""
    _take(getattr(node, "workeroutput", {}).get(_KEY, {}))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the table."""
    if _FOUND:
        terminalreporter.section("CUDA ops: RMS error ratios", sep="-")
    for op, ratios in sorted(_FOUND.items()):
        cells = (f"{dtype} {ratios[dtype]:.1e}" for dtype in ("float32", "bfloat16", "float16") if dtype in ratios)
        terminalreporter.line(f"{op:<28}" + "   ".join(cells))
