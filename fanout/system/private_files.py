"""Files with documents and answers: written atomically, readable by their user only.

They never follow a symbolic link.
"""

from __future__ import annotations

import os
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["PRIVATE", "UNFINISHED", "finish", "open_unfinished", "whole_file"]

PRIVATE = 0o600
UNFINISHED = ".unfinished"


@contextmanager
def whole_file(path: Path | str, *, mode: int = PRIVATE) -> Iterator[IO[str]]:
    """Open a file for writing, which gets its name when it is complete.

    A symbolic link of that name is replaced; its target does not change.

    Args:
        path: The path of the complete file.
        mode: Its permissions.

    Raises:
        OSError: The file cannot be written; an existing file of that name does not change.
    """
    path = Path(path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with open_unfinished(path.name, folder=folder, mode=mode) as file:
            yield file
            finish(file)
        os.replace(path.name + UNFINISHED, path.name, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException:
        with suppress(OSError):
            os.unlink(path.name + UNFINISHED, dir_fd=folder)
        raise
    finally:
        os.close(folder)


def open_unfinished(name: str, *, folder: int, mode: int = PRIVATE) -> IO[str]:
    """Open the unfinished file of ``name`` in an open folder. Raises OSError."""
    unfinished = name + UNFINISHED
    with suppress(FileNotFoundError):
        # The file of a process that died, or a symbolic link of another user.
        os.unlink(unfinished, dir_fd=folder)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    opened = os.open(unfinished, flags, PRIVATE, dir_fd=folder)
    try:
        os.fchmod(opened, mode)
        return os.fdopen(opened, "w", encoding="utf-8")
    except BaseException:
        os.close(opened)
        raise


def finish(file: IO[str]) -> None:
    """Write a file through to the disk; a full disk may be reported only here."""
    file.flush()
    os.fsync(file.fileno())
