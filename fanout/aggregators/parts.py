"""The parts of a branch that aggregators go by: fields of its answer, columns, and its origin."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import msgspec

from fanout.core.answer_parts import EACH, part_of
from fanout.core.json_text import found_json, parse_json
from fanout.core.measures import measure_of
from fanout.core.numbers import as_number, number_of_text
from fanout.core.step_answers import child_of

if TYPE_CHECKING:
    from fanout.aggregators.base import Item
    from fanout.core.answer_parts import Part, Source

__all__ = [
    "LOWEST_FIRST",
    "Fields",
    "PartReader",
    "Written",
    "answer_value",
    "as_written",
    "written_value",
]

# Before the name of a part: the lowest number is ranked first.
LOWEST_FIRST = "-"


@dataclass(frozen=True, kw_only=True)
class Fields:
    """What an aggregator goes by, and measures.

    Attributes:
        by: The names of parts: see ``fanout.core.answer_parts``.
        measures: The measures of a table.
        k: How many answers a ranking has; None is all.
        schema: The JSON Schema of answers, if they have one.
        choices: The labels that answers are, if they are labels.
        model: The model of a run that has only one.
        steps: The names of the steps of the job.
    """

    by: tuple[str, ...] = ()
    measures: tuple[str, ...] = ()
    k: int | None = None
    schema: dict[str, Any] | None = None
    choices: tuple[str, ...] = ()
    model: str | None = None
    steps: tuple[str, ...] = ()

    @property
    def is_typed(self) -> bool:
        """Whether answers have a shape: they were checked, and are compared as they are."""
        return self.schema is not None or bool(self.choices)

    def reader(self, name: str) -> PartReader:
        """Return what reads one part of branches: it is made once for all groups."""
        reader = self._readers.get(name)
        if reader is None:
            part = part_of(name, schema=self.schema, choices=self.choices, steps=self.steps)
            reader = self._readers[name] = PartReader(part, model=self.model)
        return reader

    @cached_property
    def _readers(self) -> dict[str, PartReader]:
        return {}

    @cached_property
    def columns(self) -> frozenset[str]:
        """The columns of rows that it goes by."""
        return frozenset(filter(None, (reader.column for reader in self.readers)))

    @cached_property
    def readers(self) -> list[PartReader]:
        """What reads the parts that it goes by."""
        measured = (measure_of(name).field for name in self.measures)
        names = [*(name.removeprefix(LOWEST_FIRST) for name in self.by), *filter(None, measured)]
        return list(map(self.reader, names))

    @cached_property
    def _fields(self) -> tuple[str, ...] | None:
        """The fields of answers that it goes by; None if that may be whole answers."""
        firsts = {reader.first_step for reader in self.readers if reader.may_be_of_answer}
        if self.schema is None or firsts & {None, EACH}:
            return None
        return tuple(filter(None, firsts))

    def slim(self, output: str) -> str:
        """Return an answer with the fields that it goes by, and no others, where it is an object with some.

        It must have been checked against the schema: its other fields do not count.
        """
        names = self._fields
        if names is None:
            return output
        try:
            value = msgspec.json.decode(output)
        except (ValueError, RecursionError):
            return output
        if not isinstance(value, dict):
            return output
        # A name may itself have points.
        begins = tuple(f"{name}." for name in names)
        kept = {key: one for key, one in value.items() if key in names or key.startswith(begins)}
        return msgspec.json.encode(kept).decode()


def answer_value(output: str, fields: Fields) -> Any:
    """Return the value of an answer: its JSON, or its text if it is a label or no JSON."""
    if fields.choices:
        return output
    try:
        # An answer that was checked is stored as JSON and nothing else.
        return msgspec.json.decode(output) if fields.schema is not None else parse_json(output)
    except (ValueError, RecursionError):
        return output


class Written(msgspec.Struct, frozen=True):
    """A number as an answer has it, where that is not how JSON has it, such as ``3.10``."""

    text: str
    value: int | float


def as_written(text: str, value: Any) -> Any:
    """Return the value of a text; a number that JSON writes in another way with its text."""
    is_other = as_number(value) is not None and text != json.dumps(value)
    return Written(text, value) if is_other else value


def written_value(output: str, value: Any, fields: Fields) -> Any:
    """Return the value of a whole answer as it is shown: a number as the answer has it.

    Args:
        output: The answer.
        value: Its value: see answer_value.
        fields: What the aggregator goes by.
    """
    if fields.is_typed or as_number(value) is None:
        return value
    shown = as_written(found_json(output)[0], value)
    return shown.text if isinstance(shown, Written) else shown


class PartReader:
    """Reads one part of branches.

    Attributes:
        name: The name of the part.
    """

    def __init__(self, part: Part, *, model: str | None = None) -> None:
        self.name = part.name
        self._model = model
        self._part = part

    @property
    def column(self) -> str | None:
        """The column that the part may be in; None if it is in none."""
        return self._part.key if "column" in self._part.sources else None

    @property
    def first_step(self) -> str | None:
        """The first step to the part in an answer; None if it is the answer itself."""
        return self._part.path[0] if self._part.path else None

    @property
    def is_whole(self) -> bool:
        """Whether the part is the answer itself."""
        return self._part.sources == ("answer",) and not self._part.path

    @property
    def may_be_of_answer(self) -> bool:
        """Whether the part may be in the answer itself."""
        return "answer" in self._part.sources

    def of_answer(self, answer: Any) -> list[Any]:
        """Return the values of the part in the answer itself; empty if it is none of that."""
        return _at(answer, self._part.path) if self.may_be_of_answer else []

    def is_in(self, item: Item, answer: Any) -> bool:
        """Return whether a branch has the part, also an empty list of it, or a field above it."""
        part = self._part
        for source in part.sources:
            value = item.steps.get(part.key) if source == "step" else answer
            if source == "origin" or (source == "column" and part.key in item.columns):
                return True
            if source in ("answer", "step") and (
                _at(value, part.path[:1]) or _at(value, part.path)
            ):
                return value is not None
        return False

    def values(self, item: Item, answer: Any) -> list[Any]:
        """Return the values of the part; empty if there is none.

        Args:
            item: The branch.
            answer: The value of its answer.
        """
        return self._found(item, answer)[1]

    def numbers(self, item: Item, answer: Any) -> list[int | float | None]:
        """Return the values of the part as numbers, None for what is none.

        The cells of a CSV file are text, so a text in a column is read, and so is the answer of a step;
        one in the output is not.
        """
        source, found = self._found(item, answer)
        return [
            number_of_text(value)
            if source in ("column", "step") and isinstance(value, str)
            else as_number(value)
            for value in found
        ]

    def _found(self, item: Item, answer: Any) -> tuple[Source | None, list[Any]]:
        """Return the first source that has the part, and its values."""
        part = self._part
        for source in part.sources:
            if source == "answer":
                found = _at(answer, part.path)
            elif source == "origin":
                found = [self._origin(item)]
            elif source == "step":
                found = _at(item.steps[part.key], part.path) if part.key in item.steps else []
            else:
                found = [item.columns[part.key]] if part.key in item.columns else []
            if found:
                return source, found
        return None, []

    def _origin(self, item: Item) -> str | None:
        if self._part.key == "model":
            # The dimension: what a fallback answered is of the model that it stands in for.
            return item.asked_model or item.model or self._model
        return item.document if self._part.key == "document" else item.aspect

    def value(self, item: Item, answer: Any) -> Any:
        """Return the value of a part that has one; None if there is none."""
        found = self.values(item, answer)
        return found[0] if found else None


def _at(value: Any, path: tuple[str, ...]) -> list[Any]:
    if not path:
        return [value]
    step, rest = path[0], path[1:]
    if step == EACH and isinstance(value, list):
        return [found for one in value for found in _at(one, rest)]
    whole = ".".join(path)
    if rest and isinstance(value, dict) and whole in value:
        # A name may itself have points.
        return [value[whole]]
    try:
        return _at(child_of(value, step), rest)
    except KeyError:
        return []
