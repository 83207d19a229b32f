"""Sorts records that do not fit into memory: the rest waits in files without a name.

Such a file is readable by this user only, needs no clean-up, and goes with the process.
"""

from __future__ import annotations

import errno
import heapq
import marshal
import os
import struct
import sys
from itertools import groupby
from operator import itemgetter
from typing import IO, TYPE_CHECKING, Any

from fanout.core.errors import RunError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Self

__all__ = ["ExternalSorter", "Pile", "Record", "Scratch", "grouped"]

# A key, by which records are sorted, and what it stands for: tuples of plain values.
Record = tuple[tuple[Any, ...], tuple[Any, ...]]

_MEMORY_BYTES = 8_000_000
# The least that work inside other work has.
_LEAST_BYTES = 256_000
# What a record takes beside its key and values.
_RECORD_BYTES = 150
_BLOCK_BYTES = 64_000
# A sorter that has more than this part of the memory makes room for work beside it.
_SHARES = 2
# So many files are merged into one: each that is read has a block in memory.
_FAN_IN = 16
_LENGTH = struct.Struct("<Q")
_key = itemgetter(0)


class Scratch:
    """The memory and the temporary files that a piece of work may use.

    Args:
        memory_bytes: About the most that each of its sorters holds in memory.
        folder: Where files are made; None is the folder for temporary files (``TMPDIR``).
    """

    def __init__(self, *, memory_bytes: int = _MEMORY_BYTES, folder: str | None = None) -> None:
        self.memory_bytes = memory_bytes
        self.folder = folder

    def beside(self, *sorters: ExternalSorter) -> Scratch:
        """Return what is left for work while sorters have records: those with many put them into files."""
        for sorter in sorters:
            sorter.make_room(self.memory_bytes // _SHARES)
        left = self.memory_bytes - sum(sorter.memory_bytes for sorter in sorters)
        least = min(self.memory_bytes, _LEAST_BYTES)
        return Scratch(memory_bytes=max(left, least), folder=self.folder)

    def divided(self, count: int) -> Scratch:
        """Return what each of several sorters has that are in use at once."""
        return Scratch(memory_bytes=self.memory_bytes // count, folder=self.folder)

    def sorter(self) -> ExternalSorter:
        """Return a new sorter."""
        return ExternalSorter(self)

    def pile(self) -> Pile:
        """Return a new pile."""
        return Pile(self)

    def file(self) -> IO[bytes]:
        """Return a new file. Raises RunError: there is no room for it."""
        # Few reduces need a file.
        from tempfile import TemporaryFile

        try:
            return TemporaryFile(dir=self.folder)
        except OSError as error:
            raise no_room(self, error) from error


def no_room(scratch: Scratch, error: OSError) -> RunError:
    """Return the error of a temporary file that cannot be written, for the log of a worker."""
    from tempfile import gettempdir

    folder = scratch.folder or gettempdir()
    advice = ": set TMPDIR to a folder with more room" if error.errno == errno.ENOSPC else ""
    return RunError(f"cannot write temporary files to {folder} ({error.strerror}){advice}")


class ExternalSorter:
    """Takes records in any order, and gives them back by their keys, as often as asked.

    Records with the same key keep the order in which they came.

    Args:
        scratch: What it may use.
    """

    def __init__(self, scratch: Scratch) -> None:
        self._scratch = scratch
        self._held: list[Record] = []
        self._held_bytes = 0
        # The files by level: one of a level has the records of 16 of the level below.
        self._levels: list[list[_Run]] = []

    def add(self, key: tuple[Any, ...], *data: Any) -> None:
        """Take a record. Raises RunError: there is no room for temporary files."""
        self._held.append((key, data))
        self._held_bytes += _RECORD_BYTES + _size_of(key) + _size_of(data)
        if self._held_bytes >= self._scratch.memory_bytes:
            self._spill()

    @property
    def memory_bytes(self) -> int:
        """About the memory that it takes while its records are read."""
        return self._held_bytes + _BLOCK_BYTES * sum(map(len, self._levels))

    def make_room(self, most_bytes: int) -> None:
        """Put the records into files if they take more memory than that; they must not be being read."""
        if self._held_bytes > most_bytes:
            self._spill()

    def _spill(self) -> None:
        if not self._held:
            return
        self._held.sort(key=_key)
        newest = self._levels[0][-1] if self._levels and self._levels[0] else None
        if newest is None or newest.last_key > self._held[0][0]:
            newest = self._add_run(0)
        newest.write(self._held)
        self._held, self._held_bytes = [], 0

    def _add_run(self, level: int) -> _Run:
        if level == len(self._levels):
            self._levels.append([])
        runs = self._levels[level]
        if len(runs) == _FAN_IN:
            self._add_run(level + 1).write(heapq.merge(*runs, key=_key))
            for run in runs:
                run.close()
            runs.clear()
        run = _Run(self._scratch)
        runs.append(run)
        return run

    def __iter__(self) -> Iterator[Record]:
        """Yield the records in order; none may be added meanwhile."""
        if self._levels:
            # Others may need that memory now.
            self._spill()
        self._held.sort(key=_key)
        # The oldest first, as records with the same key keep their order.
        runs: list[Iterable[Record]] = [run for level in reversed(self._levels) for run in level]
        return heapq.merge(*runs, self._held, key=_key) if runs else iter(self._held)

    def close(self) -> None:
        """Give the room back. Safe to call twice."""
        for level in self._levels:
            for run in level:
                run.close()
        self._levels, self._held, self._held_bytes = [], [], 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()


class _Run:
    """Records in order, in a file."""

    def __init__(self, scratch: Scratch) -> None:
        self._scratch = scratch
        self._file = scratch.file()
        self._size = 0
        self.last_key: tuple[Any, ...] = ()

    def write(self, records: Iterable[Record]) -> None:
        """Append records that are in order, and not before those that there are."""
        block: list[Record] = []
        size = 0
        for record in records:
            block.append(record)
            size += _RECORD_BYTES + _size_of(record[0]) + _size_of(record[1])
            if size >= _BLOCK_BYTES:
                self._write(block)
                block, size = [], 0
        if block:
            self._write(block)

    def _write(self, block: list[Record]) -> None:
        self.last_key = block[-1][0]
        data = marshal.dumps(block)
        try:
            self._file.write(_LENGTH.pack(len(data)) + data)
            self._file.flush()
        except OSError as error:
            raise no_room(self._scratch, error) from error
        self._size += _LENGTH.size + len(data)

    def __iter__(self) -> Iterator[Record]:
        at, number = 0, self._file.fileno()
        while at < self._size:
            [length] = _LENGTH.unpack(os.pread(number, _LENGTH.size, at))
            at += _LENGTH.size
            # Nobody else can write this file: it has no name.
            yield from marshal.loads(_read(number, length, at))  # noqa: S302
            at += length

    def close(self) -> None:
        self._file.close()


def _size_of(values: tuple[Any, ...]) -> int:
    """Return about the bytes that values take in memory, with those in tuples."""
    size = sum(map(sys.getsizeof, values))
    for one in values:
        if type(one) is tuple:
            size += _size_of(one)
    return size


def grouped(records: Iterable[Record], at: int = 0) -> Iterator[tuple[Any, Iterator[Record]]]:
    """Yield the records that have the same part of the key, which they are in the order of.

    Those of one part must be read before the next are asked for.
    """
    return groupby(records, key=lambda record: record[0][at])


class Pile:
    """Takes bytes, one piece on top of the other, and gives any of them back.

    Args:
        scratch: What it may use.
    """

    def __init__(self, scratch: Scratch) -> None:
        self._scratch = scratch
        self._file: IO[bytes] | None = None
        self.size = 0

    def add(self, data: bytes) -> None:
        """Take bytes. Raises RunError: there is no room for temporary files."""
        if self._file is None:
            self._file = self._scratch.file()
        try:
            self._file.write(data)
        except OSError as error:
            raise no_room(self._scratch, error) from error
        self.size += len(data)

    def read(self, start: int, end: int) -> Iterator[bytes]:
        """Yield the bytes between two positions, block by block."""
        if self._file is None or start == end:
            return
        try:
            self._file.flush()
        except OSError as error:
            raise no_room(self._scratch, error) from error
        for at in range(start, end, _BLOCK_BYTES):
            yield _read(self._file.fileno(), min(_BLOCK_BYTES, end - at), at)

    def close(self) -> None:
        """Give the room back. Safe to call twice."""
        if self._file is not None:
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()


def _read(number: int, length: int, at: int) -> bytes:
    """Return bytes of a file; one read gives 2 GB at most."""
    data = os.pread(number, length, at)
    while len(data) < length:
        more = os.pread(number, length - len(data), at + len(data))
        if not more:
            raise RunError("a temporary file has been cut off")
        data += more
    return data
