"""A run as a table: one row for each branch, or, if it is wide, for each chunk."""

from __future__ import annotations

from itertools import chain, groupby
from typing import TYPE_CHECKING, Any

from fanout.core.errors import RunError
from fanout.core.json_text import parse_json
from fanout.core.units import plural
from fanout.runs.rows import RowLayout, free_name, part_cells, source_cells
from fanout.runs.tables.columns import (
    Column,
    ColumnType,
    as_type,
    declared,
    distinct,
    field_cell,
    merge_sorts,
)
from fanout.runs.tables.own_columns import (
    CHUNK,
    CONFIDENCE,
    ERROR,
    FIGURES,
    OUTPUT,
    OWN_COLUMNS,
    PASSAGES,
    VARIANT,
    VOTES,
    chunk_cells,
    error_columns,
    field_name,
    figure_cells,
    mark_cell,
    marks_of,
    own_names,
    parts_of,
    variant_labels,
)
from fanout.runs.tables.step_columns import STEP, StepColumns

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from fanout.core.cells import Cell
    from fanout.runs.branch_output import Output
    from fanout.runs.tables.columns import Sorts
    from fanout.runs.tables.spool import Spool

__all__ = ["Table", "gather", "step_columns"]

# A table of more columns is none: each row of the input, or each answer, has names of its own.
MOST_COLUMNS = 16_384


class _Section:
    """Some columns of a table, side by side: those that are known, and those that rows have.

    Args:
        first: Columns that are known, before those that rows have.
        names: Columns that are known but for their types, after these.
        optional: Those of the known columns that are there only if a row has a value in them.
        last: Columns that are known, after those.
        fallback: A column that is there if a row has it, or if there is no other.
        step_prefix: Of the columns of a step, what is before the name of the step.
    """

    def __init__(
        self,
        first: dict[str, ColumnType] | None = None,
        last: dict[str, ColumnType] | None = None,
        fallback: str | None = None,
        names: Iterable[str] = (),
        optional: Iterable[str] = (),
        step_prefix: str | None = None,
    ) -> None:
        self.step_prefix = step_prefix
        self._sorts = declared(first or {}) | dict.fromkeys(names, 0)
        self._last = declared(last or {})
        self._fallback = fallback
        self._absent = set(optional)

    def see(self, row: dict[str, Cell]) -> None:
        """Add the columns of a row."""
        merge_sorts(self._sorts, row)
        if self._absent:
            self._absent.difference_update([n for n in self._absent if row.get(n) is not None])

    def __len__(self) -> int:
        return len(self._sorts)

    def columns(self) -> dict[str, Sorts]:
        """Return the sorts of cells by column, in order."""
        found = {name: sorts for name, sorts in self._sorts.items() if name not in self._last}
        if self._fallback is not None and (self._fallback in found or not found):
            found = {self._fallback: 0, **found}
        last = {name: sorts | self._sorts.get(name, 0) for name, sorts in self._last.items()}
        columns = {**found, **last}
        return {name: sorts for name, sorts in columns.items() if name not in self._absent}


class Table:
    """A table whose columns are known, and whose rows are in a spool.

    Attributes:
        columns: Its columns, in order.
        count: The number of its rows.
    """

    def __init__(self, sections: Sequence[_Section], spool: Spool, count: int) -> None:
        self.count = count
        self._spool = spool
        # For each section, the keys of its cells in a row of the spool.
        columns = [section.columns() for section in sections]
        self._keys = [list(found) for found in columns]
        self.columns = list(_named(columns, [section.step_prefix for section in sections]))

    def rows(self) -> Iterator[list[Cell]]:
        """Yield the cells of each row: JSON values as they came, None where one is missing."""
        keys = self._keys
        for parts in self._spool.rows():
            yield [
                cell
                for part, names in zip(parts, keys, strict=True)
                for cell in map(part.get, names)
            ]

    def typed_rows(self) -> Iterator[list[Any]]:
        """Yield the cells of each row: each has the type of its column, or is None."""
        changed = [(n, as_type(one.type)) for n, one in enumerate(self.columns) if one.is_changed]
        for row in self.rows():
            for position, change in changed:
                row[position] = change(row[position])
            yield row


