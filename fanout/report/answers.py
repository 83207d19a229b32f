"""The aggregates of a run, cut to what a page can show."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fanout.report.text import cut, one_line

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fanout.aggregators import Aggregate
    from fanout.runs.results import StoredResult

__all__ = ["Ranking", "ShownAggregate", "ShownAggregates", "VoteTable", "Votes", "aggregates"]

# The page must open on a phone. It says what it leaves out, and `fanout results` has all of it.
_CHARS = 120_000
_GROUPS = 200
_CROSSED = 8
_VOTE_ROWS = 50
_RANK_ROWS = 100
_CELL_CHARS = 300
_NOTE_CHARS = 1000
_NOTES = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class VoteTable:
    """The votes of all groups.

    Attributes:
        answers: The most frequent ones, as columns.
        rows: Each group, its votes for each answer, and all its votes.
        rarer: Answers that have no column.
    """

    answers: list[str]
    rows: list[tuple[str, list[int], int]]
    rarer: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Votes:
    """The result of a vote.

    Attributes:
        winner: The answer with the most votes, or None.
        tied: How many answers share the most votes; 0 where there is a winner, or no vote.
        cast: All votes.
        rows: The most frequent answers with their votes.
        answers: How many different answers there are.
    """

    winner: str | None
    tied: int
    cast: int
    rows: list[tuple[str, int]]
    answers: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Ranking:
    """A ranking: its first rows as rank, score or None, branch and output; ``count`` is of all."""

    rows: list[tuple[int, float | None, str, str]]
    count: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ShownAggregate:
    """An aggregate: one of votes, a ranking, a text, and other JSON.

    Attributes:
        group: The name of its group; None where the run has no groups.
        succeeded: Branches in it with an output.
        count: Branches in it.
        notes: What its aggregator says about it.
        votes: The votes, or None.
        ranking: The ranking, or None.
        text: The text, or None.
        json: Any other value, indented, or None.
    """

    group: str | None
    succeeded: int
    count: int
    notes: list[str]
    votes: Votes | None = None
    ranking: Ranking | None = None
    text: str | None = None
    json: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class ShownAggregates:
    """What the page shows of the aggregates; ``more`` is the number of groups without a place."""

    votes: VoteTable | None
    shown: list[ShownAggregate]
    more: int


class _Room:
    """How many characters of answers the page still takes."""

    def __init__(self) -> None:
        self._left = _CHARS

    def take(self, text: str) -> str:
        shown = cut(text, self._left)
        self._left -= min(len(text), self._left)
        return shown

    def take_line(self, text: str) -> str:
        return self.take(one_line(text, _CELL_CHARS)) or "(empty)"

    def is_full(self) -> bool:
        return not self._left


def aggregates(stored: StoredResult, reduction: str, *, is_grouped: bool) -> ShownAggregates:
    """Return what the page shows of the aggregates of a run."""
    room = _Room()
    votes = _vote_table(stored, room) if is_grouped and reduction == "vote" else None
    shown = list(_aggregates(stored, reduction, room, is_grouped=is_grouped))
    return ShownAggregates(votes=votes, shown=shown, more=len(stored.aggregates) - len(shown))


def _aggregates(
    stored: StoredResult, reduction: str, room: _Room, *, is_grouped: bool
) -> Iterator[ShownAggregate]:
    for number, (group, one) in enumerate(stored.aggregates.items()):
        if number >= _GROUPS or (number and room.is_full()):
            return
        yield ShownAggregate(
            group=room.take_line(group) if is_grouped else None,
            succeeded=one.succeeded,
            count=one.succeeded + one.failed,
            notes=[one_line(note, _NOTE_CHARS) for note in one.notes[:_NOTES]],
            **_value(one, reduction, room),
        )


def _value(one: Aggregate, reduction: str, room: _Room) -> dict[str, Any]:
    if reduction == "vote" and one.value is not None:
        return {"votes": _votes(one.value, room)}
    if reduction == "rank" and one.value is not None:
        return {"ranking": _ranking(one.value, room)}
    if isinstance(one.value, str):
        return {"text": room.take(one.value)}
    return {"json": room.take(_json(one.value))}


def _vote_table(stored: StoredResult, room: _Room) -> VoteTable:
    sums: Counter[str] = Counter()
    for one in stored.aggregates.values():
        sums.update((one.value or {}).get("votes", {}))
    answers = [answer for answer, _ in sums.most_common(_CROSSED)]
    rows = []
    for group, one in list(stored.aggregates.items())[:_GROUPS]:
        votes = (one.value or {}).get("votes", {})
        counts = [votes.get(answer, 0) for answer in answers]
        rows.append((room.take_line(group), counts, sum(votes.values())))
    columns = [room.take_line(answer) for answer in answers]
    return VoteTable(answers=columns, rows=rows, rarer=len(sums) - len(answers))


def _votes(value: dict[str, Any], room: _Room) -> Votes:
    votes = sorted(value["votes"].items(), key=lambda item: -item[1])
    return Votes(
        winner=None if value["winner"] is None else room.take_line(value["winner"]),
        tied=len(value["tied"]),
        cast=sum(count for _, count in votes),
        rows=[(room.take_line(answer), count) for answer, count in votes[:_VOTE_ROWS]],
        answers=len(votes),
    )


def _ranking(value: list[dict[str, Any]], room: _Room) -> Ranking:
    rows = [
        (row["rank"], row["score"], room.take(_branch(row)), room.take_line(row["output"]))
        for row in value[:_RANK_ROWS]
    ]
    return Ranking(rows=rows, count=len(value))


def _branch(row: dict[str, Any]) -> str:
    sample = f"sample {row['sample'] + 1}" if "sample" in row else None
    return one_line(" · ".join(filter(None, (row["document"], row.get("aspect"), sample))))


def _json(value: Any) -> str:
    """Return a value as indented JSON, as much of it as the page takes."""
    pieces, size = [], 0
    for piece in json.JSONEncoder(ensure_ascii=False, indent=2).iterencode(value):
        pieces.append(piece)
        size += len(piece)
        if size > _CHARS:
            pieces.append("\n…")
            break
    return "".join(pieces)
