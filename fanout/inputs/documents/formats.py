"""The formats of files: how each is checked and read, and which fields of a job say how.

A new format is a line of ``FORMATS``, a kind in ``file_kinds.Kind``, and its file extensions in
``file_kinds.KINDS``.
"""

from __future__ import annotations

import os
import re
from functools import partial
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import msgspec

from fanout.inputs.documents.arrow_files import (
    check_arrow,
    check_dataset,
    read_arrow,
    read_dataset,
)
from fanout.inputs.documents.copies import TooLargeError
from fanout.inputs.documents.document_files import document_of
from fanout.inputs.documents.document_formats import MAGIC, is_document
from fanout.inputs.documents.json_rows import read_json, read_jsonl
from fanout.inputs.documents.parquet_rows import check_parquet, read_parquet
from fanout.inputs.documents.parsed import Parsed
from fanout.inputs.documents.past_runs import check_run, read_run
from fanout.inputs.documents.reading import copied, streamed
from fanout.inputs.documents.rows import DEFAULT_TEXT_COLUMN
from fanout.inputs.documents.sqlite_rows import check_sqlite, read_sqlite
from fanout.inputs.documents.tables import Table, detect_table, read_table
from fanout.inputs.documents.texts import read_text
from fanout.inputs.documents.xlsx_rows import check_xlsx, read_xlsx

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from fanout.core.records import Document
    from fanout.inputs.documents.file_kinds import Kind
    from fanout.inputs.documents.files import InputFile
    from fanout.inputs.documents.reading import Checked, Reading

__all__ = ["DOCUMENT", "FORMATS", "Format"]

# What a workbook without a table is.
DOCUMENT: Kind = "document"

_TEXT = frozenset({"encoding"})
_ROWS = frozenset({"text_column"})
# Kinds whose files may hold programs, or very much before the next row.
_TIMED = frozenset({"parse_timeout_s"})
_MAGIC_BYTES = 8
_NO_UTF8 = re.compile(r"not valid UTF-8(?: \([^)]*\))?(?:; [^()]*(?:\(--encoding\))?)?")


class Format(NamedTuple):
    """How the files of one kind are read.

    Attributes:
        read: Yields the documents of a file, lazily. It takes the file, the result of the check,
            how the job reads, and the indices of the next documents. It raises InputError if the
            file changed or broke while it was read.
        check: Looks at a file before any file is read. It raises InputError for what ends the run,
            for example a column that does not exist. None: there is nothing to check.
        fields: The fields of a job that say how such files are read. ``text_column`` is one of them
            if the files have rows.
    """

    read: Callable[[InputFile, Any, Reading, Iterator[int]], Iterator[Document]]
    check: Callable[[InputFile, Reading], Checked] | None = None
    fields: frozenset[str] = frozenset()


def _text(
    file: InputFile, opened: BinaryIO, _checked: None, reading: Reading, indices: Iterator[int]
) -> Iterator[Document]:
    documents, peek = reading.documents, getattr(opened, "peek", None)
    # A document whose name says that it is text, or says nothing.
    if documents and peek and peek(_MAGIC_BYTES).startswith(MAGIC):
        if not opened.seekable():
            try:
                with copied(opened) as path:
                    parsed = documents.at(path, file.name)
            except TooLargeError as error:
                parsed = Parsed(error=str(error.strerror))
            yield document_of(file.name, next(indices), parsed, reading.max_bytes)
            return
        if is_document(opened):
            opened.seek(0, os.SEEK_END)
            yield document_of(file.name, next(indices), documents.other(file), reading.max_bytes)
            return
    yield read_text(file.name, next(indices), opened, reading.max_bytes, reading.encoding)


def _document(
    file: InputFile, _checked: None, reading: Reading, indices: Iterator[int]
) -> Iterator[Document]:
    if reading.documents is None:
        msg = "documents are read in a pass through the input"
        raise RuntimeError(msg)
    parsed = reading.documents.next(file.name)
    yield document_of(file.name, next(indices), parsed, reading.max_bytes)


def _check_table(file: InputFile, reading: Reading) -> Table:
    try:
        with reading.open(file) as opened:
            return detect_table(
                file.name,
                reading.as_utf8(opened),
                text_column=reading.text_column,
                delimiter=reading.delimiter,
                max_bytes=reading.max_bytes,
            )
    except OSError as error:
        return Table(fault=f"cannot be read: {error.strerror or error}")


def _table(
    file: InputFile, opened: BinaryIO, table: Table, reading: Reading, indices: Iterator[int]
) -> Iterator[Document]:
    name = reading.encoding_of(opened)
    rows = read_table(file.name, reading.as_utf8(opened), table, indices, reading.max_bytes)
    return _in_encoding(rows, name)


def _json_rows(
    read: Callable[[str, BinaryIO, Iterator[int], str, int], Iterator[Document]],
) -> Callable[[InputFile, Any, Reading, Iterator[int]], Iterator[Document]]:
    """Return the reader of a format whose rows are JSON objects."""

    def rows(
        file: InputFile, opened: BinaryIO, _checked: None, reading: Reading, indices: Iterator[int]
    ) -> Iterator[Document]:
        column = reading.text_column or DEFAULT_TEXT_COLUMN
        name = reading.encoding_of(opened)
        found = read(file.name, reading.as_utf8(opened), indices, column, reading.max_bytes)
        return _in_encoding(found, name)

    return streamed(rows)


def _in_encoding(rows: Iterator[Document], name: str | None) -> Iterator[Document]:
    """Return the rows of a file, in whose errors its own encoding stands in place of UTF-8."""
    return rows if name is None else map(partial(_renamed, name), rows)


def _renamed(name: str, document: Document) -> Document:
    if document.error is None or "not valid UTF-8" not in document.error:
        return document
    error = _NO_UTF8.sub(f"not valid {name}", document.error)
    return msgspec.structs.replace(document, error=error)


FORMATS: Mapping[Kind, Format] = {
    "run": Format(read_run, check_run, _ROWS),
    "text": Format(streamed(_text), fields=_TEXT),
    "document": Format(_document, fields=_TIMED),
    "table": Format(streamed(_table), _check_table, _TEXT | _ROWS | {"delimiter"}),
    "jsonl": Format(_json_rows(read_jsonl), fields=_TEXT | _ROWS),
    "json": Format(_json_rows(read_json), fields=_TEXT | _ROWS),
    "parquet": Format(read_parquet, check_parquet, _ROWS),
    "arrow": Format(read_arrow, check_arrow, _ROWS),
    "dataset": Format(read_dataset, check_dataset, _ROWS),
    "xlsx": Format(read_xlsx, check_xlsx, _ROWS | _TIMED | {"sheet"}),
    "sqlite": Format(read_sqlite, check_sqlite, _ROWS | _TIMED),
}
