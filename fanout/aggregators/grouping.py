"""Groups of answers: one aggregate for each document, aspect, model, or value of a column."""

from __future__ import annotations

from functools import reduce
from typing import TYPE_CHECKING, Any

from fanout.aggregators.base import Spilling
from fanout.aggregators.concat import Concat
from fanout.aggregators.coverage import Tally, TallyCounter
from fanout.aggregators.later_groups import Grouped, LaterGroups
from fanout.aggregators.merge import Merge
from fanout.aggregators.parts import Fields
from fanout.aggregators.rank import Rank, Rerank, Top
from fanout.aggregators.records import GroupedRecords, Records
from fanout.aggregators.streams import whole
from fanout.aggregators.table import Table
from fanout.aggregators.vote import Vote
from fanout.core.cells import COLUMN, OWN, equal_text
from fanout.core.step_answers import STEPS, child_of
from fanout.system.external_sort import Scratch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from typing import Self

    from fanout.aggregators.base import Accumulator, Aggregate, Item
    from fanout.aggregators.streams import Streamed
    from fanout.core.cells import Cell

__all__ = ["GroupedAggregates", "aggregate_groups", "group_key", "make_accumulator"]

_ALL = Fields()
_UNCOUNTED = Tally()
# Those whose aggregates have nothing of answers but the fields that they go by.
_COUNTING = frozenset({"table", "vote"})
# What a group takes in memory, beside what its aggregator holds.
_GROUP_BYTES = 4_000
_ACCUMULATORS: dict[str, Callable[[Fields, Records], Accumulator]] = {
    "concat": Concat,
    "merge": Merge,
    "rank": Rank,
    "table": Table,
    "top": Top,
    "vote": Vote,
    "map_rerank": Rerank,
}


def make_accumulator(
    name: str, fields: Fields = _ALL, records: Records | None = None
) -> Accumulator:
    """Return an aggregator by name: ``concat``, ``merge``, ``rank``, ``table``, ``top`` or ``vote``.

    The fold ``map_rerank`` is one, too. ``none`` aggregates nothing, and ``llm`` makes calls: neither is an
    accumulator.

    Args:
        name: The name.
        fields: What it goes by.
        records: Where it keeps what may be large; None makes some for it alone.
    """
    return _ACCUMULATORS[name](fields, Records() if records is None else records)


def group_key(
    group_by: str | None,
    *,
    document: str,
    aspect: str | None,
    model: str | None = None,
    columns: Mapping[str, Cell],
    steps: Mapping[str, Any] | None = None,
    part: Mapping[str, str] | None = None,
) -> str:
    """Return the group of a branch; the only group of a run without groups is the empty string.

    ``steps`` are the answers of its steps so far; None in a job without steps. ``part`` has the title and
    the subtask that a model gave; None where none has split the document.
    """
    if group_by is None:
        return ""
    if steps is not None and group_by.startswith(STEPS):
        return _step_group(group_by, steps)
    own = group_by.removeprefix(OWN)
    origin = {"document": document, "aspect": aspect, "model": model}
    if own in origin:
        return origin[own] or ""
    if part is not None and own in part:
        return group_name(part[own] or None, own)
    column = group_by.removeprefix(COLUMN)
    return group_name(columns.get(column), column)


def _step_group(group_by: str, steps: Mapping[str, Any]) -> str:
    """Return the answer of a step, or a field of it, as the name of a group."""
    key, *path = group_by.removeprefix(STEPS).split(".")
    try:
        value = reduce(child_of, path, steps.get(key))
    except KeyError:
        value = None
    return group_name(value, group_by)


def group_name(value: Cell, field: str) -> str:
    """Return the name of the group of a value: its text, which equal values share.

    Equal numbers have one text, and so have equal lists and objects. Of null, which is also a missing value,
    it is ``(no FIELD)``; a value with that text has it in quotes, so that it is another group.
    """
    none = f"(no {field})"
    if value is None:
        return none
    text = value if isinstance(value, str) else equal_text(value)
    # Each pair of quotes gets a further one, so that no two values have the same name.
    return f'"{text}"' if none in text and text.strip('"') == none else text


