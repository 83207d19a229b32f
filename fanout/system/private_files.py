"""Files that hold documents and answers: whole or not there, of their user alone, by no link."""

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
    """Give a file to write, which gets its name when it is whole.

    A link of that name is replaced, and what it points to is left as it is.

    Args:
        path: What it will be called.
        mode: Who may read it.

    Raises:
        OSError: It cannot be written; what was there before is as it was.
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
    """Open the file in an open folder that will be called ``name``. Raises OSError."""
    unfinished = name + UNFINISHED
    with suppress(FileNotFoundError):
        # What is left of a process that has died, or somebody's link.
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
    """Have what was written reach the disk: a full one may only be noticed here."""
    file.flush()
    os.fsync(file.fileno())
