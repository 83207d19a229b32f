"""The aggregates of a run with a list of reduces as they are stored: each whole, or a part at a time."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from fanout.runs.spaced_json import object_json
from fanout.runs.status import without_aggregate
from fanout.runs.stored_aggregate import StoredAggregate

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fanout.core.spec import RunSpec
    from fanout.runs.result_values import ResultValues
    from fanout.runs.status import StoredResult

__all__ = ["StoredAggregates", "stored_aggregate"]


class StoredAggregates:
    """Reads the aggregates of a list of reduces, as StoredAggregate does a single one.

    Args:
        values: The values of the result.
        by_name: The aggregate of each reduce, in the order of the list.
    """

    def __init__(self, values: ResultValues, by_name: dict[str, StoredAggregate]) -> None:
        self.values = values
        self.by_name = by_name

    @property
    def stored(self) -> StoredResult:
        """The record of the result: the values of large ones are left out."""
        return self.values.stored

    def __bool__(self) -> bool:
        """Whether there is an aggregate."""
        return bool(self.stored.named)

    def value(self) -> dict[str, Any] | None:
        """Return the aggregates by name; None if there is no result yet."""
        return {name: one.value() for name, one in self.by_name.items()} if self else None

    def notes(self) -> list[str]:
        """Return the notes of the aggregators."""
        return list(self.each_note())

    def each_note(self, *, has_reasons: bool = True, has_error: bool = False) -> Iterator[str]:
        """Yield the notes of the aggregators; the arguments are as for that of a single reduce.

        The error names the reduces that have no aggregate at all: not those that lack some groups.
        """
        for name, one in self.by_name.items():
            is_told = has_error and name in self.stored.problems
            notes = one.each_note(has_reasons=has_reasons, has_error=is_told)
            yield from (f"{name}: {note}" for note in notes)

    def coverage(self) -> dict[str, Any] | None:
        """Return what is behind the aggregates, by name; None if there is no result yet."""
        return {name: one.coverage() for name, one in self.by_name.items()} if self else None

    def coverage_json(self, *, is_indented: bool = False) -> Iterator[str]:
        """Yield the JSON of what is behind the aggregates, a part at a time: see coverage."""
        if not self:
            yield "null"
            return
        parts = (
            (name, one.coverage_json(is_indented=is_indented)) for name, one in self.by_name.items()
        )
        yield from object_json(parts, is_indented=is_indented)

    def sources_json(self, *, is_indented: bool = False) -> Iterator[str]:
        """Yield the JSON of what they cite, a part at a time: see sources."""
        if not self:
            yield "null"
            return
        parts = (
            (name, one.sources_json(is_indented=is_indented))
            for name, one in self.by_name.items()
            if one.can_cite
        )
        yield from object_json(parts, is_indented=is_indented)

    def sources(self) -> dict[str, Any] | None:
        """Return what the aggregates of calls cite, by name; None if there is no result yet."""
        cited = {name: one for name, one in self.by_name.items() if one.can_cite}
        return {name: one.sources() for name, one in cited.items()} if self else None

    def ranks(self) -> Iterator[tuple[int, int]]:
        """Yield nothing: an answer may have a rank in each of several rankings."""
        yield from ()

    def json(self, *, is_indented: bool = False) -> Iterator[str]:
        """Yield the JSON of the aggregates by name, a part at a time: ``null`` if there is none."""
        if not self:
            yield "null"
            return
        mark, gap = "{", "\n" if is_indented else " "
        for name, one in self.by_name.items():
            start = "\n" if is_indented and mark == "{" else "" if mark == "{" else gap
            yield f"{mark}{start}{json.dumps(name)}: "
            yield from one.json(is_indented=is_indented)
            mark = ","
        yield "\n}" if is_indented else "}"

    def texts(self, *, is_whole: bool = False) -> Iterator[str]:
        """Yield the aggregates as people read them, a part at a time, each below a heading."""
        for number, (name, one) in enumerate(self.by_name.items()):
            gap = "\n\n" if number else ""
            yield f"{gap}# {name}\n\n"
            if one:
                yield from one.texts(is_whole=is_whole)
            else:
                yield without_aggregate(one.stored.problem)


def stored_aggregate(values: ResultValues, spec: RunSpec) -> StoredAggregate | StoredAggregates:
    """Return the aggregate of a run, or those of its list of reduces."""
    found = {
        one.name: StoredAggregate(
            values.of(one.name), one.kind, is_grouped=one.group_by is not None
        )
        for one in spec.reductions
    }
    if spec.reduces:
        return StoredAggregates(values, found)
    return found.get("", StoredAggregate(values, "none", is_grouped=False))
