"""The rows of a sheet of an Excel workbook as documents.

A workbook is a ZIP archive of XML. openpyxl parses its parts; the rows of the sheet are parsed here
one at a time, as openpyxl's own loop keeps an element of every row, and fills gaps between rows.
"""

from __future__ import annotations

import re
import warnings
from contextlib import contextmanager
from datetime import datetime, time
from typing import TYPE_CHECKING, Any, BinaryIO

import msgspec

from fanout.core.cells import cell_of
from fanout.core.errors import InputError
from fanout.inputs.documents.deadlines import Deadline
from fanout.inputs.documents.extras import extra_module
from fanout.inputs.documents.reading import Checked, still_there
from fanout.inputs.documents.remote import RemoteError, one_line
from fanout.inputs.documents.rows import (
    DEFAULT_TEXT_COLUMN,
    document_of_cells,
    faulty,
    text_column_of,
)
from fanout.inputs.documents.xlsx_archive import BrokenError, load_book

if TYPE_CHECKING:
    from collections.abc import Container, Iterator, Mapping

    from fanout.core.records import Document
    from fanout.inputs.documents.files import InputFile
    from fanout.inputs.documents.reading import Reading

__all__ = ["Sheet", "check_xlsx", "read_xlsx"]

_MOST_ROWS = 1_048_576
_ENCRYPTED = b"\xd0\xcf\x11\xe0"
# Formats of a workbook's own are numbered from here on.
_BUILTIN_FORMATS = 164
# What a format has in quotes, brackets, or behind a sign that makes it a literal or a blank.
_LITERAL = re.compile(r'"[^"]*"|\[[^\]]*\]|[\\_*].')
_TIME = re.compile(r"[hs]", re.IGNORECASE)
_MIDNIGHT = time()


class Sheet(Checked, frozen=True, kw_only=True):
    """The table in a sheet.

    Attributes:
        title: The name of the sheet.
        header_row: The row of its header, from 1.
        columns: The name of each column by its number, from 1.
    """

    title: str = ""
    header_row: int = 1
    columns: Mapping[int, str] = msgspec.field(default_factory=dict)


def check_xlsx(file: InputFile, reading: Reading) -> Sheet:
    """Find the table in a workbook: its header is the first row that is not blank.

    The workbook is a table if a job names the sheet, or if the header has the text column.

    Raises:
        InputError: There is no such sheet, or the sheet that a job names has no such column.
    """
    extra_module("openpyxl", extra="tables", source=file.name)
    try:
        with (
            reading.open_anywhere(file) as opened,
            _workbook(opened, reading.parse_timeout_s) as book,
        ):
            sheet = _sheet_of(file.name, book, reading.sheet)
            row, cells = next(((row, cells) for row, cells in _rows(book, sheet) if cells), (0, {}))
            titles = [one.title for one in book.worksheets]
    except OSError as error:
        return Sheet(fault=f"cannot be read: {error.strerror or error}")
    except BrokenError as error:
        return Sheet(fault=str(error))
    if isinstance(cells, _WrongRow):
        return Sheet(title=sheet.title, fault=f"the header, row {row:,}: {cells.fault}")
    header = _header(cells)
    if not header:
        others = ", ".join(title for title in titles if title != sheet.title)
        hint = f" (the other sheets are: {others}; see sheet)" if others else ""
        fault = f"the sheet {sheet.title!r} is empty; a header row is needed{hint}"
        return Sheet(title=sheet.title, fault=fault)
    wanted = reading.text_column or DEFAULT_TEXT_COLUMN
    names = tuple(header.values())
    if reading.sheet is None and wanted not in names:
        reason = f"the header of the sheet {sheet.title!r} has no column {wanted!r} (it has: "
        return Sheet(title=sheet.title, no_table=f"{reason}{', '.join(names)})")
    where = f"{file.name}, sheet {sheet.title!r}"
    column = text_column_of(where, names, reading.text_column, row)
    return Sheet(
        title=sheet.title,
        header=names,
        header_row=row,
        columns=header,
        text_column=column,
        is_named=reading.text_column is not None or len(names) > 1,
    )


