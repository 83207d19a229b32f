"""The documents of files, folders, globs and standard input, read lazily."""

from __future__ import annotations

import io
import sys
from collections import Counter
from itertools import count, islice
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import msgspec

from fanout.core.errors import InputError
from fanout.core.records import Document
from fanout.inputs.documents.copies import TooLargeError
from fanout.inputs.documents.document_files import DocumentFiles, document_of
from fanout.inputs.documents.document_formats import MAGIC, named_format
from fanout.inputs.documents.files import STDIN, find_files
from fanout.inputs.documents.formats import DOCUMENT, FORMATS
from fanout.inputs.documents.notices import Notice, log_notice
from fanout.inputs.documents.reading import Checked, Reading, copied
from fanout.inputs.documents.rows import faulty
from fanout.inputs.documents.tables import Table
from fanout.inputs.documents.texts import read_text, rows_kind

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterator, Sequence

    from fanout.inputs.documents.files import InputFile
    from fanout.inputs.documents.notices import Notify
    from fanout.inputs.documents.past_runs import OpenRun

__all__ = ["FileSource"]

_NAMED_FILES = 3
_MAGIC_BYTES = 8


class FileSource:
    """The documents of files, folders, globs, URLs and standard input.

    A text file is one document, and so is a file that is parsed, such as a PDF. So is a line of a
    ``.jsonl`` or ``.ndjson`` file and a row of a table (CSV, TSV, Parquet, Arrow, Excel, SQLite, a
    folder of a dataset), named ``path:number``; and an object of a ``.json`` file, named
    ``path#number``. A document that cannot be used has the reason in its ``error``.

    Args:
        inputs: Files; folders, searched for files of known kinds; globs; URLs of these that fsspec
            knows, and of SQLite databases; ``-`` for stdin.
        text_column: The column of rows that holds the text; None is ``text``.
        delimiter: The character between the cells of a ``.csv`` file; None detects it.
        encoding: The encoding of text without a byte order mark; None is UTF-8.
        parse_timeout_s: Seconds after which a document that is parsed is given up.
        sheet: The sheet of workbooks, by its name or its number from 1; None is the first.
        max_bytes: The size above which a document is refused.
        stdin: The stream that ``-`` reads; None is standard input.
        base: The folder of relative inputs; the names of documents leave it out.
        notify: Receives notices of files that are left out, and of detected delimiters.
        open_run: Opens the runs that are inputs.
        parses: Whether it needs the library that parses documents; to list files it does not.

    Raises:
        InputError: An input does not exist, holds no text, or lacks the column; of files that are
            found in a folder or by a pattern, all lack the column of the job. All inputs are
            checked before the first is read, so that a typo in the last one shows at once.
    """

    def __init__(
        self,
        inputs: Sequence[str],
        *,
        text_column: str | None = None,
        delimiter: str | None = None,
        encoding: str | None = None,
        parse_timeout_s: float = 60.0,
        sheet: str | None = None,
        max_bytes: int,
        stdin: BinaryIO | None = None,
        base: Path = Path(),
        notify: Notify = log_notice,
        open_run: OpenRun | None = None,
        parses: bool = True,
    ) -> None:
        self._reading = Reading(
            text_column=text_column,
            delimiter=delimiter,
            encoding=encoding,
            parse_timeout_s=parse_timeout_s,
            sheet=sheet,
            max_bytes=max_bytes,
            base=base,
            open_run=open_run,
        )
        self._stdin, self._notify = stdin, notify
        self._files = find_files(inputs, base, notify, encoding=encoding)
        # By the number of the file, and only what was found: there may be very many files.
        self._checked: dict[int, Checked] = {}
        # Most tables of a folder are alike.
        self._tables: dict[Table, Table] = {}
        # The names of files that are text, though these say otherwise; and that there are more.
        self._texts: set[str] = set()
        # The error of the first file that was found, and whose rows cannot be read.
        self._unfit: InputError | None = None
        for at, file in enumerate(self._files):
            check = FORMATS[file.kind].check
            if check is not None and file.fault is None:
                self._keep(at, self._check(file, check), notify)
        self._require_rows()
        if parses:
            self._require_parser()
        self._report_delimiters(notify)
        for checked in self._checked.values():
            if checked.left_out is not None:
                notify(Notice(text=checked.left_out, is_warning=True))

    def documents(self, only: Container[int] | None = None) -> Iterator[Document]:
        """Yield the documents from the beginning.

        Args:
            only: The numbers of the files to read, from 0 on, if each file is one document; None is all.

        Raises:
            InputError: A file disappeared, shrank or could not be read to its end.
        """
        indices = count()
        chosen = [at for at in range(len(self._files)) if only is None or at in only]
        files = (self._files[at] for at in chosen)
        parsed = (one for one in files if one.kind == DOCUMENT and one.fault is None)
        documents = DocumentFiles(parsed, self._reading, notes=self._note_text)
        reading = msgspec.structs.replace(self._reading, documents=documents)
        try:
            for at in chosen:
                given = indices if only is None else count(at)
                yield from self._documents_of(at, reading, given)
        finally:
            documents.close()

    def places(self, only: Container[int] | None = None) -> Iterator[tuple[str, str]]:
        """Yield the name and the absolute path, or the URL, of each file; each is one document.

        Args:
            only: The numbers of the files, from 0 on; None is all.
        """
        for file in self._chosen(only):
            remote = file.remote
            here = self._reading.base / file.place
            yield file.name, str(here.absolute()) if remote is None else remote.url

    def require_places(self, only: Container[int] | None = None) -> None:
        """Make sure that each file is one document, as ``places`` says.

        Args:
            only: As for ``places``.

        Raises:
            InputError: A file has rows, or is compressed.
        """
        for file in self._chosen(only):
            has_rows = "text_column" in FORMATS[file.kind].fields
            if has_rows or file.packing is not None:
                what = "has rows" if has_rows else "is compressed"
                raise InputError(
                    f"{what}; such files are read by the client: leave it out of the inputs, or "
                    "leave read_on out",
                    source=file.name,
                )

    def _chosen(self, only: Container[int] | None) -> Iterator[InputFile]:
        return (file for at, file in enumerate(self._files) if only is None or at in only)

    @property
    def is_lasting(self) -> bool:
        """Whether the source can be read twice: standard input cannot."""
        return all(file.name != STDIN for file in self._files)

    def named(self) -> list[Document] | None:
        """Return the documents without their texts; None if a file may be several documents.

        Nothing is read for it.
        """
        if any("text_column" in FORMATS[file.kind].fields for file in self._files):
            return None
        if not self.is_lasting:
            return None
        return [Document(name=file.name, index=at) for at, file in enumerate(self._files)]

    def uses(self, field: str) -> bool:
        """Say whether a field that says how to read inputs has an effect on any file."""
        if field == "encoding" and any(named_format(one.name) == "html" for one in self._files):
            return True
        return any(field in FORMATS[file.kind].fields for file in self._files)

    def _require_parser(self) -> None:
        first = next((file for file in self._files if file.kind == DOCUMENT), None)
        if first is not None:
            from fanout.inputs.documents.parsing import require_parser

            require_parser(first.name)

    @property
    def has_only_rows(self) -> bool:
        """Whether all files are tables or lines: no document needs a parser."""
        return all("text_column" in FORMATS[file.kind].fields for file in self._files)

    def why_empty(self) -> str:
        """Return why there is no document at all."""
        if not self._files:
            return "there is no input: give inputs (files, folders, globs), or chunks"
        reasons = [
            f"{file.name} has a header and no row below it"
            if at in self._checked
            else f"{file.name} holds no document"
            for at, file in enumerate(islice(self._files, _NAMED_FILES))
        ]
        more = len(self._files) - len(reasons)
        return "; ".join(reasons) + (f"; and {more:,} more" if more else "")

    def columns(self, names: frozenset[str]) -> frozenset[str]:
        """Return which of these columns any row has; it reads no further than needed."""
        found = frozenset[str]()
        for checked in self._checked.values():
            # The text is no column of documents.
            found |= names.intersection(checked.header or ()) - {checked.text_column}
        for at, file in enumerate(self._files):
            if found == names:
                break
            checked_file = self._checked.get(at, Checked())
            is_known = checked_file.header is not None or checked_file.fault is not None
            if is_known or "text_column" not in FORMATS[file.kind].fields:
                continue
            for document in self._documents_of(at, self._reading, count()):
                found |= names.intersection(document.columns)
                if found == names:
                    break
        return found

    def _check(self, file: InputFile, check: Callable[[InputFile, Reading], Checked]) -> Checked:
        """Return what the check of a file finds; a file that nobody named costs itself alone."""
        try:
            return check(file, self._reading)
        except InputError as error:
            if file.is_named:
                raise
            self._unfit = self._unfit or error
            return Checked(fault=error.reason)

    def _require_rows(self) -> None:
        """Raise InputError if the job says how to read rows, and no file has such rows."""
        reading = self._reading
        if self._unfit is None or not (reading.text_column or reading.delimiter or reading.sheet):
            return
        usable = (
            at
            for at, file in enumerate(self._files)
            if "text_column" in FORMATS[file.kind].fields
            and self._checked.get(at, Checked()).fault is None
        )
        if next(usable, None) is None:
            raise self._unfit

    def _keep(self, at: int, checked: Checked, notify: Notify) -> None:
        """Keep what the check of a file found; a workbook without a table becomes a document."""
        file = self._files[at]
        if isinstance(checked, Table):
            self._checked[at] = self._tables.setdefault(checked, checked)
        elif checked.no_table is None:
            self._checked[at] = checked
        else:
            notify(Notice(text=f"reading {file.name} as one document: {checked.no_table}"))
            self._files[at] = msgspec.structs.replace(file, kind=DOCUMENT)

    def _report_delimiters(self, notify: Notify) -> None:
        counts: Counter[str] = Counter()
        for at, table in self._checked.items():
            if isinstance(table, Table) and table.noted is not None:
                counts[table.noted] += 1
                if counts[table.noted] <= _NAMED_FILES:
                    name = self._files[at].name
                    notify(Notice(text=f"reading {name} with {table.noted}"))
        for word, files in counts.items():
            if files > _NAMED_FILES:
                notify(Notice(text=f"reading {files - _NAMED_FILES:,} more files with {word}"))

    def _note_text(self, name: str, instead_of: str) -> None:
        """Say once of the first files that they are read as text, though their names say otherwise."""
        if name in self._texts or len(self._texts) > _NAMED_FILES:
            return
        self._texts.add(name)
        text = f"reading {name} as text: it is not {instead_of}"
        if len(self._texts) > _NAMED_FILES:
            text = "reading more files as text, as they are not what their names say"
        self._notify(Notice(text=text, is_warning=True))

    def _documents_of(self, at: int, reading: Reading, indices: count[int]) -> Iterator[Document]:
        file = self._files[at]
        if file.name == STDIN:
            document = _read_stdin(self._stdin or sys.stdin.buffer, reading, next(indices))
            if (kind := rows_kind(document.text)) is not None:
                text = f"standard input looks like {kind}, and is read as one text: for rows, give a file"
                self._notify(Notice(text=text, is_warning=True))
            yield document
            return
        checked = self._checked.get(at)
        fault = checked.fault if checked is not None else file.fault
        if fault is not None:
            yield faulty(file.name, next(indices), fault)
            return
        yield from FORMATS[file.kind].read(file, checked, reading, indices)


def _read_stdin(stdin: BinaryIO, reading: Reading, index: int) -> Document:
    """Return what standard input holds, as one document."""
    most, name = reading.max_bytes, "stdin"
    head = stdin.read(_MAGIC_BYTES)
    rest = _Joined(head, stdin)
    if reading.documents is None or not head.startswith(MAGIC):
        return read_text(name, index, rest, most, reading.encoding)
    try:
        with copied(rest) as path:
            return document_of(name, index, reading.documents.at(path, name), most)
    except TooLargeError as error:
        return faulty(name, index, str(error.strerror))


class _Joined(io.BytesIO):
    """The beginning of a stream, which has been read, and the rest of it."""

    def __init__(self, head: bytes, rest: BinaryIO) -> None:
        super().__init__(head)
        self._rest = rest

    def read(self, size: int | None = -1) -> bytes:
        """Read as the stream itself would."""
        head = super().read(size)
        left = -1 if size is None or size < 0 else size - len(head)
        return head + self._rest.read(left) if left else head
