"""What the readers of all formats share: how a job reads its inputs, and what the check of a file finds."""

from __future__ import annotations

import io
import os
from contextlib import contextmanager
from pathlib import Path
from tempfile import NamedTemporaryFile, TemporaryFile
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import msgspec

from fanout.core.errors import InputError
from fanout.inputs.documents.copies import copy_file
from fanout.inputs.documents.encodings import Recoded, bom_encoding
from fanout.inputs.documents.packing import UnpackError, unpacked
from fanout.inputs.documents.remote import RemoteError, open_remote
from fanout.inputs.documents.rows import DEFAULT_TEXT_COLUMN, faulty

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from fanout.core.records import Document
    from fanout.inputs.documents.document_files import DocumentFiles
    from fanout.inputs.documents.files import InputFile
    from fanout.inputs.documents.past_runs import OpenRun

__all__ = ["Checked", "Reading", "copied", "still_there", "streamed"]

# A byte order mark has up to four bytes.
_MARK_BYTES = 4


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """How a job reads its inputs.

    Attributes:
        text_column: The column of rows that holds the text; None selects the default.
        delimiter: The character between the cells of a table; None detects it.
        sheet: The sheet of a workbook, by its name or its number from 1; None is the first.
        encoding: The encoding of text without a byte order mark; None is UTF-8.
        parse_timeout_s: Seconds after which a document that is parsed, or the next row of a workbook
            or database, is given up.
        max_bytes: The size above which a document is refused.
        base: The folder of relative inputs.
        open_run: Opens another run as an input; None where runs cannot be read.
        documents: The files that are parsed, in a pass through the input; None outside of one.
    """

    text_column: str | None = None
    delimiter: str | None = None
    sheet: str | None = None
    encoding: str | None = None
    parse_timeout_s: float = 60.0
    max_bytes: int
    base: Path = Path()
    open_run: OpenRun | None = None
    documents: DocumentFiles | None = None

    def path(self, file: InputFile) -> Path:
        """Return where a file is that is on this machine."""
        return self.base / file.place

    def open(self, file: InputFile, *, is_sequential: bool = True) -> BinaryIO:
        """Open a file at its beginning; a compressed one is unpacked. Raises OSError."""
        if file.remote is not None:
            opened = open_remote(file.remote, is_sequential=is_sequential)
        else:
            opened = self.path(file).open("rb")
        return opened if file.packing is None else unpacked(opened, file.packing)

    def as_utf8(self, opened: BinaryIO) -> BinaryIO:
        """Return an open file of another encoding as one of UTF-8."""
        name = self.encoding_of(opened)
        return opened if name is None else io.BufferedReader(Recoded(opened, name))

    def encoding_of(self, opened: BinaryIO) -> str | None:
        """Return the encoding of a file, at its beginning; None if it is UTF-8."""
        peek = getattr(opened, "peek", None)
        name = bom_encoding(peek(_MARK_BYTES) if peek else b"") or self.encoding
        return None if name is None or name.startswith("utf-8") else name

    @contextmanager
    def open_anywhere(self, file: InputFile, *, is_sequential: bool = True) -> Iterator[BinaryIO]:
        """Open a file, to be read at any offset. Raises OSError."""
        with self.open(file, is_sequential=is_sequential) as opened:
            if opened.seekable():
                yield opened
                return
            with TemporaryFile() as copy:
                copy_file(opened, copy)
                copy.seek(0)
                yield cast("BinaryIO", copy)

    @contextmanager
    def on_disk(self, file: InputFile) -> Iterator[Path]:
        """Give the path of a file; one from elsewhere is copied for the time. Raises OSError."""
        if file.remote is None and file.packing is None:
            yield self.path(file)
            return
        with self.open(file) as opened, copied(opened) as path:
            yield path


@contextmanager
def copied(stream: BinaryIO) -> Iterator[Path]:
    """Give the path of a file with the rest of a stream, for the time. Raises OSError."""
    with NamedTemporaryFile() as copy:
        copy_file(stream, copy)
        copy.flush()
        yield Path(copy.name)


class Checked(msgspec.Struct, frozen=True, kw_only=True):
    """What the check of a file found, before any file is read.

    Attributes:
        header: The columns of all its rows; None if they are known only by reading them.
        fault: Why the file cannot be read at all, or None.
        left_out: Which of its parts are left out, for a warning; None if none is.
        no_table: Why a file that may have rows is one document instead, or None.
        text_column: The column that holds the text.
        is_named: Whether the text column is that of the job, and not just the only one.
    """

    header: tuple[str, ...] | None = None
    fault: str | None = None
    left_out: str | None = None
    no_table: str | None = None
    text_column: str = DEFAULT_TEXT_COLUMN
    is_named: bool = True


@contextmanager
def still_there(name: str) -> Iterator[None]:
    """Raise InputError if a file disappears while it is read, or its store does not answer."""
    try:
        yield
    except FileNotFoundError:
        raise InputError("was there, and is gone now", source=name) from None
    except RemoteError as error:
        raise InputError(f"broke while it was read: {error}", source=name) from None


def streamed(
    read: Callable[[InputFile, BinaryIO, Any, Reading, Iterator[int]], Iterator[Document]],
) -> Callable[[InputFile, Any, Reading, Iterator[int]], Iterator[Document]]:
    """Return the reader of a format that is read from an open file, from its beginning to its end.

    A file that cannot be opened is one faulty document.

    Raises:
        InputError: While it is read: the file disappeared, shrank or could not be read to its end.
    """

    def documents(
        file: InputFile, checked: Any, reading: Reading, indices: Iterator[int]
    ) -> Iterator[Document]:
        name = file.name
        try:
            opened = reading.open(file)
        except FileNotFoundError:
            raise InputError("was there, and is gone now", source=name) from None
        except OSError as error:
            yield faulty(name, next(indices), f"cannot be read: {error.strerror or error}")
            return
        try:
            with opened:
                size = _size(opened)
                yield from read(file, opened, checked, reading, indices)
                if size is not None:
                    _require_whole(name, opened, size)
        except UnpackError as error:
            yield faulty(name, next(indices), f"cannot be unpacked to its end: {error}")
        except OSError as error:
            reason = error.strerror or str(error)
            if isinstance(error, RemoteError) and isinstance(error.error, TimeoutError):
                yield faulty(name, next(indices), f"cannot be read to its end: {reason}")
                return
            raise InputError(f"broke while it was read: {reason}", source=name) from None

    return documents


def _size(file: BinaryIO) -> int | None:
    """Return the size of an open file, in bytes; None if it is compressed, or not known."""
    try:
        return os.fstat(file.fileno()).st_size
    except OSError:
        return getattr(getattr(file, "raw", None), "size", None)


def _require_whole(name: str, file: BinaryIO, size: int) -> None:
    """Raise InputError if a file has shrunk, so that a part of it does not pass for the whole."""
    left = min(file.tell(), _size(file) or 0)
    if left < size:
        raise InputError(
            f"shrank while it was read: it had {size:,} bytes, and {left:,} were left", source=name
        )
