"""Copies of files from elsewhere, on this machine, up to a size."""

from __future__ import annotations

import errno
from pathlib import PurePosixPath
from typing import IO, Protocol

__all__ = ["TooLargeError", "copy_file", "file_name"]

# A file may be many times larger than its text.
_MOST_BYTES = 1_000_000_000
_PART_BYTES = 1_000_000
# The most that file systems allow, and what is kept of a suffix.
_MOST_NAME_BYTES = 255
_MOST_SUFFIX_BYTES = 32


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


class TooLargeError(OSError):
    """A file is larger than copies may be; the message says so."""

    def __init__(self) -> None:
        message = (
            f"the file has more than the {_MOST_BYTES:,} bytes that are allowed for a file that must "
            "be copied to be read"
        )
        super().__init__(errno.EFBIG, message)


def copy_file(there: _Readable, here: IO[bytes]) -> None:
    """Copy what an open file holds.

    Raises:
        TooLargeError: It is larger than copies may be.
        OSError: It cannot be read, or the copy cannot be written.
    """
    left = _MOST_BYTES
    while data := there.read(_PART_BYTES):
        left -= len(data)
        if left < 0:
            raise TooLargeError
        here.write(data)


def file_name(path: str) -> str:
    """Return the last part of a path of a store as the name of a file on this machine.

    Its suffix is kept, as it may tell the kind of the file.
    """
    name = PurePosixPath(path).name.replace("\0", "_")
    if name in {"", ".", ".."}:
        return "document"
    data = name.encode("utf-8", "surrogatepass")
    if len(data) <= _MOST_NAME_BYTES:
        return name
    suffix = PurePosixPath(name).suffix.encode("utf-8", "surrogatepass")
    suffix = suffix if len(suffix) <= _MOST_SUFFIX_BYTES else b""
    stem = data[: _MOST_NAME_BYTES - len(suffix)].decode("utf-8", "ignore")
    return stem + suffix.decode("utf-8", "ignore")
