"""Groups of answers: one aggregate for each document, aspect, model, or value of a column."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fanout.aggregators.concat import Concat
from fanout.aggregators.merge import Merge
from fanout.aggregators.rank import Rank
from fanout.aggregators.vote import Vote
from fanout.core.cells import COLUMN, OWN, cell_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from fanout.aggregators.base import Accumulator, Aggregate, Item
    from fanout.core.cells import Cell

__all__ = ["aggregate_groups", "group_key", "make_accumulator"]

_ACCUMULATORS: dict[str, type[Concat | Merge | Rank | Vote]] = {
    "concat": Concat,
    "merge": Merge,
    "rank": Rank,
    "vote": Vote,
}


def make_accumulator(name: str) -> Accumulator:
    """Return an aggregator by name: ``concat``, ``merge``, ``rank`` or ``vote``.

    ``none`` aggregates nothing, and ``llm`` makes calls: neither is an accumulator.
    """
    return _ACCUMULATORS[name]()


def group_key(
    group_by: str | None,
    *,
    document: str,
    aspect: str | None,
    model: str | None = None,
    columns: Mapping[str, Cell],
) -> str:
    """Return the group of a branch; the only group of a run without groups is the empty string."""
    if group_by is None:
        return ""
    own = group_by.removeprefix(OWN)
    if own == "document":
        return document
    if own == "aspect":
        return aspect or ""
    if own == "model":
        return model or ""
    column = group_by.removeprefix(COLUMN)
    return cell_text(columns[column]) if column in columns else f"(no {column})"


def aggregate_groups(name: str, items: Iterable[Item]) -> dict[str, Aggregate]:
    """Return the aggregate of each group, in the order in which the groups first appear."""
    groups: dict[str, Accumulator] = {}
    for item in items:
        if item.group not in groups:
            groups[item.group] = make_accumulator(name)
        groups[item.group].add(item)
    return {group: accumulator.result() for group, accumulator in groups.items()}
