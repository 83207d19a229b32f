"""The columns of a table, and the type that fits all cells of one."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Any

import msgspec

from fanout.core.cells import cell_of, cell_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from typing import Self

    from fanout.core.cells import Cell

__all__ = [
    "Column",
    "ColumnType",
    "Sorts",
    "as_type",
    "declared",
    "distinct",
    "field_cell",
    "merge_sorts",
]


class ColumnType(StrEnum):
    """The type of a column. Each column may have missing cells, which are None."""

    INTEGER = "integer"  # 64 bits
    FLOAT = "float"
    BOOLEAN = "boolean"
    TEXT = "text"  # also of columns whose cells differ in type, or are lists or objects: as JSON


class Column(msgspec.Struct, frozen=True, kw_only=True):
    """A column of a table.

    Attributes:
        name: Its name; no two columns of a table have the same.
        type: The type of its cells.
        is_changed: Whether some of its cells have another type, and become text or floats.
    """

    name: str
    type: ColumnType
    is_changed: bool = False

    @classmethod
    def of(cls, name: str, sorts: Sorts) -> Self:
        """Return a column whose cells are of these sorts."""
        type_ = _type_of(sorts)
        return cls(name=name, type=type_, is_changed=sorts & ~_OF_TYPE[type_] & ~_LONG != 0)


# The sorts of cells that a column has, as bits.
Sorts = int
_TEXT, _INTEGER, _FLOAT, _BOOLEAN, _NESTED, _LONG = 1, 2, 4, 8, 16, 32
_SORTS: dict[type, Sorts] = {
    str: _TEXT, int: _INTEGER, float: _FLOAT, bool: _BOOLEAN, dict: _NESTED, list: _NESTED,
    type(None): 0,
}  # fmt: skip
# Above it, not each integer is a float.
_EXACT = 2**53
_TYPES = {
    _INTEGER: ColumnType.INTEGER,
    _INTEGER | _LONG: ColumnType.INTEGER,
    _FLOAT: ColumnType.FLOAT,
    _INTEGER | _FLOAT: ColumnType.FLOAT,
    _BOOLEAN: ColumnType.BOOLEAN,
}
_OF_TYPE: dict[ColumnType, Sorts] = {
    ColumnType.INTEGER: _INTEGER, ColumnType.FLOAT: _FLOAT, ColumnType.BOOLEAN: _BOOLEAN,
    ColumnType.TEXT: _TEXT,
}  # fmt: skip


def declared(types: Mapping[str, ColumnType]) -> dict[str, Sorts]:
    """Return the sorts of columns whose types are known before a row is."""
    return {name: _OF_TYPE[type_] for name, type_ in types.items()}


def distinct(names: Iterable[str], key: Callable[[str], str] = str) -> Iterator[str]:
    """Yield each name, with underscores if it was there before: as of an aspect ``a.error``.

    Args:
        names: The names.
        key: Returns what is the same for names that are the same.
    """
    seen = set[str]()
    for name in names:
        own = name
        while key(own) in seen:
            own += "_"
        seen.add(key(own))
        yield own


def merge_sorts(sorts: dict[str, Sorts], row: Mapping[str, Cell]) -> None:
    """Add the sorts of a row's cells to those of their columns, in the order of first sight."""
    for name, cell in row.items():
        sort = _SORTS[type(cell)]
        if sort == _INTEGER and not -_EXACT <= cell <= _EXACT:
            sort |= _LONG
        sorts[name] = sorts.get(name, 0) | sort


def _type_of(sorts: Sorts) -> ColumnType:
    """Return the type that all cells of a column fit: text where they differ."""
    return _TYPES.get(sorts, ColumnType.TEXT)


def as_type(type_: ColumnType) -> Callable[[Cell], Any]:
    """Return a function that gives a cell the type of its column; None stays None."""
    if type_ is ColumnType.TEXT:
        return lambda cell: cell if cell is None or type(cell) is str else cell_text(cell)
    if type_ is ColumnType.FLOAT:
        return lambda cell: None if cell is None else float(cell)
    return lambda cell: cell


def field_cell(value: Any) -> Cell:
    """Return a value of an answer as a cell: an integer of more than 64 bits becomes text."""
    return value if type(value) is str else cell_of(value)
