"""CSV and TSV files: detection of their format, and their rows as documents."""

from __future__ import annotations

from typing import TYPE_CHECKING, BinaryIO

import msgspec

from fanout.core.errors import InputError
from fanout.core.units import plural
from fanout.inputs.documents.csv_rows import TAB, CsvRows, Dialect, is_number
from fanout.inputs.documents.dialects import detect_dialect, is_tsv
from fanout.inputs.documents.lines import BOM, read_lines, with_line_feeds
from fanout.inputs.documents.reading import Checked
from fanout.inputs.documents.rows import DEFAULT_TEXT_COLUMN, checked, faulty, text_column_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fanout.core.records import Document
    from fanout.inputs.documents.csv_rows import CsvRow

__all__ = ["Table", "detect_table", "read_table"]

_SAMPLE_BYTES = 64_000
# Excel may write its delimiter into a first line of its own.
_EXCEL = b"sep="
_SHOWN_CHARS = 40


class Table(Checked, frozen=True, kw_only=True):
    """The format of a table.

    Attributes:
        dialect: How its cells are written.
        header: The names of its columns.
        numeric: The positions of columns that hold numbers in all rows of the sample.
        skipped: Lines before the header.
        has_cr: Whether its lines end in carriage returns only.
        noted: What a notice should tell of it, as it is neither usual nor given; None if nothing.
    """

    dialect: Dialect = Dialect()
    header: tuple[str, ...] = ()
    numeric: tuple[int, ...] = ()
    skipped: int = 0
    has_cr: bool = False
    noted: str | None = None


def detect_table(
    name: str,
    file: BinaryIO,
    *,
    text_column: str | None,
    delimiter: str | None,
    max_bytes: int,
) -> Table:
    """Detect the format of a table from its header and first rows.

    Args:
        name: The file's name; ``.tsv`` files have tabs.
        file: The file, at its beginning.
        text_column: The text column of the job, or None.
        delimiter: The delimiter of the job; None detects it.
        max_bytes: The size above which a row is refused.

    Raises:
        InputError: The column does not exist, a column is there twice, or the delimiter is
            ambiguous.
    """
    sample, has_cr, fault = _sample_of(file)
    if fault:
        return Table(fault=fault)
    skipped, excels = _excel_delimiter(sample)
    trial = detect_dialect(
        name,
        sample,
        skipped=skipped,
        delimiter=delimiter or excels,
        text_column=text_column or DEFAULT_TEXT_COLUMN,
        max_bytes=max_bytes,
    )
    if trial.fault:
        return Table(fault=f"the header: {trial.fault}")
    if not trial.header:
        return Table(fault="the file is empty; a header row is needed")
    header = _named(trial.header)
    _require_names(name, trial.header, text_column or DEFAULT_TEXT_COLUMN)
    column = text_column_of(name, header, text_column, 1)
    is_named = text_column is not None or len(header) > 1
    usual = Dialect(delimiter=delimiter or (TAB if is_tsv(name) else ","))
    noted = [trial.dialect.words] if trial.dialect != usual else []
    if not is_named and column != DEFAULT_TEXT_COLUMN:
        noted.append(f"its only column, {column[:_SHOWN_CHARS]!r}, as the text")
    return Table(
        dialect=trial.dialect,
        header=header,
        text_column=column,
        numeric=trial.numeric,
        skipped=skipped,
        has_cr=has_cr,
        noted=", ".join(noted) or None,
        is_named=is_named,
    )


def _sample_of(file: BinaryIO) -> tuple[bytes, bool, str | None]:
    """Return the first lines of a file, whether they end in carriage returns only, and any fault."""
    data = file.read(_SAMPLE_BYTES + 1)
    is_longer = len(data) > _SAMPLE_BYTES
    if is_longer and b"\n" not in data and b"\r" not in data:
        return b"", False, f"the header is longer than {_SAMPLE_BYTES // 1_000} kB"
    sample = data[:_SAMPLE_BYTES].removeprefix(BOM)
    has_cr = b"\r" in sample and b"\n" not in sample
    if has_cr:
        sample = sample.replace(b"\r", b"\n")
    if is_longer:
        sample = sample[: sample.rfind(b"\n") + 1] or sample
    return sample, has_cr, _unreadable(sample)


def _named(header: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names of columns; one without a name, as of an index, gets its position."""
    names: list[str] = []
    for at, name in enumerate(header, 1):
        given = name or f"column_{at}"
        while not name and given in {*header, *names}:
            given += "_"
        names.append(given)
    return tuple(names)


def _require_names(name: str, header: tuple[str, ...], text_column: str) -> None:
    """Raise InputError if the first row cannot be the names of columns."""
    if text_column not in header and len(header) > 1 and any(map(is_number, header)):
        shown = ", ".join(header)
        raise InputError(
            f"its first row looks like data, not like the names of columns ({shown}): add a row "
            "with their names above it",
            source=name,
            line=1,
        )


def _unreadable(sample: bytes) -> str | None:
    if sample.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "it is UTF-16, not UTF-8: convert it first"
    return None


def _excel_delimiter(sample: bytes) -> tuple[int, str | None]:
    """Return the number of lines to skip, and the delimiter in Excel's first line, or None."""
    first = sample.partition(b"\n")[0].rstrip(b"\r")
    if first.lower().startswith(_EXCEL) and len(first) == len(_EXCEL) + 1:
        return 1, first[-1:].decode("latin-1")
    return 0, None


def read_table(
    name: str, file: BinaryIO, table: Table, indices: Iterator[int], max_bytes: int
) -> Iterator[Document]:
    """Yield the rows of a table as documents, named ``path:line``, lazily."""
    lines = read_lines(with_line_feeds(file) if table.has_cr else file, max_bytes)
    for _ in range(table.skipped):
        next(lines, None)
    rows = CsvRows(lines, dialect=table.dialect, max_bytes=max_bytes, numeric=table.numeric)
    rows.header()
    header, text_column, width = table.header, table.text_column, len(table.header)
    text_at = header.index(text_column)
    for row in rows:
        where, cells = f"{name}:{row.first}", row.cells
        if row.fault or len(cells) != width:
            yield faulty(where, next(indices), row.fault or _wrong_width(row, width))
            continue
        columns = dict(zip(header, cells))  # noqa: B905 - of one length: see above
        text = columns.pop(text_column)
        document = checked(where, next(indices), text, max_bytes, columns, text_at)
        if not table.is_named:
            document = msgspec.structs.replace(document, text_column=text_column)
        yield document


def _wrong_width(row: CsvRow, width: int) -> str:
    cells = plural(len(row.cells), "cell", "cells")
    lines = f" (lines {row.first} to {row.last})" if row.last > row.first else ""
    return f"{cells}, but the header has {width}{lines}"
