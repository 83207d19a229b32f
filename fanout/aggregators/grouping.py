"""Groups of answers: one aggregate for each document, aspect, model, or value of a column."""

from __future__ import annotations

from functools import reduce
from typing import TYPE_CHECKING, Any

from fanout.aggregators.concat import Concat
from fanout.aggregators.merge import Merge
from fanout.aggregators.parts import Fields
from fanout.aggregators.rank import Rank, Top
from fanout.aggregators.table import Table
from fanout.aggregators.vote import Vote
from fanout.core.cells import COLUMN, OWN, cell_text
from fanout.core.step_answers import STEPS, child_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from fanout.aggregators.base import Accumulator, Aggregate, Item
    from fanout.core.cells import Cell

__all__ = ["TooLargeError", "aggregate_groups", "group_key", "make_accumulator"]

_ALL = Fields()
_ACCUMULATORS: dict[str, Callable[[Fields], Accumulator]] = {
    "concat": lambda _fields: Concat(),
    "merge": Merge,
    "rank": Rank,
    "table": Table,
    "top": Top,
    "vote": Vote,
}


class TooLargeError(Exception):
    """A result would be too large to be stored."""


def make_accumulator(name: str, fields: Fields = _ALL) -> Accumulator:
    """Return an aggregator by name: ``concat``, ``merge``, ``rank``, ``table``, ``top`` or ``vote``.

    ``none`` aggregates nothing, and ``llm`` makes calls: neither is an accumulator.
    """
    return _ACCUMULATORS[name](fields)


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
        return part[own] or f"(no {own})"
    column = group_by.removeprefix(COLUMN)
    return cell_text(columns[column]) if column in columns else f"(no {column})"


def _step_group(group_by: str, steps: Mapping[str, Any]) -> str:
    """Return the answer of a step, or a field of it, as the name of a group."""
    key, *path = group_by.removeprefix(STEPS).split(".")
    try:
        value = reduce(child_of, path, steps.get(key))
    except KeyError:
        value = None
    return f"(no {group_by})" if value is None else cell_text(value)


def aggregate_groups(
    name: str, items: Iterable[Item], fields: Fields = _ALL, *, most_chars: int | None = None
) -> dict[str, Aggregate]:
    """Return the aggregate of each group, in the order in which the groups first appear.

    Args:
        name: The aggregator's name.
        items: The branches; only what the aggregators hold of them stays in memory.
        fields: What the aggregators go by.
        most_chars: The most characters of answers that a result may quote; None is no limit.

    Raises:
        TooLargeError: The answers are longer, and the result would quote all of them.
    """
    groups: dict[str, Accumulator] = {}
    quotes_all = name == "concat" or (name == "rank" and fields.k is None)
    chars = 0
    for item in items:
        if quotes_all and most_chars is not None:
            chars += len(item.output or "")
            if chars > most_chars:
                raise TooLargeError
        accumulator = groups.get(item.group)
        if accumulator is None:
            accumulator = groups[item.group] = make_accumulator(name, fields)
        accumulator.add(item)
    return {group: accumulator.result() for group, accumulator in groups.items()}
