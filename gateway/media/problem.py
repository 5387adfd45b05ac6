"""Failures of media work, as plain data that can cross from a pool process.

The pool's processes do not import grpc, and with it the error tree; there a failure is a MediaProblem, which pool.py
turns into the tree's error of the same code.

Next: gateway/media/options.py
"""

from typing import Literal

Code = Literal["INVALID_ARGUMENT", "RESOURCE_EXHAUSTED", "UNIMPLEMENTED"]


class MediaProblem(Exception):
    """Media or media options that cannot be served.

    Args:
        message: One sentence for the caller.
        reason: UPPER_SNAKE, stable.
        field: Path of the field at fault, relative to the media part ("media", "options.num_frames").
        code: Name of the status: wrong input, too much of it, or what this server lacks the means for.
    """

    def __init__(self, message: str, *, reason: str, field: str, code: Code = "INVALID_ARGUMENT") -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason
        self.field = field
        self.code: Code = code
