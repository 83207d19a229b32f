"""The aggregator that concatenates answers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fanout.aggregators.base import LEFT_OUT, Aggregate, NameSample, place

if TYPE_CHECKING:
    from fanout.aggregators.base import Item

__all__ = ["Concat"]


class Concat:
    """Joins the answers, in input order, under headings if they have several origins.

    Failed branches are left out, and named in a note.
    """

    def __init__(self) -> None:
        self._answers: list[tuple[str, str]] = []
        self._missing = NameSample()

    def add(self, item: Item) -> None:
        """See Accumulator."""
        if item.output is None:
            self._missing.add(place(item))
        else:
            self._answers.append((place(item), item.output))

    def result(self) -> Aggregate:
        """See Accumulator."""
        return Aggregate(
            value=self._text(),
            succeeded=len(self._answers),
            failed=self._missing.count,
            notes=self._missing.notes(LEFT_OUT),
        )

    def _text(self) -> str:
        places = {where for where, _ in self._answers}
        if len(places) <= 1:
            return "\n\n".join(answer for _, answer in self._answers)
        parts = []
        last = None
        for where, answer in self._answers:
            # Chunks of one document share a heading.
            parts.append(answer if where == last else f"## {where}\n\n{answer}")
            last = where
        return "\n\n".join(parts)
