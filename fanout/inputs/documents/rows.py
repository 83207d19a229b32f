"""Documents from rows: the text column, the other columns, and the checks of a document's text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fanout.core.cells import cell_of, is_missing
from fanout.core.records import Document

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fanout.core.cells import Cell

__all__ = [
    "DEFAULT_TEXT_COLUMN",
    "EMPTY",
    "checked",
    "document_of_row",
    "faulty",
    "not_utf8",
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
    return f"{size / _MB:.1f} MB is longer than the {max_bytes / _MB:g} MB a document may have"


def not_utf8(error: UnicodeDecodeError) -> str:
    """Return the error of bytes that are not UTF-8."""
    data, at = error.object, error.start
    hint = "; it looks like UTF-16: convert it to UTF-8" if data.startswith(_UTF16) else ""
    return f"not valid UTF-8 (byte {data[at]:#04x} at offset {at}){hint}"


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
    text, text_at = row[text_column], list(row).index(text_column)
    if isinstance(text, str):
        return checked(name, index, text, max_bytes, columns, text_at)
    if is_missing(text):
        fault = f"the column {text_column!r} is missing ({text})"
    else:
        fault = f"the column {text_column!r} must be a string, not {type(text).__name__}"
    return faulty(name, index, fault, columns, text_at)


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
        return faulty(name, index, EMPTY, columns, text_at)
    # A character has at most four bytes: most texts need not be encoded for the check.
    if len(text) * 4 > max_bytes:
        size = len(text.encode("utf-8", "surrogatepass"))
        if size > max_bytes:
            return faulty(name, index, too_large(size, max_bytes), columns, text_at)
    # Strings of other libraries, such as numpy, become Python strings.
    return Document(name=name, index=index, text=str(text), columns=columns or {}, text_at=text_at)
