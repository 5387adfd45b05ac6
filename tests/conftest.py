"""What every test shares: transformers finds a torchvision, torch keeps to one thread, servers are shared.

Next: tests/unit/shared/test_tensors.py, then tests/e2e/harness.py and tests/parity/cases.py
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from tests import torchvision_stub
from tests.error_ratios import pytest_sessionfinish, pytest_terminal_summary, pytest_testnodedown

__all__ = ["pairs", "pytest_sessionfinish", "pytest_terminal_summary", "pytest_testnodedown", "tiny"]

if TYPE_CHECKING:
    from tests.e2e.harness import Pairs

# Before any test module imports transformers, which looks for torchvision once.
torchvision_stub.install()
# Tests share their cores with the servers they start.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[Pairs]":
    """Real gateways and workers; equal flags share one pair."""
    from tests.e2e.harness import Pairs

    made = Pairs(tmp_path_factory.mktemp("pairs"))
    yield made
    made.close()


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Tiny random checkpoints by name; they hardly ever end a sequence by themselves.

    "4.57" and "5.x" are Qwen3-VL in either style of config; other names are those of tests/parity/families.py.
    """
    from tests.parity.families import MAKERS
    from tests.tiny_models import VOCAB_SIZE, make_tiny_qwen3vl

    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in made:
            folder = tmp_path_factory.mktemp(f"tiny-{name}")
            if name in MAKERS:
                made[name] = MAKERS[name](folder)
            else:
                made[name] = make_tiny_qwen3vl(folder, style=name, eos_token_ids=(VOCAB_SIZE - 1,))
        return made[name]

    return make
