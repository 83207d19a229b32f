"""The lines of a file as bytes, read in bounded memory."""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["BOM", "Line", "read_lines"]

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
