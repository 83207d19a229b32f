"""The rows of a CSV or TSV file; a fault in one row does not affect the others.

Python's ``csv`` reads lines with quotes; lines without are split. An unclosed quote would swallow
all lines after it. So a row of several lines is checked, and if it is implausible, reading goes on
with the first of its lines that looks like a row. Each line is read at most a fixed number of times.
"""

from __future__ import annotations

import csv
import re
from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from fanout.inputs.documents.rows import not_utf8, too_large

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from fanout.inputs.documents.lines import Line

__all__ = ["TAB", "CsvRow", "CsvRows", "Dialect", "is_number"]

TAB = "\t"
_WORDS = {TAB: "tabs"}
_OPEN = "a quote that opens here is not closed"
_CR = "there is a carriage return in the middle of a line"
_ESCAPED = {quote: re.compile(rb"\\([\\" + quote.encode() + rb"])") for quote in "\"'"}
_NUL = "it holds NUL bytes, so it is not text"
# The memory of a buffered line in addition to its bytes.
_LINE_BYTES = 64


class Dialect(msgspec.Struct, frozen=True, kw_only=True):
    """How the cells of a table are written.

    Attributes:
        delimiter: The character between two cells.
        quote: The character around a cell that holds a delimiter, a quote or the end of a line.
        has_escapes: Whether a quote within quotes, and a backslash, have a backslash before them.
        skips_spaces: Whether spaces after a delimiter are no part of the cell.
    """

    delimiter: str = ","
    quote: str = '"'
    has_escapes: bool = False
    skips_spaces: bool = False

    @property
    def delimiter_word(self) -> str:
        """The delimiter in messages."""
        return _WORDS.get(self.delimiter, repr(self.delimiter))

    @property
    def words(self) -> str:
        """All of it in messages."""
        parts = [
            (self.delimiter_word, True),
            ("cells in single quotes", self.quote == "'"),
            ("backslashes before quotes", self.has_escapes),
            ("spaces before cells", self.skips_spaces),
        ]
        return ", ".join(text for text, is_so in parts if is_so)

    def reader(self, lines: Iterable[str]) -> Any:
        """Return Python's reader of lines that may have quotes."""
        return csv.reader(
            lines,
            delimiter=self.delimiter,
            quotechar=self.quote,
            skipinitialspace=self.skips_spaces,
            strict=True,
        )

    def split(self, text: str) -> list[str]:
        """Return the cells of a line, in which a quote is ordinary text."""
        cells = text.rstrip("\r\n").split(self.delimiter)
        return [cell.lstrip(" ") for cell in cells] if self.skips_spaces else cells


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
        dialect: How their cells are written.
        max_bytes: The size above which a row is refused.
        numeric: The columns that hold numbers in all rows of the sample; they distinguish a row
            from a line of text.
    """

    def __init__(
        self,
        lines: Iterator[Line],
        *,
        dialect: Dialect,
        max_bytes: int,
        numeric: tuple[int, ...] = (),
    ) -> None:
        csv.field_size_limit(max(csv.field_size_limit(), max_bytes + 1))
        self._lines = _plain_lines(lines, dialect.quote) if dialect.has_escapes else lines
        self._again: deque[Line] = deque()
        self._dialect = dialect
        self._quote = dialect.quote
        self._delimiter = dialect.delimiter
        self._skips_spaces = dialect.skips_spaces
        self._max_bytes = max_bytes
        self._numeric = numeric
        self._width = 0
        # Up to this line, each line is read as a row of its own: they failed as one row together.
        self._flat_to = 0
        self._single = _SingleLine()
        self._single_reader = dialect.reader(self._single)

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
        cells: list[str]
        try:
            text = data.decode()
            if self._quote in text:
                self._single.append(text)
                cells = next(self._single_reader)
            elif self._skips_spaces:
                cells = self._dialect.split(text)
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
        if (parts := self._rows_between_returns(line)) is not None:
            self._again.extendleft(reversed(parts[1:]))
            line = parts[0]
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

    def _rows_between_returns(self, line: Line) -> list[Line] | None:
        """Return the rows of a line with carriage returns between rows, as mixed line ends have."""
        data = line.data
        if b"\r" not in data.rstrip(b"\r\n") or self._quote.encode() in data or not self._width:
            return None
        parts = [line._replace(data=part, size=len(part)) for part in data.splitlines() if part]
        are_rows = all(self._has_width(self._dialect.split(part.text)) for part in parts)
        return parts if parts and are_rows else None

    def _read(self, line: Line) -> _ReadResult:
        """Read a row that starts at a line, over as many lines as its quotes need."""
        feed = _RowLines(self, line, is_flat=line.number <= self._flat_to, limit=self._max_bytes)
        try:
            cells: list[str] = next(self._dialect.reader(feed), [])
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
        if not self._width or not (self._numeric or self._dialect.delimiter == TAB):
            return False
        inner = [line for line in reading.lines[1:] if line.data.strip()]
        return (
            bool(inner)
            and self._may_be_whole(reading.lines[0])
            and all(map(self._looks_like_row, inner))
        )

    def _may_be_whole(self, line: Line) -> bool:
        """Say whether a line with a quote that opens may be a row by itself.

        Otherwise the row goes on: the last line of a text in the first column looks like a row, too.
        """
        cells = self._dialect.split(line.text)
        if len(cells) < self._width:
            return False
        quoted = (at for at, cell in enumerate(cells) if cell.startswith(self._quote))
        first = next(quoted, self._width)
        # The text after the quote may hold delimiters, so the columns after it count from the end.
        return all(
            is_number(cells[at] if at < first else cells[at - self._width])
            for at in self._numeric
            if at != first
        )

    def _looks_like_row(self, line: Line) -> bool:
        if line.is_too_large:
            return False
        cells = _cells_of(line.text, self._dialect)
        return self._has_width(cells) and all(is_number(cells[at]) for at in self._numeric)

    def _has_width(self, cells: list[str] | None) -> bool:
        return cells is not None and (not self._width or len(cells) == self._width)

    def _literal(self, line: Line) -> list[str] | None:
        """Return the cells of a line with tabs, in which quotes may be ordinary text."""
        if self._dialect.delimiter != TAB or not self._width:
            return None
        cells = self._dialect.split(line.text)
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
        if line.number <= self._flat_to or self._quote.encode() not in line.data:
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


def _cells_of(text: str, dialect: Dialect) -> list[str]:
    """Return the cells of one line; an unclosed quote is ordinary text."""
    if dialect.quote in text:
        try:
            return next(dialect.reader((text,)), [])
        except csv.Error:
            pass
    return dialect.split(text)


def _plain_lines(lines: Iterator[Line], quote: str) -> Iterator[Line]:
    """Yield lines in which a quote is doubled in place of the backslash before it.

    Python's reader would take the backslash from any other character too.
    """
    escaped = _ESCAPED[quote]
    doubled = (quote * 2).encode()
    for line in lines:
        if b"\\" in line.data:
            data = escaped.sub(lambda m: b"\\" if m[1] == b"\\" else doubled, line.data)
            yield line._replace(data=data)
        else:
            yield line


def is_number(cell: str) -> bool:
    """Say whether a cell holds a number."""
    try:
        float(cell.replace(",", "."))
    except ValueError:
        return False
    return True
