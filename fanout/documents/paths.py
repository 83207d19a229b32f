"""Documents in files: which files an input means, and what is in each."""

from __future__ import annotations

import csv
import glob
import json
import sys
from itertools import count
from pathlib import Path
from typing import IO, TYPE_CHECKING, BinaryIO

from fanout.documents.rows import (
    DEFAULT_TEXT_COLUMN,
    checked,
    document_of_row,
    faulty,
    too_large,
)
from fanout.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from fanout.runs import Document

__all__ = ["from_paths"]

_TEXT_SUFFIXES = (".txt", ".md")
_SUFFIXES = (*_TEXT_SUFFIXES, ".jsonl", ".csv")
_STDIN = "-"
_BOM = b"\xef\xbb\xbf"
_SKIP_BYTES = 1_000_000


def from_paths(
    inputs: Sequence[str],
    *,
    text_column: str | None = None,
    max_bytes: int,
    stdin: BinaryIO | None = None,
    base: Path = Path(),
) -> Iterator[Document]:
    """Yield the documents of files, folders, globs and standard input, lazily.

    A text file is one document; a line of a ``.jsonl`` file and a row of a ``.csv`` file is one
    each, named ``path:line``. What is wrong with one document is said in its ``error``.

    Args:
        inputs: Files; folders, searched for .txt, .md, .jsonl and .csv; globs; ``-`` for stdin.
        text_column: The column of rows that holds the text; ``text`` where it is None.
        max_bytes: The size above which a document is refused.
        stdin: What ``-`` reads; the process's own where it is None.
        base: The folder that relative inputs are in; the names of documents leave it out.

    Raises:
        InputError: An input does not exist, holds no text, cannot be read, or lacks the column.
    """
    # All inputs are looked up before the first is read: a typo in the last costs nothing.
    files = list(_files(inputs, base))
    return _read(files, base, text_column, max_bytes, stdin or sys.stdin.buffer)


def _files(inputs: Sequence[str], base: Path) -> Iterator[str]:
    """Yield the names of files, as seen from ``base``."""
    for one in inputs:
        path = base / one
        if one == _STDIN or path.is_file():
            yield one
        elif path.is_dir():
            yield from _folder(one, path)
        elif glob.has_magic(one):
            yield from _glob(one, base)
        elif path.exists():
            raise InputError("is neither a file nor a folder", source=str(path))
        else:
            raise InputError("there is no such file or folder", source=str(path))


def _folder(name: str, folder: Path) -> Iterator[str]:
    found = [
        path.relative_to(folder)
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in _SUFFIXES
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]
    if not found:
        raise InputError(f"no {', '.join(_SUFFIXES)} file in this folder", source=str(folder))
    yield from (str(Path(name) / path) for path in found)


def _glob(pattern: str, base: Path) -> Iterator[str]:
    # Path.glob takes no absolute pattern, and a user's may be one.
    matches = glob.glob(pattern, recursive=True, root_dir=base)  # noqa: PTH207
    found = [path for path in sorted(matches) if (base / path).is_file()]
    if not found:
        raise InputError("no file matches", source=pattern)
    yield from found


def _read(
    files: list[str], base: Path, text_column: str | None, max_bytes: int, stdin: BinaryIO
) -> Iterator[Document]:
    indices = count()
    for name in files:
        if name == _STDIN:
            yield _text("stdin", next(indices), stdin, max_bytes)
            continue
        try:
            with (base / name).open("rb") as file:
                yield from _one_file(name, file, indices, text_column, max_bytes)
        except OSError as error:
            reason = error.strerror or str(error)
            raise InputError(f"cannot be read: {reason}", source=name) from None


def _one_file(
    name: str, file: BinaryIO, indices: count[int], text_column: str | None, max_bytes: int
) -> Iterator[Document]:
    suffix = Path(name).suffix.lower()
    if suffix == ".jsonl":
        column = text_column or DEFAULT_TEXT_COLUMN
        yield from _jsonl(name, file, indices, column, max_bytes)
    elif suffix == ".csv":
        yield from _csv(name, file, indices, text_column, max_bytes)
    else:
        yield _text(name, next(indices), file, max_bytes)


def _text(name: str, index: int, file: BinaryIO, max_bytes: int) -> Document:
    data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        size = len(data) + _skip(lambda: file.read(_SKIP_BYTES))
        return faulty(name, index, too_large(size, max_bytes))
    try:
        return checked(name, index, data.removeprefix(_BOM).decode(), max_bytes)
    except UnicodeDecodeError as error:
        return faulty(name, index, _not_utf8(error))


