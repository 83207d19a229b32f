"""Reader of a text file as one document, and detection of text."""

from __future__ import annotations

from typing import TYPE_CHECKING, BinaryIO

from fanout.inputs.documents.lines import BOM
from fanout.inputs.documents.rows import checked, faulty, not_utf8, too_large

if TYPE_CHECKING:
    from fanout.core.records import Document

__all__ = ["is_text", "read_text"]

_SKIP_BYTES = 1_000_000
# The beginnings of binary files that may look like text.
_MAGIC = (b"%PDF", b"{\\rtf", b"PK\x03\x04", b"\x1f\x8b")


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


def is_text(sample: bytes, *, is_whole: bool) -> bool:
    """Say whether the beginning of a file looks like UTF-8 text."""
    if b"\0" in sample or sample.startswith(_MAGIC):
        return False
    try:
        sample.decode()
    except UnicodeDecodeError as error:
        # The sample may end within a character.
        is_cut = error.reason == "unexpected end of data"
        return is_cut and not is_whole
    return True
