"""From an exception to what the caller may know of it.

Next: worker/engine/output.py
"""

from tessera.errors import ServeError
from worker.engine.output import INTERNAL, SequenceFailure


def failure_of(error: BaseException) -> SequenceFailure:
    """Return our own errors as they are, all others as INTERNAL with a generic text."""
    if isinstance(error, ServeError):
        code, _ = error.code.value
        return SequenceFailure(code, error.reason, error.message, error.field or "")
    return INTERNAL
