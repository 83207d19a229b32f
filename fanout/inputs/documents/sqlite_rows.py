"""The rows of a table, or of a query, of a SQLite database as documents."""

from __future__ import annotations

import sqlite3
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from fanout.core.cells import cell_of
from fanout.core.errors import InputError
from fanout.inputs.documents.deadlines import Deadline
from fanout.inputs.documents.reading import Checked, still_there
from fanout.inputs.documents.rows import (
    document_of_cells,
    faulty,
    text_column_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from fanout.core.records import Document
    from fanout.inputs.documents.files import InputFile
    from fanout.inputs.documents.reading import Reading

__all__ = ["SqliteTable", "check_sqlite", "read_sqlite"]

# How long to wait for a program that has locked the database.
_LOCKED_S = 5.0
_SHOWN_TABLES = 12
# The steps of SQLite's machine between two looks at the clock: some milliseconds.
_STEPS = 100_000
# The files beside a database that hold what is not in it yet, or must be undone.
_UNFINISHED = ("-wal", "-journal")
# What a statement may do: read. Anything else, such as ATTACH and PRAGMA, is refused.
_ALLOWED = frozenset(
    {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE}
)

# Also names of a damaged database that are no UTF-8.
_BROKEN = (sqlite3.Error, UnicodeDecodeError)


class SqliteTable(Checked, frozen=True, kw_only=True):
    """What is read of a database.

    Attributes:
        statement: The SQL of its rows.
    """

    statement: str = ""


def check_sqlite(file: InputFile, reading: Reading) -> SqliteTable:
    """Find what to read of a database: the table or query of its URL, or its only table.

    Raises:
        InputError: There is no such table or column; there are several tables, and none is named;
            or the query is wrong.
    """
    deadline = Deadline(reading.parse_timeout_s)
    try:
        with reading.on_disk(file) as path, _connected(path, deadline) as database:
            statement = _statement(file, database)
            if statement is None:
                return SqliteTable(fault=_no_table(file))
            try:
                cursor = database.execute(statement)
            except sqlite3.Error as error:
                if file.sqlite is None or file.sqlite.query is None or _is_busy(error):
                    raise
                reason = _reason(error, deadline)
                raise InputError(f"the query: {reason}", source=file.name) from None
            if cursor.description is None:
                raise InputError("the query has no rows: write a SELECT", source=file.name)
            header = tuple(str(column[0]) for column in cursor.description)
    except _BROKEN as error:
        return SqliteTable(fault=_reason(error, deadline))
    except OSError as error:
        return SqliteTable(fault=f"cannot be read: {error.strerror or error}")
    column = text_column_of(file.name, header, reading.text_column, None)
    return SqliteTable(
        header=header,
        statement=statement,
        text_column=column,
        is_named=reading.text_column is not None or len(header) > 1,
    )


def read_sqlite(
    file: InputFile, table: SqliteTable, reading: Reading, indices: Iterator[int]
) -> Iterator[Document]:
    """Yield rows as documents, named ``path:row``, from 1, lazily, in one transaction.

    Raises:
        InputError: The file disappeared, or its store does not answer.
    """
    row = 0
    deadline = Deadline(reading.parse_timeout_s)
    try:
        with (
            still_there(file.name),
            reading.on_disk(file) as path,
            _connected(path, deadline) as database,
        ):
            cursor = database.execute(table.statement)
            for row, values in enumerate(cursor, 1):
                where = f"{file.name}:{row}"
                yield _document(where, next(indices), values, table, reading.max_bytes)
                deadline.restart()
    except _BROKEN as error:
        fault = f"cannot be read after row {row:,}: {_reason(error, deadline)}"
        yield faulty(f"{file.name}:{row + 1}", next(indices), fault)


@contextmanager
def _connected(path: Path, deadline: Deadline) -> Iterator[sqlite3.Connection]:
    """Open a database for reading only, up to a deadline. Raises FileNotFoundError, sqlite3.Error."""
    if not path.is_file():
        raise FileNotFoundError(path)
    database = _opened(path)
    # A view or a query may never come to a row.
    database.set_progress_handler(lambda: deadline.has_passed, _STEPS)
    deadline.restart()
    try:
        yield database
    finally:
        database.close()


def _opened(path: Path) -> sqlite3.Connection:
    place = f"file:{quote(str(path.absolute()))}?mode=ro"
    database = _connection(place)
    try:
        database.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchall()
    except sqlite3.OperationalError as error:
        database.close()
        # A database in WAL mode needs a file beside it, which a folder without rights cannot have.
        # Without such files nobody writes to it, and nobody died while writing.
        is_alone = not any(path.with_name(path.name + end).exists() for end in _UNFINISHED)
        if _is_busy(error) or not is_alone:
            raise
        return _connection(f"{place}&immutable=1")
    except _BROKEN:
        database.close()
        raise
    return database


def _connection(place: str) -> sqlite3.Connection:
    # A generator may be closed by another thread than the one that began it.
    database = sqlite3.connect(place, uri=True, timeout=_LOCKED_S, check_same_thread=False)
    database.text_factory = _text
    database.set_authorizer(_authorized)
    return database


def _authorized(action: int, *_: object) -> int:
    return sqlite3.SQLITE_OK if action in _ALLOWED else sqlite3.SQLITE_DENY


def _text(data: bytes) -> str | bytes:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data


def _statement(file: InputFile, database: sqlite3.Connection) -> str | None:
    """Return the SQL of the rows; None if there is no table. Raises InputError."""
    asked = file.sqlite
    if asked is not None and asked.query is not None:
        return asked.query
    found = database.execute(
        "SELECT name, type FROM sqlite_master WHERE type IN ('table', 'view') "
        "AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\' ORDER BY type, name"
    ).fetchall()
    names = [str(name) for name, _ in found]
    table = asked.table if asked is not None else None
    if table is None:
        tables = [str(name) for name, kind in found if kind == "table"]
        # A view is a program. That of a file that nobody named does not run.
        tables = tables or (names if file.is_named else [])
        if not tables:
            return None
        if len(tables) > 1:
            raise InputError(_which(file, tables), source=file.name)
        table = tables[0]
    elif table.lower() not in map(str.lower, names):
        raise InputError(
            f"there is no table {table!r} (it has: {_listed(names)})", source=file.place
        )
    quoted = '"' + table.replace('"', '""') + '"'
    is_view = {str(name).lower(): kind for name, kind in found}[table.lower()] == "view"
    # A view has no such rows, but a column of nothing to sort by, for which all of it is read.
    order = "" if is_view else _order(quoted, database)
    return f"SELECT * FROM {quoted}{order}"  # noqa: S608 - quoted


def _no_table(file: InputFile) -> str:
    if file.is_named:
        return "the database has no table"
    return "the database has no table; its views, if it has any, are read if the file is named"


def _order(quoted: str, database: sqlite3.Connection) -> str:
    """Return the order of a table's rows: as they were inserted, where SQLite knows it."""
    try:
        database.execute(f"SELECT _rowid_ FROM {quoted} LIMIT 0")  # noqa: S608 - quoted
    except sqlite3.OperationalError as error:
        if _is_busy(error):
            raise
        return ""
    return " ORDER BY _rowid_"


def _which(file: InputFile, tables: list[str]) -> str:
    first = quote(tables[0])
    return f"it has the tables {_listed(tables)}: name one, as sqlite:///{file.place}?table={first}"


def _listed(names: list[str]) -> str:
    more = len(names) - _SHOWN_TABLES
    return ", ".join(names[:_SHOWN_TABLES]) + (f", and {more:,} more" if more > 0 else "")


def _is_busy(error: Exception) -> bool:
    # The lowest byte is the primary code, the others say more of it.
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
    }


def _reason(error: Exception, deadline: Deadline) -> str:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code == sqlite3.SQLITE_INTERRUPT:
        if not deadline.has_passed:
            # A signal, as of Ctrl-C, raised this while SQLite looked at the clock, and SQLite lost it.
            raise KeyboardInterrupt
        return deadline.reason
    if _is_busy(error):
        return f"another program has locked the database (for more than {_LOCKED_S:g} s)"
    if code == sqlite3.SQLITE_AUTH:
        return "only SELECT is allowed"
    return f"SQLite: {' '.join(str(error).split())}"


def _document(
    name: str, index: int, values: tuple[Any, ...], table: SqliteTable, max_bytes: int
) -> Document:
    header = table.header or ()
    row = dict(zip(header, values, strict=True))
    text = row.pop(table.text_column)
    columns = {column: cell_of(value) for column, value in row.items()}
    text_at = header.index(table.text_column)
    if isinstance(text, bytes):
        text = _text(text)
    return document_of_cells(
        name,
        index,
        text,
        table.text_column,
        max_bytes,
        columns,
        text_at,
        is_named=table.is_named,
    )
