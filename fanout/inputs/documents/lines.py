"""The lines of a file as bytes, read in bounded memory."""

from __future__ import annotations

from io import BufferedReader, RawIOBase
from itertools import count
from typing import TYPE_CHECKING, BinaryIO, NamedTuple, cast

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["BOM", "Line", "read_lines", "with_line_feeds"]

BOM = b"\xef\xbb\xbf"
_SKIP_BYTES = 1_000_000


class Line(NamedTuple):
    """One line of a file, numbered from 1, with its end.

    ``data`` is empty if the line is too large; ``size`` is the number of its bytes in any case.
    """

    number: int
    data: bytes
    size: int

    @property
    def is_too_large(self) -> bool:
        """Whether the line was skipped because of its size."""
        return not self.data and self.size > 0

    @property
    def text(self) -> str:
        """The line as text, with replacement characters for invalid UTF-8."""
        return self.data.decode("utf-8", "replace")


def read_lines(file: BinaryIO, max_bytes: int) -> Iterator[Line]:
    """Yield the lines of a file, without a byte order mark."""
    for number in count(1):
        line = file.readline(max_bytes + 2)
        if not line:
            return
        size = len(line)
        if size > max_bytes and not line.endswith(b"\n"):
            while part := file.readline(_SKIP_BYTES):
                size += len(part)
                if part.endswith(b"\n"):
                    break
            line = b""
        yield Line(number, line.removeprefix(BOM) if number == 1 else line, size)


def with_line_feeds(file: BinaryIO) -> BinaryIO:
    """Return a file, whose lines end in carriage returns only, with line feeds in their place."""
    return cast("BinaryIO", BufferedReader(_LineFeeds(file), _SKIP_BYTES))


class _LineFeeds(RawIOBase):
    """The bytes of a file with line feeds in place of carriage returns; it leaves the file open."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def readable(self) -> bool:
        """Say that it can be read."""
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # as it is called
        """Read the next bytes; return their number."""
        data = self._file.read(len(buffer)).replace(b"\r", b"\n")
        buffer[: len(data)] = data
        return len(data)
