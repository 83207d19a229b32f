"""The first forms of the values of a table, where both are too many for memory."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Self

    from fanout.system.external_sort import Scratch

__all__ = ["ShownForms"]

# The values of a row, and what else it has.
_Row = tuple[tuple[bytes, ...], tuple[Any, ...]]

_FORM, _ROW = range(2)


class ShownForms:
    """Gives each value of a row the form that the first answer has which has it.

    Column by column, rows and forms are sorted by the value, so that each form is met just before the rows
    that it is for; at the end the rows are put into their order again.

    Args:
        columns: How many values a row has.
        scratch: What may be used, in memory and in files.
    """

    def __init__(self, columns: int, scratch: Scratch) -> None:
        self._columns = [scratch.sorter() for _ in range(columns)]
        self._in_order = scratch.sorter()
        self._has_forms = [False] * columns

    def add(self, column: int, key: bytes, first: tuple[int, int], form: bytes) -> None:
        """Take a form of a value; of several the first in the input counts."""
        self._has_forms[column] = True
        self._columns[column].add((key, _FORM, *first), form)

    def of_rows(self, rows: Iterator[_Row]) -> Iterator[_Row]:
        """Yield rows, in their order, with the first forms of their values.

        All forms must be known when the first row comes.
        """
        first = next(rows, None)
        if first is None:
            return
        at = [column for column, has_forms in enumerate(self._has_forms) if has_forms]
        if not at:
            yield from chain([first], rows)
            return
        todo: Iterator[tuple[int, _Row]] = enumerate(chain([first], rows))
        for column in at:
            todo = self._formed(column, todo)
        for number, (keys, rest) in todo:
            self._in_order.add((number,), keys, rest)
        for _, (keys, rest) in self._in_order:
            yield keys, rest

    def _formed(self, column: int, rows: Iterator[tuple[int, _Row]]) -> Iterator[tuple[int, _Row]]:
        sorter = self._columns[column]
        for number, (keys, rest) in rows:
            sorter.add((keys[column], _ROW, number), keys, rest)
        known: bytes | None = None
        form = b""
        for (key, kind, number, *_), data in sorter:
            if kind == _ROW:
                keys, rest = data
                shown = form if key == known else key
                yield number, ((*keys[:column], shown, *keys[column + 1 :]), rest)
            elif key != known:
                known, form = key, data[0]
        sorter.close()

    def close(self) -> None:
        """Give the room back. Safe to call twice."""
        for sorter in (*self._columns, self._in_order):
            sorter.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()
