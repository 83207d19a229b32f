"""The aggregate of a run as it is stored: as a value, as JSON or as text, whole or a part at a time."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from fanout.runs.answer_text import EMPTY_GROUP, ROWS, answer_text, columns
from fanout.runs.spaced_json import indented_json, spaced_json
from fanout.runs.status import coverage_notes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fanout.aggregators import Aggregate, Coverage, Source
    from fanout.runs.result_values import ResultValues
    from fanout.runs.status import StoredResult

__all__ = ["StoredAggregate"]


class StoredAggregate:
    """Reads the aggregate of a run.

    Args:
        values: The values of its groups.
        reduction: The reduce that made it.
        is_grouped: Whether the run has groups.
    """

    def __init__(self, values: ResultValues, reduction: str, *, is_grouped: bool) -> None:
        self.values = values
        self._reduction = reduction
        self._is_grouped = is_grouped

    @property
    def stored(self) -> StoredResult:
        """The record of the result: the values of large ones are left out."""
        return self.values.stored

    @property
    def _groups(self) -> dict[str, Aggregate]:
        """The aggregates; that of a run without groups has no name."""
        groups = self.stored.aggregates
        if self._is_grouped:
            return groups
        return {group: one for group, one in groups.items() if not group and one.exists}

    def __bool__(self) -> bool:
        """Whether there is an aggregate."""
        return bool(self._groups)

    @property
    def _is_in_pieces(self) -> bool:
        return any(one.held is not None for one in self._groups.values())

    @property
    def is_text(self) -> bool:
        """Whether it is one text."""
        return not self._is_grouped and all(map(_is_text, self._groups.values()))

    def value(self) -> Any:
        """Return the aggregate, by group if the run has groups; None if there is none."""
        values = {group: self.values.value(one) for group, one in self._groups.items()}
        return (values or None) if self._is_grouped else values.get("")

    def notes(self) -> list[str]:
        """Return the aggregator's notes."""
        return [
            f"{group or EMPTY_GROUP}: {note}" if self._is_grouped else note
            for group, one in self.stored.aggregates.items()
            for note in (*one.notes, *coverage_notes(one, self._reduction))
        ]

    def coverage(self) -> Coverage | dict[str, Coverage] | None:
        """Return what is behind the aggregate, by group if the run has groups; None if it is not known."""
        stored = self.stored.aggregates
        found = {group: one.coverage for group, one in stored.items() if one.coverage is not None}
        return (found or None) if self._is_grouped else found.get("")

    @property
    def can_cite(self) -> bool:
        """Whether calls have made it, which may cite sources."""
        return self._reduction == "llm"

    def sources(self) -> list[Source] | dict[str, list[Source]]:
        """Return what the aggregate cites, by group if the run has groups."""
        found = {group: one.sources for group, one in self.stored.aggregates.items()}
        return found if self._is_grouped else found.get("", [])

    def ranks(self) -> Iterator[tuple[int, int]]:
        """Yield the index and the rank of each answer of a ranking."""
        for one in self.stored.aggregates.values():
            for row in self.values.rows(one):
                yield row["index"], row["rank"]

    def json(self, *, is_indented: bool = False) -> Iterator[str]:
        """Yield the JSON of the aggregate, a part at a time: ``null`` if there is none."""
        if not self._is_in_pieces:
            yield json.dumps(self.value(), ensure_ascii=False, indent=2 if is_indented else None)
            return
        compact = self._compact()
        yield from indented_json(compact) if is_indented else spaced_json(compact)

    def _compact(self) -> Iterator[str]:
        """Yield the JSON without spaces."""
        if not self._is_grouped:
            yield from self._compact_value(self._groups[""])
            return
        mark = "{"
        for group, one in self._groups.items():
            yield f"{mark}{json.dumps(group, ensure_ascii=False)}:"
            yield from self._compact_value(one)
            mark = ","
        yield "}"

    def _compact_value(self, one: Aggregate) -> Iterator[str]:
        if one.held is None:
            yield json.dumps(one.value, ensure_ascii=False, separators=(",", ":"))
        elif one.held.form == "json":
            yield from self.values.texts(one)
        elif one.held.form == "text":
            yield '"'
            for part in self.values.texts(one):
                yield json.dumps(part, ensure_ascii=False)[1:-1]
            yield '"'
        else:
            mark = "["
            for line in self.values.lines(one):
                yield mark + line.decode()
                mark = ","
            yield "]" if mark == "," else "[]"

    def texts(self) -> Iterator[str]:
        """Yield the aggregate as people read it, a part at a time: see ``answer_text``.

        A group without one has the reason in its place.
        """
        groups = self._groups
        is_table = self._reduction in ROWS and all(map(_is_table, groups.values()))
        if not self._is_in_pieces or self._reduction == "best":
            yield answer_text(self._with_problems(self.value()), self._reduction)
        elif is_table or all(map(_is_text, groups.values())):
            for number, (group, one) in enumerate(groups.items()):
                if self._is_grouped:
                    gap = "\n\n" if number else ""
                    yield f"{gap}## {group or EMPTY_GROUP}\n\n"
                if one.problem is not None:
                    yield _without(one)
                else:
                    yield from self._columns(one) if is_table else self._texts(one)
        else:
            yield from self.json(is_indented=True)

    def _with_problems(self, value: Any) -> Any:
        if not self._is_grouped or value is None:
            return value
        groups = self._groups.items()
        return value | {group: _without(one) for group, one in groups if one.problem is not None}

    def _columns(self, one: Aggregate) -> Iterator[str]:
        for number, line in enumerate(columns(lambda: self.values.rows(one))):
            yield f"\n{line}" if number else line

    def _texts(self, one: Aggregate) -> Iterator[str]:
        if one.held is None:
            yield one.value
        else:
            yield from self.values.texts(one)


def _without(one: Aggregate) -> str:
    return f"(no aggregate: {one.problem})"


def _is_text(one: Aggregate) -> bool:
    if one.problem is not None:
        return True
    return isinstance(one.value, str) if one.held is None else one.held.form == "text"


def _is_table(one: Aggregate) -> bool:
    return isinstance(one.value, list | None) if one.held is None else one.held.form == "rows"
