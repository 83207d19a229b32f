"""The rows of a CSV or TSV file; a fault in one row does not affect the others.

Python's ``csv`` reads lines with quotes; lines without are split. An unclosed quote would swallow
all lines after it. So a row of several lines is checked, and if it is implausible, reading goes on
with the first of its lines that looks like a row. Each line is read at most a fixed number of times.
"""

from __future__ import annotations

import csv
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from fanout.inputs.documents.rows import not_utf8, too_large

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fanout.inputs.documents.lines import Line

__all__ = ["CsvRow", "CsvRows", "is_number"]

TAB = "\t"
_OPEN = "a quote that opens here is not closed"
_CR = "there is a carriage return in the middle of a line"
_NUL = "it holds NUL bytes, so it is not text"
# The memory of a buffered line in addition to its bytes.
_LINE_BYTES = 64


class CsvRow(NamedTuple):
    """One row, on the lines ``first`` to ``last``; without cells if it has a fault."""

    first: int
    last: int
    cells: list[str]
    fault: str | None = None


class _TooLongError(Exception):
    """A row has more bytes than a document may have."""


class _ReadResult(NamedTuple):
    """The result of reading a row that starts at a given line.

    Attributes:
        cells: The cells of the row, or None if it is not valid.
        lines: The lines that were read for it.
        fault: Why it is not valid.
        is_at_end: Whether the reader reached the end of the file or the size limit.
    """

    cells: list[str] | None
    lines: list[Line]
    fault: str | None = None
    is_at_end: bool = False