def _named(
    sections: list[dict[str, Sorts]], step_prefixes: Sequence[str | None]
) -> Iterator[Column]:
    """Yield the columns of a table under names that differ: fanout's own keep theirs."""
    source, *own = sections
    prefixes = step_prefixes[1:]
    # Fields that no schema names are known only now.
    fixed = {
        name
        for section, prefix in zip(own, prefixes, strict=True)
        if prefix is None
        for name in section
    }
    names = list(
        distinct(
            name
            if prefix is None or name not in fixed
            else f"{prefix}{STEP}{name.removeprefix(prefix)}"
            for section, prefix in zip(own, prefixes, strict=True)
            for name in section
        )
    )
    taken = {*OWN_COLUMNS, *names}
    sorts = [one for section in sections for one in section.values()]
    return map(Column.of, [*(free_name(name, taken) for name in source), *names], sorts)


def gather(
    outputs: Iterable[Output[Any]], layout: RowLayout, spool: Spool, *, is_wide: bool = False
) -> Table:
    """Read the branches of a run into a table, with their rows in a spool.

    Args:
        outputs: The branches, in input order, with the texts of rows.
        layout: What their rows have.
        spool: Takes the rows; it must outlive the table.
        is_wide: Whether each row is a chunk, with a column for the answer to each aspect, model
            and sample.

    Raises:
        RunError: There are too many columns.
        OSError: The spool cannot be written.
    """
    shape = _Wide(layout) if is_wide else _Long(layout)
    sections, count = shape.sections, 0
    for count, row in enumerate(shape.rows(outputs), 1):  # noqa: B007 - the number of rows
        for section, part in zip(sections, row, strict=True):
            section.see(part)
        if sum(map(len, sections)) > MOST_COLUMNS:
            raise RunError(
                f"the table has more than {plural(MOST_COLUMNS, 'column', 'columns')}: "
                "its rows or answers have too many different fields; write a folder instead"
            )
        spool.add(row)
    return Table(sections, spool, count)


class _Long:
    """A row for each branch."""

    def __init__(self, layout: RowLayout) -> None:
        has_models = len(layout.models) > 1 or layout.has_fallback
        has_variants = (
            len(layout.aspects) > 1, has_models, layout.has_fallback, layout.samples > 1
        )  # fmt: skip
        variant = {
            name: type_
            for (name, type_), several in zip(VARIANT.items(), has_variants, strict=True)
            if several
        }
        if layout.has_votes:
            variant |= VOTES
        self._marks = marks_of(layout)
        parts = parts_of(layout)
        own = {**self._marks, **ERROR, **CHUNK, **parts, **FIGURES, **variant}
        self._variant = tuple(variant)
        self._layout = layout
        self._steps = step_columns(layout)
        self.sections = [
            _Section(),
            _answer_section(OUTPUT, "", layout),
            *(_Section(names=names, step_prefix="") for names in self._steps.names()),
            _Section(own, optional=self._marks.keys() & {CONFIDENCE}),
        ]

    def rows(self, outputs: Iterable[Output[Any]]) -> Iterator[list[dict[str, Cell]]]:
        """Yield the parts of each row: one for each section."""
        for branch in outputs:
            own: dict[str, Cell] = {
                **{name: mark_cell(branch, name) for name in self._marks},
                "error_kind": None if branch.kind is None else branch.kind.value,
                "error": branch.message,
                **chunk_cells(branch),
                **part_cells(branch, self._layout),
                **figure_cells([branch]),
            }
            for name in self._variant:
                own[name] = getattr(branch, name)
            answer = _answer(branch, OUTPUT, "", self._layout)
            yield [source_cells(branch), answer, *self._steps.cells(branch), own]


