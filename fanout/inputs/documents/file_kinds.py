"""The kinds of files, by their names and by how they begin."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Literal

from fanout.inputs.documents.document_formats import DOCUMENT_SUFFIXES, binary_name, is_document
from fanout.inputs.documents.encodings import bom_encoding
from fanout.inputs.documents.packing import PACKINGS

if TYPE_CHECKING:
    from fanout.inputs.documents.folders import Found

__all__ = [
    "ALLOWED",
    "KINDS",
    "Kind",
    "is_text",
    "kind_by_content",
    "kind_of",
    "kind_of_found",
    "label_of",
    "label_of_file",
    "may_be_text",
    "why_no_text",
]

Kind = Literal[
    "text",
    "document",
    "table",
    "jsonl",
    "json",
    "run",
    "parquet",
    "arrow",
    "dataset",
    "xlsx",
    "sqlite",
]

KINDS: dict[str, Kind] = {
    ".txt": "text",
    ".md": "text",
    ".markdown": "text",
    ".csv": "table",
    ".tsv": "table",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    **dict.fromkeys(DOCUMENT_SUFFIXES, "document"),
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".ipc": "arrow",
    ".xlsx": "xlsx",
    ".xlsm": "xlsx",
    ".sqlite": "sqlite",
    ".sqlite3": "sqlite",
    ".db": "sqlite",
}
# What folders are searched for, in messages: the list of all file extensions would bury the rest.
ALLOWED = (
    "known are text (.txt, .md), tables (.csv, .jsonl, .parquet, ...) and documents (.pdf, .docx, .html, "
    "...)"
)
# Kinds that are read from their beginning to their end, and so may be compressed.
_STREAMED = frozenset({"text", "table", "jsonl", "json"})
# Files of these kinds are looked at before they are read.
_LOOKED_AT = frozenset({None, "table", "jsonl", "json"})
_PACKED = frozenset({*PACKINGS, ".zst", ".zip", ".lz4", ".7z", ".tar", ".tgz"})
# What the beginnings of files say.
_CONTENTS: dict[bytes, Kind] = {
    b"PAR1": "parquet",
    b"ARROW1\0\0": "arrow",
    b"SQLite format 3\0": "sqlite",
}
_SAMPLE_BYTES = 8_192
# The beginnings of binary files that may look like text.
_MAGIC = (b"%PDF", b"{\\rtf", b"PK\x03\x04", b"\x1f\x8b")


def kind_of(name: str) -> tuple[Kind | None, str | None]:
    """Return the kind of a file by its name, and the file extension of its compression."""
    path = PurePath(name.lower())
    if path.suffix not in PACKINGS:
        return KINDS.get(path.suffix), None
    kind = KINDS.get(PurePath(path.stem).suffix)
    return (kind, path.suffix) if kind in _STREAMED else (None, None)


def kind_of_found(found: Found) -> tuple[Kind | None, str | None]:
    """Return the kind and packing of a file that nobody named: many other files end in ``.db``."""
    kind, packing = kind_of(found.name)
    is_database = kind == "sqlite" and found.name.lower().endswith(".db")
    if found.is_file and (is_database or kind in _LOOKED_AT):
        with suppress(OSError):
            kind = kind_by_content(Path(found.path), None if is_database else kind)
    return kind, packing


def kind_by_content(path: Path, kind: Kind | None) -> Kind | None:
    """Return the kind of a file whose name says nothing, or rows of text where there are none.

    That of text and of documents shows when they are read. Raises OSError.
    """
    if kind not in _LOOKED_AT or path.suffix.lower() in _PACKED:
        return kind
    with path.open("rb") as file:
        begin = file.read(max(map(len, _CONTENTS)))
        found = next((kind for magic, kind in _CONTENTS.items() if begin.startswith(magic)), None)
        return found or ("document" if is_document(file) else kind)


def is_text(path: Path, encoding: str | None) -> bool:
    """Say whether a file begins with text. Raises OSError."""
    with path.open("rb") as file:
        sample, is_longer = file.read(_SAMPLE_BYTES), bool(file.read(1))
    if sample.startswith(_MAGIC) or binary_name(sample):
        return False
    if bom_encoding(sample) or encoding:
        return True
    if b"\0" in sample:
        return False
    try:
        sample.decode()
    except UnicodeDecodeError as error:
        # The sample may end within a character.
        return is_longer and error.reason == "unexpected end of data"
    return True


def may_be_text(path: Path, encoding: str | None) -> bool:
    """Say whether a file begins with text, or cannot be read now."""
    try:
        return is_text(path, encoding)
    except OSError:
        return True


def why_no_text(path: Path) -> str:
    """Return why a named file that is no text is not read."""
    suffix = path.suffix.lower()
    way_out = "uncompress it first" if suffix in _PACKED else "convert it to text first"
    return (
        f"is not UTF-8 text, and {suffix or 'such'} files are not supported: {way_out}, or give the "
        f"encoding of a text ({ALLOWED}; and text of any other name)"
    )


def label_of_file(path: Path) -> str:
    """Return the kind of a file for messages: ``.pdf``, ``.jsonl.gz``."""
    if not path.exists():
        return "broken links"
    if not path.is_file():
        return "special files"
    return label_of(path.name)


def label_of(name: str) -> str:
    """Return the kind of a file by its name, for messages."""
    suffixes = [suffix.lower() for suffix in PurePath(name).suffixes[-2:]]
    if not suffixes:
        return "without an extension"
    return "".join(suffixes) if suffixes[-1] in _PACKED else suffixes[-1]
