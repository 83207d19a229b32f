"""JSON answers merged into one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fanout.aggregators.base import Aggregate, list_some, place
from fanout.json_text import parse_json

if TYPE_CHECKING:
    from fanout.aggregators.base import Item

__all__ = ["Merge", "merged"]


class Merge:
    """Merges answers that are JSON, in input order.

    Objects are merged key by key: objects recursively, lists one after the other; values that
    differ become a list of the distinct ones, and equal ones stay one value. Where not all
    answers are objects, the result is a list: lists one after the other, anything else appended.

    Failed branches, and answers that are not JSON, are left out and named in a note.
    """

    def __init__(self) -> None:
        self._value: Any = None
        self._is_first = True
        # Values that came about by collecting, and so are extended and not compared.
        self._collected: set[tuple[str, ...]] = set()
        self._succeeded = 0
        self._missing: list[str] = []
        self._unusable: list[str] = []

    def add(self, item: Item) -> None:
        """See Accumulator."""
        if item.output is None:
            self._missing.append(place(item))
            return
        self._succeeded += 1
        try:
            value = parse_json(item.output)
        except ValueError:
            self._unusable.append(place(item))
            return
        self._take(value)

    def _take(self, value: Any) -> None:
        if self._is_first:
            self._value = value if isinstance(value, dict | list) else [value]
            self._is_first = False
        elif isinstance(self._value, dict) and isinstance(value, dict):
            self._value = merged(self._value, value, self._collected)
        else:
            self._value = _listed(self._value) + _listed(value)

    def result(self) -> Aggregate:
        """See Accumulator."""
        notes = []
        if self._missing:
            notes.append(f"{len(self._missing):,} failed and left out: {list_some(self._missing)}")
        if self._unusable:
            names = list_some(self._unusable)
            notes.append(f"{len(self._unusable):,} answers are not JSON and left out: {names}")
        value = {} if self._value is None else self._value
        return Aggregate(
            value=value, succeeded=self._succeeded, failed=len(self._missing), notes=notes
        )


def merged(
    left: dict[str, Any],
    right: dict[str, Any],
    collected: set[tuple[str, ...]],
    path: tuple[str, ...] = (),
) -> dict[str, Any]:
    """Return two objects as one; ``collected`` remembers which lists came about by collecting."""
    out = dict(left)
    for key, value in right.items():
        here = (*path, key)
        out[key] = _both(out[key], value, collected, here) if key in out else value
    return out


def _both(left: Any, right: Any, collected: set[tuple[str, ...]], path: tuple[str, ...]) -> Any:
    if path in collected:
        return left + [value for value in _listed(right) if value not in left]
    if isinstance(left, dict) and isinstance(right, dict):
        return merged(left, right, collected, path)
    if isinstance(left, list) or isinstance(right, list):
        return _listed(left) + _listed(right)
    if left == right:
        return left
    collected.add(path)
    return [left, right]


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