def read_xlsx(
    file: InputFile, table: Sheet, reading: Reading, indices: Iterator[int]
) -> Iterator[Document]:
    """Yield the rows of a sheet as documents, named ``path:row`` as Excel numbers them, lazily.

    Formulas have the values that were stored with them. Of merged cells, the first has the value.
    A cell without a header is in the column of its letter.

    Raises:
        InputError: The file disappeared, or its store does not answer.
    """
    extra_module("openpyxl", extra="tables", source=file.name)
    row = table.header_row
    try:
        with (
            still_there(file.name),
            reading.open_anywhere(file) as opened,
            _workbook(opened, reading.parse_timeout_s) as book,
        ):
            sheet = _sheet_of(file.name, book, table.title)
            for row, cells in _rows(book, sheet):
                if isinstance(cells, _WrongRow):
                    yield faulty(f"{file.name}:{row}", next(indices), cells.fault)
                elif row > table.header_row and cells:
                    name = f"{file.name}:{row}"
                    yield _document(name, next(indices), cells, table, reading.max_bytes)
    except BrokenError as error:
        fault = f"cannot be read after row {row:,}: {error}"
        yield faulty(f"{file.name}:{row + 1}", next(indices), fault)


@contextmanager
def _workbook(file: BinaryIO, timeout_s: float) -> Iterator[Any]:
    """Give the workbook of a file, whose parts have limits. Raises BrokenError."""
    book = None
    try:
        _require_unencrypted(file)
        with warnings.catch_warnings():
            # Of parts that are not read, such as styles and validations.
            warnings.simplefilter("ignore")
            book = load_book(file, Deadline(timeout_s))
            yield book
    except (BrokenError, InputError, RemoteError, FileNotFoundError, GeneratorExit):
        raise
    except Exception as error:  # noqa: BLE001 - openpyxl raises anything for files that are wrong
        reason = one_line(error) if str(error) else type(error).__name__
        raise BrokenError(f"is no whole Excel workbook: {reason}") from None
    finally:
        if book is not None:
            book.close()


def _require_unencrypted(file: BinaryIO) -> None:
    if file.read(len(_ENCRYPTED)) == _ENCRYPTED:
        raise BrokenError("it is encrypted with a password, or an .xls file of before 2007")
    file.seek(0)


def _sheet_of(name: str, book: Any, wanted: str | None) -> Any:
    """Return a worksheet by its name, or by its number from 1. Raises InputError."""
    sheets = book.worksheets
    if not sheets:
        raise BrokenError("the workbook has no sheet with cells")
    if wanted is None:
        return sheets[0]
    for sheet in sheets:
        if sheet.title == wanted:
            return sheet
    if wanted.isdecimal() and 1 <= int(wanted) <= len(sheets):
        return sheets[int(wanted) - 1]
    has = ", ".join(sheet.title for sheet in sheets)
    raise InputError(f"there is no sheet {wanted!r} (it has: {has})", source=name)


def _rows(book: Any, sheet: Any) -> Iterator[tuple[int, dict[int, Any]]]:
    """Yield the number of each row, and its cells that are not empty by their column."""
    from openpyxl.worksheet._reader import DATA_TAG, ROW_TAG, WorkSheetParser
    from openpyxl.xml.functions import iterparse

    with sheet._get_source() as opened:  # noqa: SLF001 - there is no public way
        parser = WorkSheetParser(
            opened,
            sheet._shared_strings,  # noqa: SLF001
            data_only=True,
            epoch=book.epoch,
            date_formats=book._date_formats,  # noqa: SLF001
            timedelta_formats=book._timedelta_formats,  # noqa: SLF001
        )
        days = _day_styles(book)
        data = None
        opened.next_row(has_cells=True)
        for event, element in iterparse(opened, ("start", "end")):
            if event == "start":
                data = element if element.tag == DATA_TAG else data
            elif element.tag == ROW_TAG:
                number, values = _values(parser, element, days)
                if number > _MOST_ROWS:
                    raise BrokenError(f"it has a row {number:,}; Excel has {_MOST_ROWS:,}")
                yield number, values
                opened.next_row(has_cells=bool(values))
                if data is not None:
                    data.clear()
            elif element.tag == DATA_TAG:
                return


