"""Documents from rows: the text column, the other columns, and the checks of a document's text."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import msgspec

from fanout.core.cells import cell_of, is_missing
from fanout.core.errors import InputError
from fanout.core.records import Document
from fanout.core.units import byte_size
from fanout.inputs.documents.encodings import GIVE_ENCODING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from fanout.core.cells import Cell

__all__ = [
    "DEFAULT_TEXT_COLUMN",
    "EMPTY",
    "checked",
    "document_of_cells",
    "document_of_row",
    "faulty",
    "longer_than",
    "not_utf8",
    "repeated_column",
    "text_column_of",
    "too_large",
]

DEFAULT_TEXT_COLUMN = "text"
EMPTY = "the document is empty"
_MB = 1_000_000
_UTF16 = (b"\xff\xfe", b"\xfe\xff")


def faulty(
    name: str,
    index: int,
    error: str,
    columns: dict[str, Cell] | None = None,
    text_at: int | None = None,
) -> Document:
    """Return a document that cannot be used, with the reason, and the columns of its row."""
    return Document(name=name, index=index, error=error, columns=columns or {}, text_at=text_at)


def too_large(size: int, max_bytes: int) -> str:
    """Return the error of a document of ``size`` bytes."""
    return f"{byte_size(size)} is {longer_than(max_bytes)}"


def longer_than(max_bytes: int) -> str:
    """Return the limit of a document, for the error of one that is larger."""
    return f"longer than the {max_bytes / _MB:g} MB a document may have"


def not_utf8(error: UnicodeDecodeError) -> str:
    """Return the error of bytes that are not UTF-8."""
    data, at = error.object, error.start
    hint = "it looks like UTF-16: convert it to UTF-8" if data.startswith(_UTF16) else GIVE_ENCODING
    return f"not valid UTF-8 (byte {data[at]:#04x} at offset {at}); {hint}"


def document_of_row(
    name: str, index: int, row: Mapping[str, object], text_column: str, max_bytes: int
) -> Document:
    """Return the document of a row; the cells other than its text become columns."""
    try:
        columns = {str(key): cell_of(value) for key, value in row.items() if key != text_column}
    except (ValueError, TypeError, RecursionError) as error:
        return faulty(name, index, f"a column cannot be used: {type(error).__name__}: {error}")
    if text_column not in row:
        has = ", ".join(map(str, row)) or "none"
        return faulty(
            name,
            index,
            f"the row has no column {text_column!r} (it has: {has}); see text_column",
            columns,
        )
    text_at = list(row).index(text_column)
    return document_of_cells(
        name, index, row[text_column], text_column, max_bytes, columns, text_at
    )


def document_of_cells(
    name: str,
    index: int,
    text: object,
    text_column: str,
    max_bytes: int,
    columns: dict[str, Cell],
    text_at: int,
    *,
    is_named: bool = True,
) -> Document:
    """Return the document of a row whose text is one value, and whose other cells are columns.

    ``is_named`` says that a job reads the text column from every row, so that no row has to name it.
    """
    if not is_named:
        document = document_of_cells(name, index, text, text_column, max_bytes, columns, text_at)
        return msgspec.structs.replace(document, text_column=text_column)
    if isinstance(text, str):
        return checked(name, index, text, max_bytes, columns, text_at)
    if is_missing(text):
        fault = f"the column {text_column!r} is missing ({text})"
    else:
        fault = f"the column {text_column!r} must be a string, not {type(text).__name__}"
    return faulty(name, index, fault, columns, text_at)


def repeated_column(header: Sequence[str], *, may_be_blank: bool = False) -> str | None:
    """Return which column a table has more than once, and at which positions; None if none.

    Args:
        header: The names of the columns.
        may_be_blank: Whether several columns may have no name.
    """
    counts = Counter(header).items()
    twice = [column for column, times in counts if times > 1 and (column or not may_be_blank)]
    if not twice:
        return None
    *places, last = (str(at) for at, column in enumerate(header, 1) if column == twice[0])
    return (
        f"the column {twice[0]!r} more than once, at the positions {', '.join(places)} and {last}: "
        "rename all but one"
    )


def text_column_of(name: str, header: Sequence[str], given: str | None, line: int | None) -> str:
    """Return the column of a table that holds the text.

    Args:
        name: The table, for the error.
        header: The names of its columns.
        given: The ``text_column`` of the job. None is ``text``, or the only column.
        line: Where the header is, for the error, or None.

    Raises:
        InputError: The column does not exist, or a column is there twice.
    """
    if problem := repeated_column(header, may_be_blank=True):
        raise InputError(f"the header has {problem}", source=name)
    column = given or (header[0] if len(header) == 1 else DEFAULT_TEXT_COLUMN)
    if column not in header:
        near = next((name for name in header if name.strip().lower() == column.lower()), None)
        hint = "" if near is None else f"; did you mean {near!r}?"
        raise InputError(
            f"there is no column {column!r} (it has: {', '.join(header)}){hint}; name one with "
            "text_column (--text-column)",
            source=name,
            line=line,
        )
    return column


def checked(
    name: str,
    index: int,
    text: str,
    max_bytes: int,
    columns: dict[str, Cell] | None = None,
    text_at: int | None = None,
) -> Document:
    """Return a document, or a faulty one if the text is empty or too large."""
    if not text or text.isspace():
        blank = faulty(name, index, EMPTY, columns, text_at)
        return blank if text_at is None else msgspec.structs.replace(blank, text=str(text))
    # A character has at most four bytes: most texts need not be encoded for the check.
    if len(text) * 4 > max_bytes:
        size = len(text.encode("utf-8", "surrogatepass"))
        if size > max_bytes:
            return faulty(name, index, too_large(size, max_bytes), columns, text_at)
    # Strings of other libraries, such as numpy, become Python strings.
    return Document(name=name, index=index, text=str(text), columns=columns or {}, text_at=text_at)
