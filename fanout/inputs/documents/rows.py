"""Documents from rows: the text column, the other columns, and the checks of a document's text."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING

from fanout.core.records import Document

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "DEFAULT_TEXT_COLUMN",
    "EMPTY",
    "checked",
    "document_of_row",
    "faulty",
    "is_missing",
    "not_utf8",
    "too_large",
]

DEFAULT_TEXT_COLUMN = "text"
EMPTY = "the document is empty"
_MB = 1_000_000
# Compared by name: pandas.NA supports no comparison, and pandas is not imported here.
_MISSING = frozenset({"NAType", "NaTType"})
_UTF16 = (b"\xff\xfe", b"\xfe\xff")


def faulty(name: str, index: int, error: str) -> Document:
    """Return a document that cannot be used, with the reason."""
    return Document(name=name, index=index, error=error)


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
    if text_column not in row:
        has = ", ".join(map(str, row)) or "none"
        return faulty(
            name, index, f"the row has no column {text_column!r} (it has: {has}); see text_column"
        )
    text = row[text_column]
    if not isinstance(text, str):
        if is_missing(text):
            return faulty(name, index, f"the column {text_column!r} is missing ({text})")
        kind = type(text).__name__
        return faulty(name, index, f"the column {text_column!r} must be a string, not {kind}")
    try:
        columns = {str(key): _cell(value) for key, value in row.items() if key != text_column}
    except (ValueError, TypeError, RecursionError) as error:
        return faulty(name, index, f"a column cannot be used: {type(error).__name__}: {error}")
    return checked(name, index, text, max_bytes, columns)


def checked(
    name: str, index: int, text: str, max_bytes: int, columns: dict[str, str] | None = None
) -> Document:
    """Return a document, or a faulty one if the text is empty or too large."""
    if not text or text.isspace():
        return faulty(name, index, EMPTY)
    # A character has at most four bytes: most texts need not be encoded for the check.
    if len(text) * 4 > max_bytes:
        size = len(text.encode("utf-8", "surrogatepass"))
        if size > max_bytes:
            return faulty(name, index, too_large(size, max_bytes))
    # Strings of other libraries, such as numpy, become Python strings.
    return Document(name=name, index=index, text=str(text), columns=columns or {})


def is_missing(value: object) -> bool:
    """Say whether a value is missing: None, NaN, or a missing value of pandas."""
    if value is None or type(value).__name__ in _MISSING:
        return True
    return isinstance(value, float) and math.isnan(value)


def _cell(value: object) -> str:
    if isinstance(value, str):
        return str(value)
    if is_missing(value):
        return ""
    if isinstance(value, (bool, int, float, dict, list, tuple)):
        return json.dumps(value, ensure_ascii=False, default=str)
    # Numbers of numpy become JSON numbers; dates and other values become str().
    plain = value.item() if hasattr(value, "item") else value
    return json.dumps(plain) if isinstance(plain, (bool, int, float)) else str(plain)
