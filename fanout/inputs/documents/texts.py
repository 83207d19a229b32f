"""Text files as documents."""

from __future__ import annotations

from typing import TYPE_CHECKING, BinaryIO

from fanout.inputs.documents.lines import BOM
from fanout.inputs.documents.rows import checked, faulty, not_utf8, too_large

if TYPE_CHECKING:
    from fanout.core.records import Document

__all__ = ["read_text"]

_SKIP_BYTES = 1_000_000


def read_text(name: str, index: int, file: BinaryIO, max_bytes: int) -> Document:
    """Return the content of a file as a document."""
    data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        rest = sum(len(part) for part in iter(lambda: file.read(_SKIP_BYTES), b""))
        return faulty(name, index, too_large(len(data) + rest, max_bytes))
    try:
        text = data.removeprefix(BOM).decode()
    except UnicodeDecodeError as error:
        return faulty(name, index, not_utf8(error))
    if "\0" in text:
        return faulty(name, index, "it holds NUL bytes, so it is not text")
    return checked(name, index, text, max_bytes)
