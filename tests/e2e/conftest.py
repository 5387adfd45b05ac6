"""After every test of real processes: nothing is held, no file is left.

Next: tests/e2e/test_meaning.py
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.harness import Pairs


@pytest.fixture(autouse=True)
def nothing_leaks(pairs: Pairs) -> Iterator[None]:
    """Each pair that a test has used is idle after it."""
    yield
    pairs.check_used()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Every test that starts processes is slow, and none may hang."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.slow)
            item.add_marker(pytest.mark.timeout(120))
