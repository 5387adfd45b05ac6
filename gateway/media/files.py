"""Files under one allowed root, opened so that no link swapped in between leads out of it.

Next: gateway/media/fetch.py
"""

import os
import stat
from pathlib import Path

from tessera.errors import InvalidArgument, PermissionDenied, ResourceExhausted

_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


class MediaRoot:
    """The folder under which paths may be opened.

    Args:
        root: None = no path may.
        max_bytes: Of one file.
    """

    def __init__(self, root: str | Path | None, max_bytes: int) -> None:
        self._root = Path(root).resolve() if root else None
        self._max_bytes = max_bytes

    def read(self, path: str) -> bytes:
        """The bytes of a file; blocking.

        Args:
            path: Relative to the root, or absolute inside of it.

        Raises:
            PermissionDenied: PATH_FORBIDDEN: paths are off, or this one leads out of the root.
            InvalidArgument: PATH_UNREADABLE.
            ResourceExhausted: MEDIA_TOO_LARGE.
        """
        if self._root is None:
            raise PermissionDenied("The server opens no paths.", reason="PATH_FORBIDDEN")
        try:
            parts = self._parts_inside(path)
            descriptor = self._open(parts)
        except (OSError, ValueError, RuntimeError) as error:
            raise _unreadable() from error
        try:
            return self._read(descriptor)
        finally:
            os.close(descriptor)

    def _parts_inside(self, path: str) -> tuple[str, ...]:
        """The path's parts below the root, its links resolved."""
        assert self._root is not None
        if "\0" in path:
            raise _unreadable()
        real = (self._root / path).resolve()
        if not real.is_relative_to(self._root):
            raise PermissionDenied("The path leads out of the server's media folder.", reason="PATH_FORBIDDEN")
        return real.relative_to(self._root).parts

    def _open(self, parts: tuple[str, ...]) -> int:
        """Open step by step without following links: they were resolved, and any that is met now is new."""
        assert self._root is not None
        current = os.open(self._root, _FLAGS | os.O_DIRECTORY)
        for number, part in enumerate(parts, start=1):
            try:
                last = os.O_DIRECTORY if number < len(parts) else 0
                following = os.open(part, _FLAGS | last, dir_fd=current)
            finally:
                os.close(current)
            current = following
        return current

    def _read(self, descriptor: int) -> bytes:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise _unreadable()
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            data = file.read(self._max_bytes + 1)
        if len(data) > self._max_bytes:
            message = f"The file has more than {self._max_bytes} bytes."
            raise ResourceExhausted(message, reason="MEDIA_TOO_LARGE", retry_after_s=None)
        return data


def _unreadable() -> InvalidArgument:
    return InvalidArgument("The path names no file that can be read.", reason="PATH_UNREADABLE")
