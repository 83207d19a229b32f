"""The groups that memory has no room for: their branches are sorted in files, and aggregated one by one."""

from __future__ import annotations

import marshal
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

import msgspec
from msgspec import structs

from fanout.aggregators.base import Aggregate, Item
from fanout.aggregators.coverage import Tally
from fanout.aggregators.streams import Streamed
from fanout.system.external_sort import grouped

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any

    from fanout.aggregators.parts import Fields
    from fanout.aggregators.streams import Form
    from fanout.system.external_sort import Record, Scratch

    # Yields the aggregate of the branches of one group.
    OfOne = Callable[[Iterator[tuple[Item, Tally]]], Iterable["Grouped"]]

__all__ = ["Grouped", "LaterGroups"]

_COLUMNS, _OUTPUT = map(Item.__struct_fields__.index, ("columns", "output"))


class Grouped(NamedTuple):
    """The aggregate of a group, with what is counted of its branches."""

    group: str
    made: Aggregate | Streamed
    tally: Tally


class LaterGroups:
    """Takes the branches of any number of groups, and yields the aggregate of each.

    Two sorts do that: the branches by their group, and the aggregates by the first branch of theirs. Both
    are in temporary files, which have about as many bytes as the answers, or as the parts of them that count,
    and as the aggregates.

    Args:
        scratch: What may be used, in memory and in files.
        fields: What the aggregators go by: other columns of rows are left out.
        is_shown: Whether the aggregators need whole answers, and not only the fields that they go by.
    """

    def __init__(self, scratch: Scratch, fields: Fields, *, is_shown: bool) -> None:
        self._fields = fields
        self._is_shown = is_shown
        self._count = 0
        self._branches = scratch.sorter()
        self._made = scratch.sorter()
        self._values = scratch.pile()

    def add(self, item: Item, tally: Tally) -> None:
        """Take a branch. Raises RunError: there is no room for temporary files."""
        values = list(structs.astuple(item))
        columns = self._fields.columns
        values[_COLUMNS] = {name: item.columns[name] for name in columns if name in item.columns}
        if not self._is_shown and item.output is not None and not item.votes:
            values[_OUTPUT] = self._fields.slim(item.output)
        self._branches.add((item.group, self._count), marshal.dumps((values, _plain(tally))))
        self._count += 1

    def results(self, of_one: OfOne) -> Iterator[Grouped]:
        """Yield the aggregate of each group, once, in the order in which the groups first appear.

        Args:
            of_one: Aggregates the branches of a group, which come in the order in which they were added.
        """
        for _, same in grouped(self._branches):
            first, branches = _peeked(same)
            for one in of_one(map(_branch, branches)):
                self._keep(first, one)
        self._branches.close()
        for _, record in self._made:
            yield self._grouped(*record)

    def _keep(self, first: int, one: Grouped) -> None:
        """Keep an aggregate, with its value apart if that comes in pieces."""
        made, form, start = one.made, None, self._values.size
        if isinstance(made, Streamed):
            form = made.form
            for chunk in made.chunks:
                self._values.add(chunk)
            made = made.end()
        data = msgspec.json.encode(made)
        tally = marshal.dumps(_plain(one.tally))
        self._made.add((first,), one.group, form, start, self._values.size, data, tally)

    def _grouped(
        self, group: str, form: Form | None, start: int, end: int, data: bytes, tally: bytes
    ) -> Grouped:
        ended = _decoded(data)
        made: Aggregate | Streamed = ended
        if form is not None:
            chunks = self._values.read(start, end)
            made = Streamed(form=form, chunks=chunks, end=lambda: ended)
        # Nobody else can write these files: they have no name.
        return Grouped(group, made, Tally(*marshal.loads(tally)))  # noqa: S302

    def close(self) -> None:
        """Give the room back. Safe to call twice."""
        self._branches.close()
        self._made.close()
        self._values.close()


def _peeked(records: Iterator[Record]) -> tuple[int, Iterator[Record]]:
    """Return the number of the first of some branches, and all of them."""
    first = next(records)
    return first[0][1], chain([first], records)


def _plain(tally: Tally) -> tuple[Any, ...]:
    return structs.astuple(tally)


def _branch(record: Record) -> tuple[Item, Tally]:
    values, tally = marshal.loads(record[1][0])  # noqa: S302 - see above
    return Item(**dict(zip(Item.__struct_fields__, values, strict=True))), Tally(*tally)


_decoded = msgspec.json.Decoder(Aggregate).decode
