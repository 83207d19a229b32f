"""What documents from rows have in common: a text column, and other columns."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from fanout.runs import Document

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["DEFAULT_TEXT_COLUMN", "EMPTY", "checked", "document_of_row", "faulty", "too_large"]

DEFAULT_TEXT_COLUMN = "text"
EMPTY = "the document is empty"
_MB = 1_000_000


def faulty(name: str, index: int, error: str) -> Document:
    """Return a document that cannot be used, and why."""
    return Document(name=name, index=index, error=error)


def too_large(size: int, max_bytes: int) -> str:
    """Return what to say of a document of ``size`` bytes."""
    return f"{size / _MB:.1f} MB is longer than the {max_bytes / _MB:g} MB a document may have"


def document_of_row(
    name: str, index: int, row: Mapping[str, object], text_column: str, max_bytes: int
) -> Document:
    """Return the document of a row, with what is not its text as columns."""
    if text_column not in row:
        has = ", ".join(map(str, row)) or "none"
        return faulty(
            name, index, f"the row has no column {text_column!r} (it has: {has}); see text_column"
        )
    text = row[text_column]
    if not isinstance(text, str):
        kind = type(text).__name__
        return faulty(name, index, f"the column {text_column!r} must be a string, not {kind}")
    columns = {str(key): _cell(value) for key, value in row.items() if key != text_column}
    return checked(name, index, text, max_bytes, columns)


def checked(
    name: str, index: int, text: str, max_bytes: int, columns: dict[str, str] | None = None
) -> Document:
    """Return a document, or a faulty one where the text is empty or too large."""
    if not text.strip():
        return faulty(name, index, EMPTY)
    # A character is at most four bytes: most texts need not be encoded to know.
    if len(text) * 4 > max_bytes:
        size = len(text.encode("utf-8", "surrogatepass"))
        if size > max_bytes:
            return faulty(name, index, too_large(size, max_bytes))
    return Document(name=name, index=index, text=text, columns=columns or {})


def _cell(value: object) -> str:
    if isinstance(value, str):
        return value
    return "" if value is None else json.dumps(value, ensure_ascii=False, default=str)
