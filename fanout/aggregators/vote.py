"""The answer that most branches gave."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fanout.aggregators.base import Aggregate

if TYPE_CHECKING:
    from fanout.aggregators.base import Item

__all__ = ["Vote", "normalised"]

_AROUND = " \t\r\n.,;:!?\"'`*_()[]{}"


class Vote:
    """Counts equal answers. Case, and punctuation around an answer, make no difference.

    The value is ``{"winner", "tied", "votes", "share"}``: on a tie, ``winner`` is None and
    ``tied`` lists the answers with most votes; ``share`` is the largest count by the votes cast.

    Failed branches do not vote; a note says how many there were.
    """

    def __init__(self) -> None:
        self._votes: dict[str, int] = {}
        self._spelling: dict[str, str] = {}
        self._failed = 0

    def add(self, item: Item) -> None:
        """See Accumulator."""
        if item.output is None:
            self._failed += 1
            return
        key = normalised(item.output)
        self._spelling.setdefault(key, item.output.strip(_AROUND))
        self._votes[key] = self._votes.get(key, 0) + 1

    def result(self) -> Aggregate:
        """See Accumulator."""
        cast = sum(self._votes.values())
        most = max(self._votes.values(), default=0)
        first = [self._spelling[key] for key, votes in self._votes.items() if votes == most]
        is_tie = len(first) > 1
        value = {
            "winner": first[0] if len(first) == 1 else None,
            "tied": first if is_tie else [],
            "votes": {self._spelling[key]: votes for key, votes in self._votes.items()},
            "share": most / cast if cast else 0.0,
        }
        notes = [f"a tie of {len(first)} answers with {most:,} votes each"] if is_tie else []
        if self._failed:
            notes.append(f"{self._failed:,} branches failed and did not vote")
        return Aggregate(value=value, succeeded=cast, failed=self._failed, notes=notes)


def normalised(answer: str) -> str:
    """Return what is compared of an answer."""
    return " ".join(answer.strip(_AROUND).casefold().split())
