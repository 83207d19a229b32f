"""CSV and TSV files: detection of their format, and their rows as documents."""

from __future__ import annotations

from io import BytesIO
from typing import TYPE_CHECKING, BinaryIO

import msgspec

from fanout.core.errors import InputError
from fanout.inputs.documents.csv_rows import TAB, CsvRows, is_number
from fanout.inputs.documents.lines import BOM, read_lines
from fanout.inputs.documents.reading import Checked
from fanout.inputs.documents.rows import DEFAULT_TEXT_COLUMN, checked, faulty, text_column_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fanout.core.records import Document
    from fanout.inputs.documents.csv_rows import CsvRow

__all__ = ["Table", "detect_table", "read_table"]

_DELIMITERS = (",", ";", TAB, "|")
_WORDS = {TAB: "tabs"}
_SAMPLE_BYTES = 64_000
# Excel may write its delimiter into a first line of its own.
_EXCEL = b"sep="
# Delimiters whose shares of good rows differ by less than this are ambiguous.
_NEAR = 0.1
_GOOD = 0.5


class Table(Checked, frozen=True, kw_only=True):
    """The format of a table.

    Attributes:
        delimiter: The character between two cells.
        header: The names of its columns.
        numeric: The positions of columns that hold numbers in all rows of the sample.
        skipped: Lines before the header.
        share: The share of rows in the sample, 0 to 1, that have as many cells as the header; 1
            without rows.
        is_notable: Whether a notice should name the delimiter, as it is neither usual nor given.
    """

    delimiter: str = ","
    header: tuple[str, ...] = ()
    numeric: tuple[int, ...] = ()
    skipped: int = 0
    share: float = 1.0
    is_notable: bool = False

    @property
    def delimiter_word(self) -> str:
        """The delimiter in messages."""
        return _WORDS.get(self.delimiter, repr(self.delimiter))


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
    data = file.read(_SAMPLE_BYTES + 1)
    sample, is_whole = data[:_SAMPLE_BYTES].removeprefix(BOM), len(data) <= _SAMPLE_BYTES
    if not is_whole:
        sample = sample[: sample.rfind(b"\n") + 1] or sample
    if fault := _unreadable(sample):
        return Table(fault=fault)
    skipped, excels = _excel_delimiter(sample)
    known = delimiter or (TAB if name.lower().endswith(".tsv") else excels)
    delimiters = (known,) if known else _DELIMITERS
    table = _best(
        name, [_trial(sample, skipped, each, max_bytes) for each in delimiters], text_column
    )
    if table.fault:
        return Table(fault=f"the header: {table.fault}")
    if not table.header:
        return Table(fault="the file is empty; a header row is needed")
    return msgspec.structs.replace(
        table,
        text_column=text_column_of(name, table.header, text_column, 1),
        is_named=text_column is not None or len(table.header) > 1,
        is_notable=table.delimiter != (delimiter or ",") and not name.lower().endswith(".tsv"),
    )


def _unreadable(sample: bytes) -> str | None:
    if sample.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "it is UTF-16, not UTF-8: convert it first"
    if b"\r" in sample and b"\n" not in sample:
        return "its lines end in carriage returns only, as on old Macs: convert it first"
    return None


def _excel_delimiter(sample: bytes) -> tuple[int, str | None]:
    """Return the number of lines to skip, and the delimiter in Excel's first line, or None."""
    first = sample.partition(b"\n")[0].rstrip(b"\r")
    if first.lower().startswith(_EXCEL) and len(first) == len(_EXCEL) + 1:
        return 1, first[-1:].decode("latin-1")
    return 0, None


def _trial(sample: bytes, skipped: int, delimiter: str, max_bytes: int) -> Table:
    """Return the format of a sample with one delimiter."""
    rows = _rows(BytesIO(sample), skipped, delimiter, max_bytes, ())
    head = rows.header()
    if head is None or head.fault:
        return Table(delimiter=delimiter, fault=head.fault if head else None)
    header = tuple(cell.strip() for cell in head.cells)
    if len(header) == 1 and delimiter != ",":
        return Table(delimiter=delimiter, header=header, skipped=skipped, share=0.0)
    good, bad = [], 0
    for row in rows:
        if not row.fault and len(row.cells) == len(header):
            good.append(row.cells)
        else:
            bad += 1
    numeric = [at for at in range(len(header)) if good and all(is_number(row[at]) for row in good)]
    share = len(good) / (len(good) + bad) if good or bad else 1.0
    return Table(
        delimiter=delimiter, header=header, numeric=tuple(numeric), skipped=skipped, share=share
    )


def _best(name: str, trials: list[Table], text_column: str | None) -> Table:
    """Return the best trial: among those that split the header, the one that splits most rows."""
    if len(trials) == 1:
        return trials[0]
    split = [trial for trial in trials if len(trial.header) > 1]
    if not split:
        return trials[0]
    split.sort(key=lambda trial: -trial.share)
    near = [trial for trial in split if split[0].share - trial.share < _NEAR]
    column = text_column or DEFAULT_TEXT_COLUMN
    with_text = [trial for trial in near if column in trial.header]
    if len(near) > 1 and len(with_text) != 1 and split[0].share > _GOOD:
        found = " or ".join(trial.delimiter_word for trial in near)
        raise InputError(
            f"the delimiter between its cells may be {found}; give it as delimiter (--delimiter)",
            source=name,
        )
    return with_text[0] if with_text else split[0]


def _rows(
    file: BinaryIO, skipped: int, delimiter: str, max_bytes: int, numeric: tuple[int, ...]
) -> CsvRows:
    lines = read_lines(file, max_bytes)
    for _ in range(skipped):
        next(lines, None)
    return CsvRows(lines, delimiter=delimiter, max_bytes=max_bytes, numeric=numeric)


def read_table(
    name: str, file: BinaryIO, table: Table, indices: Iterator[int], max_bytes: int
) -> Iterator[Document]:
    """Yield the rows of a table as documents, named ``path:line``, lazily."""
    rows = _rows(file, table.skipped, table.delimiter, max_bytes, table.numeric)
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
    lines = f" (lines {row.first} to {row.last})" if row.last > row.first else ""
    return f"{len(row.cells)} cells, but the header has {width}{lines}"
