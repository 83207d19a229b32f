"""A table as Arrow data, which pandas, polars, DuckDB and others take."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any

from fanout.inputs.documents.extras import extra_module
from fanout.runs.tables.columns import ColumnType

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fanout.runs.tables.table import Table

__all__ = ["arrow_batches", "arrow_schema", "arrow_table", "require_arrow"]

_BATCH_ROWS = 10_000
# A batch of long answers is cut earlier, after about so many characters.
_BATCH_CHARS = 32_000_000
_NAMES = {
    ColumnType.INTEGER: "int64",
    ColumnType.FLOAT: "float64",
    ColumnType.BOOLEAN: "bool_",
    ColumnType.TEXT: "string",
}


def require_arrow() -> Any:
    """Return the module ``pyarrow``, which is of an extra. Raises InputError without it."""
    return extra_module("pyarrow", extra="tables", source="a table of Parquet or Arrow")


def arrow_schema(table: Table) -> Any:
    """Return the ``pyarrow.Schema`` of a table."""
    pa = require_arrow()
    return pa.schema([(one.name, getattr(pa, _NAMES[one.type])()) for one in table.columns])


def arrow_batches(table: Table) -> Iterator[Any]:
    """Yield a table as ``pyarrow.RecordBatch``, one of which is in memory at a time."""
    pa = require_arrow()
    schema = arrow_schema(table)
    rows = table.typed_rows()
    while part := list(_part(rows)):
        arrays = [
            pa.array(cells, type=type_)
            for cells, type_ in zip(zip(*part, strict=True), schema.types, strict=True)
        ]
        yield pa.record_batch(arrays, schema=schema)


def _part(rows: Iterator[list[Any]]) -> Iterator[list[Any]]:
    chars = 0
    for row in islice(rows, _BATCH_ROWS):
        yield row
        chars += sum(len(cell) for cell in row if type(cell) is str)
        if chars >= _BATCH_CHARS:
            return


def arrow_table(table: Table) -> Any:
    """Return a table as a ``pyarrow.Table`` in memory."""
    return require_arrow().Table.from_batches(arrow_batches(table), schema=arrow_schema(table))
