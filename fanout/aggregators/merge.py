"""The aggregator that merges JSON answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fanout.aggregators.base import LEFT_OUT, Aggregate, NameSample, place
from fanout.core.json_text import identity, parse_json

if TYPE_CHECKING:
    from fanout.aggregators.base import Item

__all__ = ["Merge"]


class Merge:
    """Merges answers that are JSON, in input order.

    Objects are merged key by key: nested objects recursively, lists by concatenation. Different
    values become a list of the distinct ones, and equal values stay one value (``1`` and ``1.0``
    are equal, ``1`` and ``true`` are not). If not all answers are objects, the result is a list:
    lists are concatenated, and other values are appended.

    Failed branches, and answers that are not JSON, are left out and named in a note.
    """

    def __init__(self) -> None:
        # Answers are merged in place, so that the cost of each does not grow with their number.
        self._value: dict[str, Any] | list[Any] | None = None
        self._succeeded = 0
        self._missing = NameSample()
        self._unusable = NameSample()

    def add(self, item: Item) -> None:
        """See Accumulator."""
        if item.output is None:
            self._missing.add(place(item))
            return
        self._succeeded += 1
        try:
            value = parse_json(item.output)
        except ValueError:
            self._unusable.add(place(item))
            return
        self._take(value)

    def _take(self, value: Any) -> None:
        if self._value is None:
            self._value = value if isinstance(value, dict | list) else [value]
        elif isinstance(self._value, dict) and isinstance(value, dict):
            _merge(self._value, value)
        else:
            if isinstance(self._value, dict):
                self._value = [self._value]
            self._value.extend(_listed(value))

    def result(self) -> Aggregate:
        """See Accumulator."""
        unusable = self._unusable.notes("answers are not JSON and left out")
        return Aggregate(
            value={} if self._value is None else _plain(self._value),
            succeeded=self._succeeded,
            failed=self._missing.count,
            notes=[*self._missing.notes(LEFT_OUT), *unusable],
        )


class _Distinct:
    """The distinct values of a key on which answers differ, in input order."""

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
