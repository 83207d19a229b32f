"""The parts of a branch that aggregators go by: fields of its answer, columns, and its origin."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from fanout.core.answer_parts import EACH, part_of
from fanout.core.json_text import parse_json

if TYPE_CHECKING:
    from fanout.aggregators.base import Item
    from fanout.core.answer_parts import Part

__all__ = ["Fields", "PartReader", "answer_value"]


class Fields(msgspec.Struct, frozen=True, kw_only=True):
    """What an aggregator goes by, and measures.

    Attributes:
        by: The names of parts: see ``fanout.core.answer_parts``.
        measures: The measures of a table.
        k: How many answers a ranking has; None is all.
        schema: The JSON Schema of answers, if they have one.
        choices: The labels that answers are, if they are labels.
        model: The model of a run that has only one.
    """

    by: tuple[str, ...] = ()
    measures: tuple[str, ...] = ()
    k: int | None = None
    schema: dict[str, Any] | None = None
    choices: tuple[str, ...] = ()
    model: str | None = None

    @property
    def is_typed(self) -> bool:
        """Whether answers have a shape: they were checked, and are compared as they are."""
        return self.schema is not None or bool(self.choices)

    def reader(self, name: str) -> PartReader:
        """Return what reads one part of branches."""
        part = part_of(name, schema=self.schema, choices=self.choices)
        return PartReader(part, model=self.model)


def answer_value(output: str, fields: Fields) -> Any:
    """Return the value of an answer: its JSON, or its text if it is a label or no JSON."""
    if fields.choices:
        return output
    try:
        # An answer that was checked is stored as JSON and nothing else.
        return msgspec.json.decode(output) if fields.schema is not None else parse_json(output)
    except (ValueError, RecursionError):
        return output


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
    def is_column(self) -> bool:
        """Whether the part is a column of the row for certain."""
        return self._part.sources == ("column",)

    def of_answer(self, answer: Any) -> list[Any]:
        """Return the values of the part in the answer itself; empty if it is none of that."""
        return _at(answer, self._part.path) if "answer" in self._part.sources else []

    def values(self, item: Item, answer: Any) -> list[Any]:
        """Return the values of the part; empty if there is none.

        Args:
            item: The branch.
            answer: The value of its answer.
        """
        part = self._part
        for source in part.sources:
            if source == "answer":
                found = _at(answer, part.path)
            elif source == "origin":
                found = [self._origin(item)]
            else:
                found = [item.columns[part.key]] if part.key in item.columns else []
            if found:
                return found
        return []

    def _origin(self, item: Item) -> str | None:
        if self._part.key == "model":
            return item.model or self._model
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
    if not isinstance(value, dict):
        return []
    whole = ".".join(path)
    # A name may itself have points.
    return (
        [value[whole]]
        if rest and whole in value
        else _at(value[step], rest)
        if step in value
        else []
    )
