"""Answers and labels as values that can be compared."""

from __future__ import annotations

import hashlib
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from fanout.aggregators.vote import value_key
from fanout.core.cells import cell_text
from fanout.core.json_text import found_json
from fanout.core.labels import WHOLE, compared, is_boolean
from fanout.core.numbers import as_number, number_of_text, plain_signs
from fanout.policy.confusion import Term

if TYPE_CHECKING:
    from fanout.core.cells import Cell
    from fanout.core.spec import RunSpec

__all__ = ["Terms", "term"]

# Longer keys are hashed, and longer texts cut: answers may be long, and many of them are counted.
_KEY_CHARS = 64
_TEXT_CHARS = 120
_TRUE = frozenset({"true", "yes", "y", "t", "1"})
_FALSE = frozenset({"false", "no", "n", "f", "0"})


def term(value: Any) -> Term:
    """Return a JSON value or a text as what it is compared by, and as a short text.

    Texts are compared as a vote does it: without case, spacing and surrounding punctuation; numbers
    as values, so that ``1``, ``1.0``, ``"1"`` and ``"1,0"`` are equal; true, false and null as their
    names.
    """
    if value is None or isinstance(value, bool):
        value = cell_text(value) or "null"
    compared = value
    if isinstance(value, str) and _has_comma(value):
        number = number_of_text(value)
        compared = value if number is None else number
    key = value_key(compared).decode()
    if len(key) > _KEY_CHARS:
        key = hashlib.blake2b(key.encode(), digest_size=16).hexdigest()
    text = cell_text(value).strip()
    return Term(key, text if len(text) <= _TEXT_CHARS else f"{text[: _TEXT_CHARS - 1]}…")


def _has_comma(text: str) -> bool:
    """Say whether a number may be meant that JSON has in another way; not ``007``, which is a name."""
    return "," in plain_signs(text)


class Terms:
    """Makes terms of the labels and the answers of a job, for one field of an answer.

    Args:
        spec: The job.
        field: The name of the field, or ``WHOLE``; of an answer of a step, ``steps.NAME.field``.
    """

    def __init__(self, spec: RunSpec, field: str) -> None:
        of = compared(spec, field)
        self._field = of.field
        self._is_boolean = is_boolean(of)
        # Answers with a schema are values already.
        self._is_json = of.schema is None and spec.output_format == "json"
        keys = Counter(term(choice).key for choice in of.choices)
        self._folded = {made.key: made for made in map(term, of.choices) if keys[made.key] == 1}
        # Choices that differ in case only, such as m and M, are compared as they are written.
        self._exact = {
            choice: self._folded.get(term(choice).key) or Term(f"={choice}", choice)
            for choice in of.choices
        }

    @property
    def choices(self) -> list[Term]:
        """The labels among which an answer is one; empty if there are no choices."""
        return list(self._exact.values())

    def label(self, cell: Cell) -> Term | None:
        """Return the label of a cell; None if it is empty."""
        if cell is None or (isinstance(cell, str) and not cell.strip()):
            return None
        if self._is_boolean:
            word = cell_text(cell).strip().casefold()
            cell = True if word in _TRUE else False if word in _FALSE else cell
        return self._among_choices(cell)

    def answer(self, value: Any) -> Term:
        """Return an answer, or its field; ``value`` is ``Output.value``."""
        value = self._read(value)
        if self._field != WHOLE:
            value = value.get(self._field) if isinstance(value, dict) else None
        return self._among_choices(value)

    def fields(self, value: Any) -> tuple[str, ...]:
        """Return the fields of an answer that is compared as a whole, though it is an object."""
        value = self._read(value) if self._field == WHOLE else None
        return tuple(value) if isinstance(value, dict) else ()

    def _read(self, value: Any) -> Any:
        if self._is_json and isinstance(value, str):
            with suppress(ValueError):
                text, found = found_json(value)
                # A number is shown as it was written.
                return found if as_number(found) is None else text
        return value

    def _among_choices(self, value: Any) -> Term:
        if not self._exact:
            return term(value)
        made = self._exact.get(cell_text(value).strip())
        if made is None:
            made = term(value)
            made = self._folded.get(made.key, made)
        return made