def _not_utf8(error: UnicodeDecodeError) -> str:
    return f"not valid UTF-8 (byte {error.object[error.start]:#04x} at offset {error.start})"


def _skip(read: Callable[[], bytes]) -> int:
    """Read on without keeping; return how many bytes there were."""
    return sum(len(part) for part in iter(read, b""))


def _lines(file: BinaryIO, max_bytes: int) -> Iterator[tuple[int, bytes, int]]:
    """Yield number, content and size of each line; the content of one too large is empty."""
    for number in count(1):
        line = file.readline(max_bytes + 2)
        if not line:
            return
        size = len(line)
        if size > max_bytes and not line.endswith(b"\n"):
            while part := file.readline(_SKIP_BYTES):
                size += len(part)
                if part.endswith(b"\n"):
                    break
            line = b""
        yield number, line.removeprefix(_BOM) if number == 1 else line, size


def _jsonl(
    name: str, file: BinaryIO, indices: count[int], column: str, max_bytes: int
) -> Iterator[Document]:
    for number, line, size in _lines(file, max_bytes):
        where = f"{name}:{number}"
        if not line and size:
            yield faulty(where, next(indices), too_large(size, max_bytes))
        elif line.strip():
            yield _json_row(where, next(indices), line, column, max_bytes)


def _json_row(where: str, index: int, line: bytes, column: str, max_bytes: int) -> Document:
    try:
        row = json.loads(line.decode())
    except UnicodeDecodeError as error:
        return faulty(where, index, _not_utf8(error))
    except json.JSONDecodeError as error:
        return faulty(where, index, f"not valid JSON: {error.msg} at column {error.colno}")
    except RecursionError:
        return faulty(where, index, "not usable JSON: it is nested too deeply")
    if isinstance(row, str):
        return checked(where, index, row, max_bytes)
    if isinstance(row, dict):
        return document_of_row(where, index, row, column, max_bytes)
    kind = type(row).__name__
    return faulty(where, index, f"a line must be a JSON object or string, not {kind}")


def _csv(
    name: str, file: BinaryIO, indices: count[int], text_column: str | None, max_bytes: int
) -> Iterator[Document]:
    csv.field_size_limit(max(csv.field_size_limit(), max_bytes + 1))
    lines = _CsvLines(file, max_bytes)
    reader = csv.reader(lines, strict=True)
    header = _csv_header(name, reader)
    column = _csv_text_column(name, header, text_column)
    while True:
        lines.begin_row()
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            lines.fault = lines.fault or f"not valid CSV: {error}"
            cells = [""]
            reader = csv.reader(lines, strict=True)
        where = f"{name}:{lines.row_start}"
        if lines.fault:
            yield faulty(where, next(indices), lines.fault)
        elif cells:
            yield _csv_row(where, next(indices), header, cells, column, max_bytes)


def _csv_header(name: str, reader: Iterator[list[str]]) -> list[str]:
    try:
        return next(reader)
    except StopIteration:
        raise InputError("the file is empty; a header row is needed", source=name) from None
    except csv.Error as error:
        raise InputError(f"the header is not valid CSV: {error}", source=name, line=1) from None


def _csv_text_column(name: str, header: list[str], wanted: str | None) -> str:
    column = wanted or (header[0] if len(header) == 1 else DEFAULT_TEXT_COLUMN)
    if column not in header:
        has = ", ".join(header)
        raise InputError(
            f"there is no column {column!r} (it has: {has}); name one with --text-column",
            source=name,
            line=1,
        )
    return column


def _csv_row(
    where: str, index: int, header: list[str], cells: list[str], column: str, max_bytes: int
) -> Document:
    if len(cells) != len(header):
        return faulty(where, index, f"{len(cells)} cells, but the header has {len(header)}")
    row = dict(zip(header, cells, strict=True))
    return document_of_row(where, index, row, column, max_bytes)


class _CsvLines:
    """The lines of a CSV file for its reader; remembers where a row began and what was wrong."""

    def __init__(self, file: IO[bytes], max_bytes: int) -> None:
        self._lines = _lines(file, max_bytes)  # type: ignore[arg-type]
        self._number = 0
        self.row_start = 1
        self.fault: str | None = None
        self._max_bytes = max_bytes

    def begin_row(self) -> None:
        self.row_start = self._number + 1
        self.fault = None

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        self._number, line, size = next(self._lines)
        if not line and size:
            self.fault = too_large(size, self._max_bytes)
            return "\n"
        try:
            return line.decode()
        except UnicodeDecodeError as error:
            self.fault = _not_utf8(error)
            return line.decode("utf-8", "replace")
