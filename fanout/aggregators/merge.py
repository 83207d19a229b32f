"""The aggregator that merges JSON answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from fanout.aggregators.base import LEFT_OUT, Aggregate, NameSample
from fanout.aggregators.parts import Fields
from fanout.core.json_text import identity, parse_json

if TYPE_CHECKING:
    from typing import Self

    from fanout.aggregators.base import Item

__all__ = ["Merge"]

_ALL = Fields()


class Merge:
    """Merges answers that are JSON, in input order.

    Objects are merged key by key, and lists concatenated. Different values become a list of the
    distinct ones, and equal values stay one value (``1`` and ``1.0`` are equal, ``1`` and ``true``
    are not). That holds for the answers, and for the values of each key, at any depth.

    With ``by``, it merges that part of each answer, and leaves out answers without it. A label is a
    text, also if it looks like other JSON.

    Failed branches, and answers that are not JSON, are left out and named in a note; with ``by``, only
    those where the part is to be in the answer.
    """

    def __init__(self, fields: Fields = _ALL) -> None:
        # JSON until the end: what becomes of values depends on the order of the answers.
        self._values: list[tuple[int, bytes]] = []
        self._is_label = bool(fields.choices)
        self._reader = fields.reader(fields.by[0]) if fields.by else None
        self._succeeded = 0
        self._missing = NameSample()
        self._unusable = NameSample()
        self._without = NameSample()

    def add(self, item: Item) -> None:
        """See Accumulator."""
        if item.output is None:
            self._missing.add(item)
            return
        self._succeeded += 1
        answer, is_text = _value(item.output, is_label=self._is_label)
        reader = self._reader
        if is_text and (reader is None or reader.is_whole):
            self._unusable.add(item)
            return
        values = [answer] if reader is None else reader.values(item, answer)
        if reader is not None and not values:
            (self._unusable if is_text and reader.may_be_of_answer else self._without).add(item)
        self._values += [(item.index, msgspec.json.encode(value)) for value in values]

    def merge(self, other: Self) -> None:
        """See Accumulator."""
        self._values += other._values
        self._succeeded += other._succeeded
        self._missing.merge(other._missing)
        self._unusable.merge(other._unusable)
        self._without.merge(other._without)

    def result(self) -> Aggregate:
        """See Accumulator."""
        merged = _Merged()
        self._values.sort(key=lambda value: value[0])
        for _, data in self._values:
            merged.take(msgspec.json.decode(data))
        notes = self._missing.notes(LEFT_OUT)
        notes += self._unusable.notes("answers are not JSON and left out")
        if self._reader is not None:
            notes += self._without.notes(f"answers have no {self._reader.name}")
        return Aggregate(
            value=merged.value(),
            succeeded=self._succeeded,
            failed=self._missing.count,
            notes=notes,
        )


def _value(output: str, *, is_label: bool) -> tuple[Any, bool]:
    """Return the value of an answer, and whether it is a text and no JSON."""
    if is_label:
        return output, False
    try:
        return parse_json(output), False
    except ValueError:
        return output, True


class _Merged:
    """What is merged so far, in place, so that the cost of a value does not grow with their number."""

    def __init__(self) -> None:
        self._is_empty = True
        self._value: Any = {}

    def take(self, value: Any) -> None:
        self._value = value if self._is_empty else _both(self._value, value)
        self._is_empty = False

    def value(self) -> Any:
        return _plain(self._value)


class _Distinct:
    """The distinct values on which answers differ, in input order."""

    def __init__(self) -> None:
        self._values: dict[bytes, Any] = {}

    def add(self, value: Any) -> None:
        self._values.setdefault(identity(_plain(value)), value)

    def values(self) -> list[Any]:
        return list(self._values.values())


def _merge(left: dict[str, Any], right: dict[str, Any]) -> None:
    """Merge ``right`` into ``left``."""
    for key, value in right.items():
        left[key] = _both(left[key], value) if key in left else value


def _both(left: Any, right: Any) -> Any:
    if isinstance(left, _Distinct):
        for value in _listed(right):
            left.add(value)
        return left
    if isinstance(left, dict) and isinstance(right, dict):
        _merge(left, right)
        return left
    if isinstance(left, list):
        left.extend(_listed(right))
        return left
    if isinstance(right, list):
        return [left, *right]
    if identity(_plain(left)) == identity(_plain(right)):
        return left
    distinct = _Distinct()
    distinct.add(left)
    distinct.add(right)
    return distinct


def _plain(value: Any) -> Any:
    """Return a JSON value, with collected values as lists."""
    if isinstance(value, _Distinct):
        return [_plain(one) for one in value.values()]
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return value


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
