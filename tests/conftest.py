"""What every test shares: transformers finds a torchvision, torch keeps to one thread, servers are shared.

Next: tests/unit/shared/test_tensors.py, then tests/e2e/harness.py and tests/parity/cases.py
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from tests import torchvision_stub

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
    """Tiny random checkpoints, one for each style of config; they hardly ever end a sequence by themselves."""
    from tests.tiny_models import VOCAB_SIZE, make_tiny_qwen3vl

    made: dict[str, Path] = {}

    def make(style: str) -> Path:
        if style not in made:
            folder = tmp_path_factory.mktemp(f"tiny-{style}")
            made[style] = make_tiny_qwen3vl(folder, style=style, eos_token_ids=(VOCAB_SIZE - 1,))
        return made[style]

    return make