class _WrongRow(dict[int, Any]):
    """A row with a cell that cannot be read."""

    def __init__(self, error: Exception) -> None:
        has_no_text = isinstance(error, IndexError)
        self.fault = (
            "a cell refers to a shared text that the workbook does not have"
            if has_no_text
            else "a cell has a place, a type or a value that Excel does not write"
        )
        super().__init__({0: self.fault})


class _Error(str):
    """The error of a formula, such as ``#DIV/0!``."""

    __slots__ = ()


def _day_styles(book: Any) -> frozenset[int]:
    """Return the styles of a workbook that show a date without a time of day."""
    from openpyxl.styles.numbers import builtin_format_code

    found = []
    for style in book._date_formats:  # noqa: SLF001 - there is no public way
        number = book._cell_styles[style].numFmtId  # noqa: SLF001
        own = number - _BUILTIN_FORMATS
        code = builtin_format_code(number) if own < 0 else book._number_formats[own]  # noqa: SLF001
        # Letters in quotes, brackets and behind a backslash are no part of the time.
        if not _TIME.search(_LITERAL.sub("", code or "")):
            found.append(style)
    return frozenset(found)


def _shown(cell: Mapping[str, Any], days: Container[int]) -> Any:
    """Return the value of a cell, a moment without a time of day as its date."""
    value = cell["value"]
    if cell["data_type"] == "e":
        return _Error(value)
    is_day = isinstance(value, datetime) and cell["style_id"] in days
    return value.date() if is_day and value.time() == _MIDNIGHT else value


def _values(parser: Any, element: Any, days: Container[int]) -> tuple[int, dict[int, Any]]:
    """Return the number of a row, and its cells that are not empty by their column.

    ``days`` are the styles that show dates without a time of day.
    """
    try:
        number, cells = parser.parse_row(element)
    except Exception as error:  # noqa: BLE001 - openpyxl raises anything for cells that are wrong
        return parser.row_counter, _WrongRow(error)
    return number, {
        cell["column"]: _shown(cell, days) for cell in cells if cell["value"] not in (None, "")
    }


def _header(cells: dict[int, Any]) -> dict[int, str]:
    """Return the names of columns by their numbers."""
    names = {at: str(cell_of(value)).strip() for at, value in cells.items()}
    return {at: name for at, name in names.items() if name}


def _document(
    name: str, index: int, cells: dict[int, Any], table: Sheet, max_bytes: int
) -> Document:
    row = {column: cells.get(at) for at, column in table.columns.items()}
    text_at = list(row).index(table.text_column)
    text = row.pop(table.text_column)
    columns = {column: cell_of(value) for column, value in row.items()}
    if len(cells) > len(table.columns) or not cells.keys() <= table.columns.keys():
        for at in sorted(cells.keys() - table.columns.keys()):
            columns[_letter(at, table)] = cell_of(cells[at])
    if isinstance(text, _Error):
        fault = f"the column {table.text_column!r} has the error {text}"
        return faulty(name, index, fault, columns, text_at)
    return document_of_cells(
        name,
        index,
        text,
        table.text_column,
        max_bytes,
        columns,
        text_at,
        is_named=table.is_named,
    )


def _letter(at: int, table: Sheet) -> str:
    """Return what a column without a header is called: the letter that Excel shows."""
    from openpyxl.utils import get_column_letter

    letter: str = get_column_letter(at)
    return f"{letter} (column)" if letter in table.columns.values() else letter
