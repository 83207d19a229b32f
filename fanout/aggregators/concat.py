"""The aggregator that concatenates answers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fanout.aggregators.base import LEFT_OUT, Aggregate, NameSample, place
from fanout.aggregators.records import Records
from fanout.aggregators.streams import Streamed

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Self

    from fanout.aggregators.base import Item
    from fanout.aggregators.parts import Fields

__all__ = ["Concat"]


class Concat:
    """Joins the answers, in input order, under headings if they have several origins.

    Failed branches are left out, and named in a note.
    """

    def __init__(self, _fields: Fields | None = None, records: Records | None = None) -> None:
        self._answers = records or Records()
        self._succeeded = 0
        self._missing = NameSample()
        self._place: str | None = None
        self._has_places = False

    def add(self, item: Item) -> None:
        """See Accumulator."""
        if item.output is None:
            self._missing.add(item)
            return
        self._succeeded += 1
        where = place(item)
        self._note_place(where)
        self._answers.add((item.index,), where, item.output)

    def _note_place(self, where: str) -> None:
        if self._place is None:
            self._place = where
        elif where != self._place:
            self._has_places = True

    def merge(self, other: Self) -> None:
        """See Accumulator."""
        self._succeeded += other._succeeded
        self._missing.merge(other._missing)
        if other._place is not None:
            self._note_place(other._place)
            self._has_places |= other._has_places
        for key, data in other._answers:
            self._answers.add(key, *data)

    def result(self) -> Streamed:
        """See Accumulator."""
        return Streamed(form="text", chunks=self._chunks(), end=self._end)

    def _chunks(self) -> Iterator[bytes]:
        last, gap = None, ""
        for _, (where, answer) in self._answers:
            # Chunks of one document share a heading.
            head = f"## {where}\n\n" if self._has_places and where != last else ""
            yield f"{gap}{head}{answer}".encode()
            last, gap = where, "\n\n"

    def _end(self) -> Aggregate:
        return Aggregate(
            value=None,
            succeeded=self._succeeded,
            failed=self._missing.count,
            notes=self._missing.notes(LEFT_OUT),
        )
