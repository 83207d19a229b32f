"""The formats of table files, by the suffix of their names."""

from __future__ import annotations

import re
from typing import IO, TYPE_CHECKING, NamedTuple

from fanout.core.errors import InputError
from fanout.runs.tables.arrow import require_arrow
from fanout.runs.tables.parquet import write_parquet
from fanout.runs.tables.sqlite import MOST_SQLITE_COLUMNS, write_sqlite
from fanout.runs.tables.text_files import write_csv, write_jsonl, write_tsv
from fanout.runs.tables.xlsx import MOST_XLSX_COLUMNS, MOST_XLSX_ROWS, write_xlsx

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from fanout.runs.tables.table import Table

__all__ = ["FORMATS", "TableFormat", "format_of"]

# A name with such an end is meant to be a file; ``out.v2`` and ``2026.11`` are folders.
_FILE = re.compile(r"\.(?!v\d+$)(?=\w*[a-z])\w{2,8}(?:\.(?:gz|bz2|xz|zst|zip))?$", re.IGNORECASE)


class TableFormat(NamedTuple):
    """How a table is written to a file of one format.

    Attributes:
        write: Writes a table to a new file, which it gets open and by its path; returns what the
            file lacks, in lines for the user. It raises OSError.
        require: Raises InputError where a package is missing.
        most_rows: Rows that it holds; None is any number.
        most_columns: Columns that it holds; None is any number.
    """

    write: Callable[[Table, IO[bytes], Path], list[str]]
    require: Callable[[], object] = lambda: None
    most_rows: int | None = None
    most_columns: int | None = None


def _streamed(
    write: Callable[[Table, IO[bytes]], list[str]],
) -> Callable[[Table, IO[bytes], Path], list[str]]:
    return lambda table, file, _path: write(table, file)


FORMATS: Mapping[str, TableFormat] = {
    ".csv": TableFormat(_streamed(write_csv)),
    ".tsv": TableFormat(_streamed(write_tsv)),
    ".jsonl": TableFormat(_streamed(write_jsonl)),
    ".parquet": TableFormat(_streamed(write_parquet), require_arrow),
    ".xlsx": TableFormat(
        _streamed(write_xlsx), most_rows=MOST_XLSX_ROWS, most_columns=MOST_XLSX_COLUMNS
    ),
    ".sqlite": TableFormat(
        lambda table, _file, path: write_sqlite(table, path), most_columns=MOST_SQLITE_COLUMNS
    ),
}


def format_of(path: Path) -> TableFormat | None:
    """Return the format of a file by its name; None for the name of a folder.

    Raises:
        InputError: The name is that of a file of another format.
    """
    found = FORMATS.get(path.suffix.lower())
    if found is None and path.suffix and _FILE.search(path.name):
        known = ", ".join(FORMATS)
        raise InputError(
            f"ends as no table does ({known}); a folder may have any name that ends in /",
            source=str(path),
        )
    return found
