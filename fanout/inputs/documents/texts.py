"""Text files as documents."""

from __future__ import annotations

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

__all__ = ["is_markdown", "read_text"]

_SKIP_BYTES = 1_000_000
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
