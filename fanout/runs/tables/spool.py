"""Where the rows of a table wait until all of its columns are known."""

from __future__ import annotations

import struct
from tempfile import TemporaryFile
from typing import IO, TYPE_CHECKING, Any, Protocol

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import Self

__all__ = ["FileSpool", "MemorySpool", "Spool"]

_BATCH_ROWS = 500
_LENGTH = struct.Struct("<Q")


class Spool(Protocol):
    """Takes rows one after the other, and gives them back in order, as often as asked."""

    def add(self, row: Any) -> None:
        """Take a row of JSON values."""

    def rows(self) -> Iterator[Any]:
        """Yield all rows that it took."""


class MemorySpool:
    """Rows in memory."""

    def __init__(self) -> None:
        self._rows: list[Any] = []

    def add(self, row: Any) -> None:
        """Take a row of JSON values."""
        self._rows.append(row)

    def rows(self) -> Iterator[Any]:
        """Yield all rows that it took."""
        return iter(self._rows)


class FileSpool:
    """Rows in a file without a name, which goes with the process.

    Args:
        folder: Where there is room for it: rows of a run need about as much as their table.

    Raises:
        OSError: From all methods: the file cannot be written, for example on a full disk.
    """

    def __init__(self, folder: Path) -> None:
        self._file: IO[bytes] = TemporaryFile(dir=folder)  # noqa: SIM115 - closed by ``close``
        self._batch: list[Any] = []

    def add(self, row: Any) -> None:
        """Take a row of JSON values."""
        self._batch.append(row)
        if len(self._batch) >= _BATCH_ROWS:
            self._write()

    def _write(self) -> None:
        data = msgspec.msgpack.encode(self._batch)
        self._file.write(_LENGTH.pack(len(data)))
        self._file.write(data)
        self._batch = []

    def rows(self) -> Iterator[Any]:
        """Yield all rows that it took."""
        if self._batch:
            self._write()
        self._file.seek(0)
        while length := self._file.read(_LENGTH.size):
            yield from msgspec.msgpack.decode(self._file.read(*_LENGTH.unpack(length)))

    def close(self) -> None:
        """Give the room back. Safe to call twice."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()
