"""The aggregator that merges JSON answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from fanout.aggregators.base import LEFT_OUT, Aggregate, NameSample
from fanout.aggregators.folding import folded
from fanout.aggregators.parts import Fields
from fanout.aggregators.records import Records
from fanout.aggregators.streams import Streamed
from fanout.core.json_text import parse_json

if TYPE_CHECKING:
    from collections.abc import Iterator
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

    def __init__(self, fields: Fields = _ALL, records: Records | None = None) -> None:
        # JSON until the end: what becomes of values depends on the order of the answers.
        self._values = records or Records()
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
        for at, value in enumerate(values):
            self._values.add((item.index, at), msgspec.json.encode(value))

    def merge(self, other: Self) -> None:
        """See Accumulator."""
        for key, data in other._values:
            self._values.add(key, *data)
        self._succeeded += other._succeeded
        self._missing.merge(other._missing)
        self._unusable.merge(other._unusable)
        self._without.merge(other._without)

    def result(self) -> Streamed:
        """See Accumulator."""
        return Streamed(form="json", chunks=self._chunks(), end=self._end)

    def _chunks(self) -> Iterator[bytes]:
        values = ((key, data[0]) for key, data in self._values)
        yield from folded(values, self._values.scratch)

    def _end(self) -> Aggregate:
        notes = self._missing.notes(LEFT_OUT)
        what = "not JSON and left out"
        notes += self._unusable.notes(f"answers are {what}", one=f"answer is {what}")
        if self._reader is not None:
            what = f"no {self._reader.name}"
            notes += self._without.notes(f"answers have {what}", one=f"answer has {what}")
        return Aggregate(
            value=None,
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
