"""Tables as SQLite databases with the table ``outputs``."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

from fanout.runs.tables.columns import ColumnType, distinct

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from fanout.runs.tables.table import Table

__all__ = ["MOST_SQLITE_COLUMNS", "TABLE", "write_sqlite"]

TABLE = "outputs"
# SQLITE_MAX_COLUMN, as it is built by default.
MOST_SQLITE_COLUMNS = 2_000
_TYPES = {
    ColumnType.INTEGER: "INTEGER",
    ColumnType.FLOAT: "REAL",
    ColumnType.BOOLEAN: "BOOLEAN",
    ColumnType.TEXT: "TEXT",
}


def write_sqlite(table: Table, path: Path) -> list[str]:
    """Write a table to an empty file as a database. The file is no database until all is there.

    Raises:
        OSError: The file cannot be written, for example on a full disk.
    """
    # SQL ends at the first NUL; ``ID`` and ``id`` are the same.
    plain = (column.name.replace("\0", "\ufffd") for column in table.columns)
    names = _quoted(distinct(plain, key=str.lower))
    columns = [
        f"{name} {_TYPES[column.type]}" for name, column in zip(names, table.columns, strict=True)
    ]
    places = ", ".join("?" * len(columns))
    try:
        with closing(sqlite3.connect(path, isolation_level=None)) as database:
            # The file gets its name only when it is complete: no journal is needed.
            database.execute("PRAGMA journal_mode = OFF")
            database.execute("PRAGMA synchronous = OFF")
            database.execute("BEGIN")
            database.execute(f"CREATE TABLE {TABLE} ({', '.join(columns)})")
            database.executemany(f"INSERT INTO {TABLE} VALUES ({places})", table.typed_rows())  # noqa: S608 - no name of the user is in it
            database.execute("COMMIT")
    except sqlite3.Error as error:
        raise OSError(0, str(error)) from error
    return []


def _quoted(names: Iterable[str]) -> list[str]:
    return ['"' + name.replace('"', '""') + '"' for name in names]