class CsvRows:
    """The rows of a file, in order.

    Args:
        lines: The lines.
        delimiter: The character between two cells.
        max_bytes: The size above which a row is refused.
        numeric: The columns that hold numbers in all rows of the sample; they distinguish a row
            from a line of text.
    """

    def __init__(
        self,
        lines: Iterator[Line],
        *,
        delimiter: str,
        max_bytes: int,
        numeric: tuple[int, ...] = (),
    ) -> None:
        csv.field_size_limit(max(csv.field_size_limit(), max_bytes + 1))
        self._lines = lines
        self._again: deque[Line] = deque()
        self._delimiter = delimiter
        self._max_bytes = max_bytes
        self._numeric = numeric
        self._width = 0
        # Up to this line, each line is read as a row of its own: they failed as one row together.
        self._flat_to = 0
        self._single = _SingleLine()
        self._single_reader = csv.reader(self._single, delimiter=delimiter, strict=True)

    def header(self) -> CsvRow | None:
        """Return the first row that is not blank, or None."""
        for line in iter(self._take, None):
            row = self._row(line)
            if row.fault or row.cells:
                self._width = len(row.cells)
                return row
        return None

    def __iter__(self) -> Iterator[CsvRow]:
        """Yield the rows after the header, without blank lines."""
        again, lines = self._again, self._lines
        while (line := again.popleft() if again else next(lines, None)) is not None:
            cells = self._plain_cells(line.data)
            if cells is not None:
                yield CsvRow(line.number, line.number, cells)
                continue
            row = self._row(line)
            if row.fault or row.cells:
                yield row

    def _plain_cells(self, data: bytes) -> list[str] | None:
        """Return the cells of a line that is a whole and valid row, as most are, or None."""
        try:
            text = data.decode()
            if '"' in text:
                self._single.append(text)
                cells = next(self._single_reader)
            else:
                cells = text.rstrip("\r\n").split(self._delimiter)
        except (UnicodeDecodeError, csv.Error):
            return None
        if len(cells) != self._width or "\0" in text:
            return None
        if "\r" in text and (text.count("\r") > 1 or not text.endswith("\r\n")):
            return None
        # A blank line is not a row, even if rows have only one cell.
        return cells if self._width > 1 or cells[0] else None

    def _take(self) -> Line | None:
        return self._again.popleft() if self._again else next(self._lines, None)

    def _row(self, line: Line) -> CsvRow:
        if line.is_too_large:
            return CsvRow(line.number, line.number, [], too_large(line.size, self._max_bytes))
        reading = self._read(line)
        first, last = line.number, reading.lines[-1].number
        is_row = reading.cells is not None and not self._swallows_rows(reading)
        if is_row and self._has_width(reading.cells):
            return CsvRow(first, last, reading.cells or [], self._fault_of(reading.lines))
        literal = self._literal(line)
        if literal is not None:
            self._give_back(reading)
            return CsvRow(first, first, literal, self._fault_of([line]))
        if is_row:
            return CsvRow(first, last, reading.cells or [], self._fault_of(reading.lines))
        self._give_back(reading)
        last = self._skip_to_row(first)
        fault = reading.fault or _OPEN
        where = f" (lines {first} to {last})" if last > first else ""
        return CsvRow(first, last, [], f"not valid CSV: {fault}{where}")

    def _read(self, line: Line) -> _ReadResult:
        """Read a row that starts at a line, over as many lines as its quotes need."""
        feed = _RowLines(self, line, is_flat=line.number <= self._flat_to, limit=self._max_bytes)
        try:
            cells = next(csv.reader(feed, delimiter=self._delimiter, strict=True), [])
        except csv.Error as error:
            is_open = len(feed.lines) > 1 or feed.wants_more
            fault = _OPEN if is_open else _CR if "\r" in line.text.rstrip() else str(error)
            return _ReadResult(None, feed.lines, fault, feed.is_at_end)
        except _TooLongError:
            fault = f"{_OPEN} within the size that a document may have"
            return _ReadResult(None, feed.lines, fault, is_at_end=True)
        return _ReadResult(cells, feed.lines)

    def _swallows_rows(self, reading: _ReadResult) -> bool:
        """Say whether all further lines of a row look like rows of their own.

        Prose has commas, too: only tabs, or columns of numbers, distinguish rows from it.
        """
        if not self._width or not (self._numeric or self._delimiter == TAB):
            return False
        inner = [line for line in reading.lines[1:] if line.data.strip()]
        return bool(inner) and all(map(self._looks_like_row, inner))

    def _looks_like_row(self, line: Line) -> bool:
        if line.is_too_large:
            return False
        cells = _cells_of(line.text, self._delimiter)
        return self._has_width(cells) and all(is_number(cells[at]) for at in self._numeric)

    def _has_width(self, cells: list[str] | None) -> bool:
        return cells is not None and (not self._width or len(cells) == self._width)

    def _literal(self, line: Line) -> list[str] | None:
        """Return the cells of a line with tabs, in which quotes may be ordinary text."""
        if self._delimiter != TAB or not self._width:
            return None
        cells = line.text.rstrip("\r\n").split(TAB)
        return cells if len(cells) == self._width else None

    def _give_back(self, reading: _ReadResult) -> None:
        """Queue all lines but the first to be read again, as single lines if they failed as one row."""
        lines = reading.lines
        # The line at which it failed may begin a row; the lines before were in the open quote.
        flat_to = lines[-1].number if reading.is_at_end else lines[-1].number - 1
        self._flat_to = max(self._flat_to, flat_to)
        self._again.extendleft(reversed(lines[1:]))

    def _skip_to_row(self, first: int) -> int:
        """Skip the lines of a row that failed; return the number of the last one."""
        last = first
        if not self._width:
            return last
        for line in iter(self._take, None):
            if line.is_too_large or not self._begins_row(line):
                last = line.number
                continue
            self._again.appendleft(line)
            break
        return last

    def _begins_row(self, line: Line) -> bool:
        if line.number <= self._flat_to or b'"' not in line.data:
            return self._looks_like_row(line)
        reading = self._read(line)
        self._again.extendleft(reversed(reading.lines[1:]))
        if reading.cells is not None and self._has_width(reading.cells):
            return True
        self._flat_to = max(self._flat_to, reading.lines[-1].number - 1)
        return self._literal(line) is not None

    @staticmethod
    def _fault_of(lines: list[Line]) -> str | None:
        for line in lines:
            if b"\0" in line.data:
                return _NUL
            try:
                line.data.decode()
            except UnicodeDecodeError as error:
                return not_utf8(error)
        return None


class _SingleLine(list[str]):
    """The input of Python's reader for a row of one line."""

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        if not self:
            raise StopIteration
        return self.pop()


class _RowLines:
    """The lines of one row for Python's reader, which requests the next while a quote is open."""

    def __init__(self, rows: CsvRows, first: Line, *, is_flat: bool, limit: int) -> None:
        self.lines: list[Line] = []
        self.is_at_end = False
        self.wants_more = False
        self._rows = rows
        self._first = first
        self._is_flat = is_flat
        self._left = limit

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line: Line | None = self._first
        if self.lines:
            self.wants_more = True
            line = None if self._is_flat else self._rows._take()  # noqa: SLF001 - same module
        if line is None:
            self.is_at_end = not self._is_flat
            raise StopIteration
        self.lines.append(line)
        self._left -= line.size + _LINE_BYTES if len(self.lines) > 1 else 0
        if self._left < 0:
            raise _TooLongError
        return line.text


def _cells_of(text: str, delimiter: str) -> list[str]:
    """Return the cells of one line; an unclosed quote is ordinary text."""
    if '"' in text:
        try:
            return next(csv.reader((text,), delimiter=delimiter, strict=True), [])
        except csv.Error:
            pass
    return text.rstrip("\r\n").split(delimiter)


def is_number(cell: str) -> bool:
    """Say whether a cell holds a number."""
    try:
        float(cell.replace(",", "."))
    except ValueError:
        return False
    return True
