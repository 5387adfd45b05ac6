"""Both ways to schedule, for tests of what must not depend on it."""

import pytest

from tests.unit.worker.engine.fakes import Harness


@pytest.fixture(params=[False, True], ids=["in_turn", "async"])
def scheduling(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether steps are launched before the tokens of the one before are known; the default of `Harness` meanwhile."""
    monkeypatch.setattr(Harness, "async_scheduling", request.param)
    return bool(request.param)
