"""The aggregator that concatenates answers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fanout.aggregators.base import LEFT_OUT, Aggregate, NameSample, place

if TYPE_CHECKING:
    from typing import Self

    from fanout.aggregators.base import Item

__all__ = ["Concat"]


class Concat:
    """Joins the answers, in input order, under headings if they have several origins.

    Failed branches are left out, and named in a note.
    """

    def __init__(self) -> None:
        self._answers: list[tuple[int, str, str]] = []
        self._missing = NameSample()

    def add(self, item: Item) -> None:
        """See Accumulator."""
        if item.output is None:
            self._missing.add(item)
        else:
            self._answers.append((item.index, place(item), item.output))

    def merge(self, other: Self) -> None:
        """See Accumulator."""
        self._answers += other._answers
        self._missing.merge(other._missing)

    def result(self) -> Aggregate:
        """See Accumulator."""
        self._answers.sort(key=lambda answer: answer[0])
        return Aggregate(
            value=self._text(),
            succeeded=len(self._answers),
            failed=self._missing.count,
            notes=self._missing.notes(LEFT_OUT),
        )

    def _text(self) -> str:
        places = {where for _, where, _ in self._answers}
        if len(places) <= 1:
            return "\n\n".join(answer for _, _, answer in self._answers)
        parts = []
        last = None
        for _, where, answer in self._answers:
            # Chunks of one document share a heading.
            parts.append(answer if where == last else f"## {where}\n\n{answer}")
            last = where
        return "\n\n".join(parts)