class GroupedAggregates:
    """Aggregates branches by group; what it holds in memory grows neither with branches nor with groups.

    The groups that appear first are aggregated as their branches come. Once they are many, the branches of
    all others are sorted by group in temporary files, and aggregated one group after the other.

    Args:
        name: The aggregator's name.
        fields: What the aggregators go by.
        scratch: What may be used, in memory and in files.
    """

    def __init__(self, name: str, fields: Fields = _ALL, scratch: Scratch | None = None) -> None:
        self._name = name
        self._fields = fields
        self._scratch = scratch or Scratch()
        self._records = GroupedRecords(self._scratch)
        self._groups: dict[str, tuple[Accumulator, TallyCounter]] = {}
        self._most = max(1, self._scratch.memory_bytes // _GROUP_BYTES)
        self._later: LaterGroups | None = None

    def add(self, item: Item, tally: Tally = _UNCOUNTED) -> None:
        """Add one branch, failed or not, and what is counted of it.

        Branches come in input order. Raises RunError: there is no room for temporary files.
        """
        held = self._groups.get(item.group)
        if held is None:
            if len(self._groups) >= self._most:
                self._add_later(item, tally)
                return
            records = self._records.of(len(self._groups))
            accumulator = make_accumulator(self._name, self._fields, records)
            held = self._groups[item.group] = accumulator, TallyCounter()
        accumulator, counter = held
        accumulator.add(item)
        counter.add(tally)
        if self._records.is_full:
            self._spill()

    def _add_later(self, item: Item, tally: Tally) -> None:
        if self._later is None:
            self._later = LaterGroups(
                self._scratch, self._fields, is_shown=_goes_by_answers(self._name, self._fields)
            )
        self._later.add(item, tally)

    def _spill(self) -> None:
        for accumulator, _ in self._groups.values():
            if isinstance(accumulator, Spilling):
                accumulator.spill()
        self._records.held_bytes = 0

    def results(self) -> Iterator[tuple[str, Aggregate | Streamed]]:
        """Yield the aggregate of each group: see counted."""
        return ((group, made) for group, made, _ in self.counted())

    def counted(self) -> Iterator[Grouped]:
        """Yield the aggregate of each group, once, in the order in which the groups first appear.

        The value of one must be read before the next is asked for. No branch may be added any more.
        """
        self._spill()
        for group, (accumulator, counter) in self._groups.items():
            yield Grouped(group, accumulator.result(), counter.tally())
        self._groups.clear()
        if self._later is not None:
            yield from self._later.results(self._of_one)

    def _of_one(self, branches: Iterator[tuple[Item, Tally]]) -> Iterator[Grouped]:
        """Yield the aggregate of branches of one group."""
        with GroupedAggregates(self._name, self._fields, self._scratch) as alone:
            for item, tally in branches:
                alone.add(item, tally)
            yield from alone.counted()

    def close(self) -> None:
        """Give the room back. Safe to call twice."""
        self._records.close()
        if self._later is not None:
            self._later.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()


def _goes_by_answers(name: str, fields: Fields) -> bool:
    """Say whether an aggregator needs whole answers, and not only the fields that it goes by."""
    # A vote that goes by no part counts whole answers; a table without one only counts branches.
    return name not in _COUNTING or (name == "vote" and not fields.by)


def aggregate_groups(
    name: str, items: Iterable[Item], fields: Fields = _ALL, *, scratch: Scratch | None = None
) -> dict[str, Aggregate]:
    """Return the aggregate of each group, with its value in memory: see GroupedAggregates."""
    with GroupedAggregates(name, fields, scratch) as groups:
        for item in items:
            groups.add(item)
        return {group: whole(made) for group, made in groups.results()}