class _Wide:
    """A row for each chunk: each aspect, model and sample is a section of its own."""

    def __init__(self, layout: RowLayout) -> None:
        self._layout = layout
        self._marks = {
            **marks_of(layout),
            **({"model": ColumnType.TEXT} if layout.has_fallback else {}),
            **(VOTES if layout.has_votes else {}),
        }
        # In the order of the branches of a chunk.
        self.labels = list(distinct(variant_labels(layout)))
        # Passages are those of a prompt, and so of an answer.
        self._parts = parts_of(layout)
        self._has_passages = self._parts.pop(PASSAGES, None) is not None
        own = _Section({**CHUNK, **self._parts, **FIGURES})
        self._steps = {
            label: StepColumns(layout, (*ERROR, *self._marks, PASSAGES), f"{label}.")
            for label in self.labels
        }
        self.sections = [_Section(), *self._variants(layout), own]

    def _variants(self, layout: RowLayout) -> Iterator[_Section]:
        """Yield the sections of each variant: of its answer, and of its steps."""
        for label in self.labels:
            last = {**self._marks_of(label), **error_columns(label)}
            if self._has_passages:
                last[f"{label}.{PASSAGES}"] = ColumnType.TEXT
            yield _answer_section(label, f"{label}.", layout, last)
            for names in self._steps[label].names():
                yield _Section(names=names, step_prefix=f"{label}.")

    def _marks_of(self, label: str) -> dict[str, ColumnType]:
        return {f"{label}.{name}": type_ for name, type_ in self._marks.items()}

    def rows(self, outputs: Iterable[Output[Any]]) -> Iterator[list[dict[str, Cell]]]:
        """Yield the parts of each row: one for each section."""
        for _, group in groupby(outputs, key=lambda branch: branch.chunk):
            branches = list(group)
            none: list[dict[str, Cell]] = [{} for _ in range(1 + len(self._layout.steps))]
            answers = dict.fromkeys(self.labels, none)
            for branch in branches:
                label = self.labels[branch.index % len(self.labels)]
                answer = _answer(branch, label, f"{label}.", self._layout)
                kind = None if branch.kind is None else branch.kind.value
                errors = dict(zip(error_columns(label), (kind, branch.message), strict=True))
                marks = {f"{label}.{name}": mark_cell(branch, name) for name in self._marks}
                steps = self._steps[label].cells(branch)
                parts = part_cells(branch, self._layout)
                found = {f"{label}.{PASSAGES}": parts.get(PASSAGES)} if self._has_passages else {}
                answers[label] = [{**answer, **marks, **errors, **found}, *steps]
            first = branches[0]
            parts = part_cells(first, self._layout)
            own = {
                **chunk_cells(first),
                **{name: parts[name] for name in self._parts},
                **figure_cells(branches),
            }
            yield [source_cells(first), *chain.from_iterable(answers.values()), own]


def step_columns(layout: RowLayout) -> StepColumns:
    """Return the columns that the steps of a run have in its table."""
    return StepColumns(layout, own_names(layout))


def _answer_section(
    label: str, prefix: str, layout: RowLayout, last: dict[str, ColumnType] | None = None
) -> _Section:
    if layout.has_fields:
        own = own_names(layout)
        names = (field_name(name, prefix, own) for name in layout.fields)
        return _Section(last=last, fallback=label, names=names)
    optional = [prefix + CONFIDENCE] if layout.has_confidence else []
    return _Section({label: ColumnType.TEXT}, last, optional=optional)


def _answer(branch: Output[Any], label: str, prefix: str, layout: RowLayout) -> dict[str, Cell]:
    """Return the answer of a branch by column: the fields of a JSON object, else the answer."""
    answer = branch.value
    if answer is None:
        return {}
    value = answer if layout.is_typed else _json(answer) if layout.has_fields else None
    if isinstance(value, dict):
        own = own_names(layout)
        return {field_name(name, prefix, own): field_cell(field) for name, field in value.items()}
    return {label: field_cell(answer)}


def _json(answer: str) -> Any:
    try:
        return parse_json(answer)
    except ValueError:
        return None
