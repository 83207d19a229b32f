"""Text files as documents."""

from __future__ import annotations

import csv
import os
import stat
from typing import TYPE_CHECKING, BinaryIO

import msgspec

from fanout.inputs.documents.document_formats import HEAD_BYTES, binary_name
from fanout.inputs.documents.encodings import decoded
from fanout.inputs.documents.headings import headings_of
from fanout.inputs.documents.rows import checked, faulty, longer_than, too_large

if TYPE_CHECKING:
    from fanout.core.records import Document

__all__ = ["is_markdown", "read_text", "rows_kind"]

_SKIP_BYTES = 1_000_000
# What is looked at to find rows in a text, and the least of lines and of columns.
_ROWS_CHARS, _ROWS, _LEAST = 64_000, 20, 2
_NAME_CHARS = 40
_MARKDOWN = (".md", ".markdown")


def _has_size(file: BinaryIO) -> bool:
    """Say whether the size of an open file is known: that of a pipe or a packed file is not."""
    try:
        return stat.S_ISREG(os.fstat(file.fileno()).st_mode)
    except OSError:
        return getattr(getattr(file, "raw", None), "size", None) is not None


def is_markdown(name: str) -> bool:
    """Say whether a file is Markdown, by its name."""
    return name.lower().endswith(_MARKDOWN)


def read_text(
    name: str, index: int, file: BinaryIO, max_bytes: int, encoding: str | None = None
) -> Document:
    """Return the content of a file as a document, with its headings if it is Markdown."""
    data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        if not _has_size(file):
            # It may have no end.
            return faulty(name, index, f"it is {longer_than(max_bytes)}")
        rest = sum(len(part) for part in iter(lambda: file.read(_SKIP_BYTES), b""))
        return faulty(name, index, too_large(len(data) + rest, max_bytes))
    try:
        text = decoded(data, encoding)
    except ValueError as error:
        what = binary_name(data[:HEAD_BYTES])
        return faulty(name, index, f"it is {what}, and not text" if what else str(error))
    document = checked(name, index, text, max_bytes)
    if document.error is None and is_markdown(name):
        return msgspec.structs.replace(document, headings=headings_of(document.text))
    return document


def rows_kind(text: str) -> str | None:
    """Return which rows a text looks like that is about to be read as one; None if none.

    That is JSON lines, or CSV: all rows have as many cells as the first, and none of its is blank.
    """
    lines = [line for line in text[:_ROWS_CHARS].splitlines()[:_ROWS] if line.strip()]
    if len(lines) < _LEAST:
        return None
    if all(line.startswith("{") and line.rstrip().endswith("}") for line in lines):
        return "JSON lines"
    return "CSV" if any(_is_csv(lines, delimiter) for delimiter in ",;\t") else None


def _is_csv(lines: list[str], delimiter: str) -> bool:
    try:
        names, *rows = csv.reader(lines, delimiter=delimiter)
    except csv.Error:
        return False
    if len(names) < _LEAST or not all(name.strip() and len(name) <= _NAME_CHARS for name in names):
        return False
    # Two lines of prose may have one comma each.
    is_sure = len(names) > _LEAST or len(rows) > 1
    return is_sure and all(len(row) == len(names) for row in rows)
