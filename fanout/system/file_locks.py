"""File locks, which the kernel releases when their process ends, even if it crashes."""

from __future__ import annotations

import fcntl
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["FileLock", "is_held"]


class FileLock:
    """A lock on a file, held until it is released. Safe to release twice.

    Args:
        path: The file; it is created if it does not exist.
        is_shared: Whether other processes may share the lock.
        waits: Whether to wait for the lock.

    Raises:
        BlockingIOError: Another process holds the lock, and ``waits`` is not set.
        OSError: The file cannot be opened.
    """

    def __init__(self, path: Path, *, is_shared: bool = False, waits: bool = True) -> None:
        self._file: int | None = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        kind = fcntl.LOCK_SH if is_shared else fcntl.LOCK_EX
        try:
            fcntl.flock(self._file, kind if waits else kind | fcntl.LOCK_NB)
        except BaseException:
            self.release()
            raise

    @property
    def is_held(self) -> bool:
        """Whether it has not been released."""
        return self._file is not None

    def share(self) -> None:
        """Turn an exclusive lock into a shared one; for a moment, no process holds it."""
        if self._file is not None:
            fcntl.flock(self._file, fcntl.LOCK_SH)

    def release(self) -> None:
        """Release the lock."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def __enter__(self) -> None:
        return None

    def __exit__(self, *_exc: object) -> None:
        self.release()


def is_held(path: Path) -> bool:
    """Return whether any process holds a lock on a file."""
    try:
        FileLock(path, waits=False).release()
    except BlockingIOError:
        return True
    return False
