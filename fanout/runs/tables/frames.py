"""A table as a DataFrame of pandas or polars, which are loaded only here."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fanout.core.errors import InputError
from fanout.runs.tables.columns import ColumnType

if TYPE_CHECKING:
    from fanout.runs.tables.table import Table

__all__ = ["pandas_frame", "polars_frame"]

_POLARS = {
    ColumnType.INTEGER: "Int64",
    ColumnType.FLOAT: "Float64",
    ColumnType.BOOLEAN: "Boolean",
    ColumnType.TEXT: "String",
}
# The type of a column, and that of one with missing cells: integers stay integers.
_PANDAS = {
    ColumnType.INTEGER: ("int64", "Int64"),
    ColumnType.FLOAT: ("float64", "float64"),
    ColumnType.BOOLEAN: ("bool", "boolean"),
}


def pandas_frame(table: Table) -> Any:
    """Return a table as a ``pandas.DataFrame``. Raises InputError without pandas."""
    pandas = _required("pandas")
    return pandas.DataFrame(
        {
            column.name: pandas.Series(cells, dtype=_pandas_type(pandas, column.type, cells))
            for column, cells in zip(table.columns, _columns(table), strict=True)
        },
        index=pandas.RangeIndex(table.count),
    )


def _pandas_type(pandas: Any, type_: ColumnType, cells: list[Any]) -> Any:
    if type_ is ColumnType.TEXT:
        # What this pandas makes of strings; of None alone it knows no type.
        return pandas.Series(["a"]).dtype
    return _PANDAS[type_][None in cells]


def polars_frame(table: Table) -> Any:
    """Return a table as a ``polars.DataFrame``. Raises InputError without polars."""
    polars = _required("polars")
    return polars.DataFrame(
        [
            polars.Series(column.name, cells, dtype=getattr(polars, _POLARS[column.type]))
            for column, cells in zip(table.columns, _columns(table), strict=True)
        ]
    )


def _columns(table: Table) -> list[list[Any]]:
    """Return the cells of each column."""
    columns: list[list[Any]] = [[] for _ in table.columns]
    for row in table.typed_rows():
        for column, cell in zip(columns, row, strict=True):
            column.append(cell)
    return columns


def _required(library: str) -> Any:
    try:
        return import_module(library)
    except ImportError:
        raise InputError(f"to_{library} needs {library}: pip install {library}") from None
