"""Waiting for a server that is being started, or for a model that is being loaded.

Next: sync_client.py and async_client.py, which poll.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from tessera_client.errors import DeadlineExceeded, NotFound, TesseraError, Unavailable
from tessera_client.results import Model

POLL_S = 0.25
CALL_TIMEOUT_S = 5.0

ReadyCallback = Callable[[Model | None], None]
"""Told after each look: the model as it is, or None while nothing answers."""


class ReadyWatch:
    """Decides after each look whether to go on waiting.

    Args:
        name: model to wait for; None = the only one served.
        timeout: seconds; None = for ever.
        on_progress: told what is there.
        clock: seconds.
    """

    def __init__(
        self,
        name: str | None,
        timeout: float | None,
        on_progress: ReadyCallback | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._name = name
        self._clock = clock
        self._deadline = None if timeout is None else clock() + timeout
        self._on_progress = on_progress
        self._last = "nothing answers"

    def call_timeout(self) -> float:
        """Return seconds for the next look."""
        left = CALL_TIMEOUT_S if self._deadline is None else self._deadline - self._clock()
        return max(0.05, min(CALL_TIMEOUT_S, left))

    def take(self, seen: Sequence[Model] | TesseraError) -> Model | None:
        """Return the model if it is ready, None to look again.

        Args:
            seen: the models that are served, or how the look failed.

        Raises:
            DeadlineExceeded: it is still not ready, and the time is over.
            NotFound: other models are served, and not this one.
            TesseraError: the look failed for good.
        """
        model = None if isinstance(seen, TesseraError) else self._pick(seen)
        if isinstance(seen, TesseraError):
            if not isinstance(seen, Unavailable | DeadlineExceeded):
                raise seen
            self._last = seen.message
        if self._on_progress:
            self._on_progress(model)
        if model is not None and model.ready:
            return model
        if self._deadline is not None and self._clock() >= self._deadline:
            raise DeadlineExceeded(f"The model is still not ready: {self._last}.", reason="NOT_READY") from None
        return None

    def _pick(self, models: Sequence[Model]) -> Model | None:
        named = [model for model in models if self._name in (None, "", model.name)]
        if not named and models:
            names = ", ".join(model.name for model in models)
            raise NotFound(f"Model {self._name!r} is not served here; served are: {names}.")
        self._last = f"{named[0].name} is {named[0].state or 'unknown'}" if named else "no worker has answered yet"
        return named[0] if named else None
