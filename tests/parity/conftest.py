"""What the comparisons over gRPC share: pairs on tiny checkpoints, and the oracle on the same files.

Next: tests/parity/test_grpc_chat.py
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.e2e.harness import Pair, Pairs
    from tests.parity.oracle import Oracle

STYLES = ("4.57", "5.x")


@pytest.fixture(scope="session")
def oracle(tiny: Callable[[str], Path]) -> "Callable[[str], Oracle]":
    """transformers on the tiny checkpoint of a style or family; its answers are computed once."""
    from tests.parity.families import FAMILIES
    from tests.parity.oracle import Oracle

    made: dict[str, Oracle] = {}

    def make(name: str) -> Oracle:
        if name not in made:
            kind = FAMILIES[name].oracle if name in FAMILIES else Oracle
            made[name] = kind(tiny(name))
        return made[name]

    return make


@pytest.fixture
def pair_of(pairs: "Pairs", tiny: Callable[[str], Path]) -> "Callable[..., Pair]":
    """The shared pair of a style or family and of flags."""
    from tests.e2e.harness import Flags

    def get(style: str, worker: tuple[str, ...] = (), gateway: tuple[str, ...] = (), workers: int = 1) -> "Pair":
        return pairs.get(Flags(tiny(style), worker, gateway, workers))

    return get


@pytest.fixture(autouse=True)
def nothing_leaks(request: pytest.FixtureRequest) -> Iterator[None]:
    """Each pair that a test has used is idle after it."""
    used = request.getfixturevalue("pairs") if "pairs" in request.fixturenames else None
    yield
    if used is not None:
        used.check_used()
