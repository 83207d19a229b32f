"""The documents of files, folders, globs and standard input, read lazily."""

from __future__ import annotations

import os
import sys
from collections import Counter
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from fanout.core.errors import InputError
from fanout.inputs.documents.files import STDIN, find_files
from fanout.inputs.documents.json_rows import read_json, read_jsonl
from fanout.inputs.documents.lines import BOM
from fanout.inputs.documents.notices import Notice, log_notice
from fanout.inputs.documents.rows import (
    DEFAULT_TEXT_COLUMN,
    checked,
    faulty,
    not_utf8,
    too_large,
)
from fanout.inputs.documents.tables import Table, detect_table, read_table

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from fanout.core.records import Document
    from fanout.inputs.documents.files import InputFile
    from fanout.inputs.documents.notices import Notify

__all__ = ["FileSource"]

_NAMED_FILES = 3
_SKIP_BYTES = 1_000_000


class FileSource:
    """The documents of files, folders, globs and standard input.

    A text file is one document. A line of a ``.jsonl`` or ``.ndjson`` file and a row of a ``.csv``
    or ``.tsv`` file is one, named ``path:line``; so is an object of a ``.json`` file, named
    ``path#number``. A document that cannot be used has the reason in its ``error``.

    Args:
        inputs: Files; folders, searched for the kinds above; globs; ``-`` for stdin.
        text_column: The column of rows that holds the text; None is ``text``.
        delimiter: The character between the cells of a ``.csv`` file; None detects it.
        max_bytes: The size above which a document is refused.
        stdin: The stream that ``-`` reads; None is standard input.
        base: The folder of relative inputs; the names of documents leave it out.
        notify: Receives notices of files that are left out, and of detected delimiters.

    Raises:
        InputError: An input does not exist, holds no text, or lacks the column. All inputs are
            checked before the first is read, so that a typo in the last one shows at once.
    """

    def __init__(
        self,
        inputs: Sequence[str],
        *,
        text_column: str | None = None,
        delimiter: str | None = None,
        max_bytes: int,
        stdin: BinaryIO | None = None,
        base: Path = Path(),
        notify: Notify = log_notice,
    ) -> None:
        self._text_column = text_column
        self._delimiter = delimiter
        self._max_bytes = max_bytes
        self._stdin = stdin
        self._base = base
        self._files = find_files(inputs, base, notify)
        self._tables = {
            file.name: self._detect(file)
            for file in self._files
            if file.kind == "table" and file.fault is None
        }
        self._report_delimiters(notify)

    def documents(self) -> Iterator[Document]:
        """Yield the documents from the beginning.

        Raises:
            InputError: A file disappeared, shrank or could not be read to its end.
        """
        indices = count()
        for file in self._files:
            yield from self._documents_of(file, indices)

    @property
    def is_lasting(self) -> bool:
        """Whether the source can be read twice: standard input cannot."""
        return all(file.name != STDIN for file in self._files)

    @property
    def has_tables(self) -> bool:
        """Whether any file is a table with a delimiter."""
        return any(file.kind == "table" for file in self._files)

    @property
    def has_rows(self) -> bool:
        """Whether any file may have rows."""
        return any(file.kind != "text" for file in self._files)

    def why_empty(self) -> str:
        """Return why there is no document at all."""
        if not self._files:
            return "there is no input: give inputs (files, folders, globs), or chunks"
        reasons = [
            f"{file.name} has a header and no row below it"
            if file.kind == "table"
            else f"{file.name} holds no document"
            for file in self._files[:_NAMED_FILES]
        ]
        more = len(self._files) - len(reasons)
        return "; ".join(reasons) + (f"; and {more:,} more" if more else "")

    def columns(self, names: frozenset[str]) -> frozenset[str]:
        """Return which of these columns any row has; it reads no further than needed."""
        found = frozenset(
            column for table in self._tables.values() for column in table.header
        ).intersection(names)
        for file in self._files:
            if file.kind not in {"jsonl", "json"} or found == names:
                continue
            for document in self._documents_of(file, count()):
                found |= names.intersection(document.columns)
                if found == names:
                    break
        return found

    def _detect(self, file: InputFile) -> Table:
        try:
            with (self._base / file.name).open("rb") as opened:
                return detect_table(
                    file.name,
                    opened,
                    text_column=self._text_column,
                    delimiter=self._delimiter,
                    max_bytes=self._max_bytes,
                )
        except OSError as error:
            return Table(fault=f"cannot be read: {error.strerror or error}")

    def _report_delimiters(self, notify: Notify) -> None:
        counts: Counter[str] = Counter()
        for name, table in self._tables.items():
            if table.is_notable and table.fault is None:
                counts[table.delimiter_word] += 1
                if counts[table.delimiter_word] <= _NAMED_FILES:
                    notify(Notice(text=f"reading {name} with {table.delimiter_word}"))
        for word, files in counts.items():
            if files > _NAMED_FILES:
                notify(Notice(text=f"reading {files - _NAMED_FILES:,} more files with {word}"))

    def _documents_of(self, file: InputFile, indices: count[int]) -> Iterator[Document]:
        name = file.name
        if name == STDIN:
            stdin = self._stdin or sys.stdin.buffer
            yield _read_text("stdin", next(indices), stdin, self._max_bytes)
            return
        fault = self._tables[name].fault if name in self._tables else file.fault
        if fault is not None:
            yield faulty(name, next(indices), fault)
            return
        try:
            opened = (self._base / name).open("rb")
        except FileNotFoundError:
            raise InputError("was there, and is gone now", source=name) from None
        except OSError as error:
            yield faulty(name, next(indices), f"cannot be read: {error.strerror or error}")
            return
        try:
            with opened:
                size = os.fstat(opened.fileno()).st_size
                yield from self._read(file, opened, indices)
                _require_whole(name, opened, size)
        except OSError as error:
            reason = error.strerror or str(error)
            raise InputError(f"broke while it was read: {reason}", source=name) from None

    def _read(self, file: InputFile, opened: BinaryIO, indices: count[int]) -> Iterator[Document]:
        column, most = self._text_column or DEFAULT_TEXT_COLUMN, self._max_bytes
        if file.kind == "table":
            yield from read_table(file.name, opened, self._tables[file.name], indices, most)
        elif file.kind == "jsonl":
            yield from read_jsonl(file.name, opened, indices, column, most)
        elif file.kind == "json":
            yield from read_json(file.name, opened, indices, column, most)
        else:
            yield _read_text(file.name, next(indices), opened, most)


def _read_text(name: str, index: int, file: BinaryIO, max_bytes: int) -> Document:
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


def _require_whole(name: str, file: BinaryIO, size: int) -> None:
    """Raise InputError if a file has shrunk, so that a part of it does not pass for the whole."""
    left = min(file.tell(), os.fstat(file.fileno()).st_size)
    if left < size:
        raise InputError(
            f"shrank while it was read: it had {size:,} bytes, and {left:,} were left", source=name
        )
