"""The aggregate of a run as it is stored: as a value, as JSON or as text, whole or a part at a time."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import msgspec

from fanout.runs.answer_text import EMPTY_GROUP, ROWS, answer_text, columns, group_heading
from fanout.runs.spaced_json import indented_json, object_json, spaced_json
from fanout.runs.status import coverage_notes, coverage_value

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fanout.aggregators import Aggregate, Coverage, Source
    from fanout.runs.result_values import ResultValues
    from fanout.runs.status import StoredResult

__all__ = ["StoredAggregate"]

# The JSON of a value that is larger is made a part at a time.
_SMALL_BYTES = 100_000
# The name of a group in a note.
_MOST_NAME_CHARS = 200


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
    def _groups(self) -> Iterator[tuple[str, Aggregate]]:
        """The aggregates; that of a run without groups has no name. Very many are not in memory."""
        for group, one in self.values.aggregates():
            if self._is_grouped or (not group and one.exists):
                yield group, one

    def __bool__(self) -> bool:
        """Whether there is an aggregate."""
        return any(True for _ in self._groups)

    @property
    def _is_in_pieces(self) -> bool:
        is_long = self.stored.entries is not None
        return is_long or any(one.held is not None for _, one in self._groups)

    @property
    def is_text(self) -> bool:
        """Whether it is one text."""
        return not self._is_grouped and all(_is_text(one) for _, one in self._groups)

    def value(self) -> Any:
        """Return the aggregate, by group if the run has groups; None if there is none."""
        values = {group: self.values.value(one) for group, one in self._groups}
        return (values or None) if self._is_grouped else values.get("")

    def notes(self) -> list[str]:
        """Return the aggregator's notes."""
        return list(self.each_note())

    def each_note(self, *, has_reasons: bool = True, has_error: bool = False) -> Iterator[str]:
        """Yield the aggregator's notes.

        Args:
            has_reasons: Whether also why there is no aggregate.
            has_error: Whether the error of the run, which a user sees as well, says that.
        """
        for group, one in self.values.aggregates():
            is_told = (has_reasons and not has_error) or one.problem is None
            for note in (*one.notes, *(coverage_notes(one, self._reduction) if is_told else ())):
                yield f"{_named(group)}: {note}" if self._is_grouped else note

    def coverage(self) -> Coverage | dict[str, Coverage] | None:
        """Return what is behind the aggregate, by group if the run has groups; None if it is not known."""
        found = dict(self._coverages())
        return (found or None) if self._is_grouped else found.get("")

    def _coverages(self) -> Iterator[tuple[str, Coverage]]:
        for group, one in self.values.aggregates():
            if one.coverage is not None:
                yield group, one.coverage

    def coverage_json(self, *, is_indented: bool = False) -> Iterator[str]:
        """Yield the JSON of what is behind the aggregate, a part at a time: see coverage."""
        if not self._is_grouped or not any(True for _ in self._coverages()):
            yield _dumped(coverage_value(self.coverage()), is_indented=is_indented)
            return
        rows = (
            (group, [_dumped(one.to_dict(), is_indented=is_indented)])
            for group, one in self._coverages()
        )
        yield from object_json(rows, is_indented=is_indented)

    @property
    def can_cite(self) -> bool:
        """Whether calls have made it, which may cite sources."""
        return self._reduction == "llm"

    def sources(self) -> list[Source] | dict[str, list[Source]]:
        """Return what the aggregate cites, by group if the run has groups."""
        found = {group: one.sources for group, one in self.values.aggregates()}
        return found if self._is_grouped else found.get("", [])

    def sources_json(self, *, is_indented: bool = False) -> Iterator[str]:
        """Yield the JSON of what the aggregate cites, a part at a time: see sources."""
        if not self._is_grouped:
            yield _dumped(msgspec.to_builtins(self.sources()), is_indented=is_indented)
            return
        rows = (
            (group, [_dumped(msgspec.to_builtins(one.sources), is_indented=is_indented)])
            for group, one in self.values.aggregates()
        )
        yield from object_json(rows, is_indented=is_indented)

    def ranks(self) -> Iterator[tuple[int, int]]:
        """Yield the index and the rank of each answer of a ranking."""
        for _, one in self.values.aggregates():
            for row in self.values.rows(one):
                yield row["index"], row["rank"]

    def json(self, *, is_indented: bool = False, has_reasons: bool = False) -> Iterator[str]:
        """Yield the JSON of the aggregate, a part at a time: ``null`` if there is none.

        Args:
            is_indented: Whether it has lines of its own for each value.
            has_reasons: Whether a group without one has the reason in its place.
        """
        if not self._is_in_pieces:
            value = self._with_problems(self.value()) if has_reasons else self.value()
            yield _dumped(value, is_indented=is_indented)
        elif self._is_grouped:
            groups = (
                (group, self._value_json(one, is_indented=is_indented, has_reasons=has_reasons))
                for group, one in self._groups
            )
            yield from object_json(groups, is_indented=is_indented)
        else:
            for _, one in self._groups:
                yield from self._value_json(one, is_indented=is_indented)

    def _value_json(
        self, one: Aggregate, *, is_indented: bool, has_reasons: bool = False
    ) -> Iterator[str]:
        held = one.held
        if has_reasons and one.problem is not None:
            yield _dumped(_without(one), is_indented=is_indented)
        elif held is None or held.end - held.start <= _SMALL_BYTES:
            yield _dumped(self.values.value(one), is_indented=is_indented)
        else:
            compact = self._compact_value(one)
            yield from indented_json(compact) if is_indented else spaced_json(compact)

    def _compact_value(self, one: Aggregate) -> Iterator[str]:
        """Yield the JSON of a value that is in pieces, without spaces."""
        if one.held is None or one.held.form == "json":
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

    def texts(self, *, is_whole: bool = False) -> Iterator[str]:
        """Yield the aggregate as people read it, a part at a time: see ``answer_text``.

        A group without one has the reason in its place.
        """
        if not self._is_in_pieces or self._reduction == "best":
            value = self._with_problems(self.value())
            yield answer_text(value, self._reduction, is_whole=is_whole)
            return
        is_table = self._reduction in ROWS and all(_is_table(one) for _, one in self._groups)
        if not is_table and not all(_is_text(one) for _, one in self._groups):
            yield from self.json(is_indented=True, has_reasons=True)
            return
        for number, (group, one) in enumerate(self._groups):
            if self._is_grouped:
                gap = "\n\n" if number else ""
                yield f"{gap}{group_heading(group)}"
            if one.problem is not None:
                yield _without(one)
            else:
                yield from self._columns(one, is_whole) if is_table else self._texts(one)

    def _with_problems(self, value: Any) -> Any:
        if not self._is_grouped or value is None:
            return value
        groups = self._groups
        return value | {group: _without(one) for group, one in groups if one.problem is not None}

    def _columns(self, one: Aggregate, is_whole: bool) -> Iterator[str]:  # noqa: FBT001 - see texts
        lines = columns(lambda: self.values.rows(one), is_whole=is_whole)
        for number, line in enumerate(lines):
            yield f"\n{line}" if number else line

    def _texts(self, one: Aggregate) -> Iterator[str]:
        if one.held is None:
            yield one.value
        else:
            yield from self.values.texts(one)


def _named(group: str) -> str:
    name = group or EMPTY_GROUP
    return name if len(name) <= _MOST_NAME_CHARS else f"{name[:_MOST_NAME_CHARS]}..."


def _dumped(value: Any, *, is_indented: bool) -> str:
    return json.dumps(value, ensure_ascii=False, indent=2 if is_indented else None)


def _without(one: Aggregate) -> str:
    return f"(no aggregate: {one.problem})"


def _is_text(one: Aggregate) -> bool:
    if one.problem is not None:
        return True
    return isinstance(one.value, str) if one.held is None else one.held.form == "text"


def _is_table(one: Aggregate) -> bool:
    return isinstance(one.value, list | None) if one.held is None else one.held.form == "rows"
