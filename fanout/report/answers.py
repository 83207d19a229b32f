"""The aggregates of a run, truncated to the size of a page."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import islice
from typing import TYPE_CHECKING, Any

from fanout.core.citations import pieces
from fanout.report.text import cut, one_line
from fanout.runs.answer_text import EMPTY_GROUP, cell_words

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from fanout.aggregators import Aggregate
    from fanout.core.reduces import Reduce
    from fanout.runs.result_values import ResultValues

__all__ = [
    "Ranking",
    "ShownAggregate",
    "ShownAggregates",
    "ShownTable",
    "VoteTable",
    "Votes",
    "aggregates",
]

# The page must open on a phone. It says what it omits, and `fanout results` prints everything.
_CHARS = 120_000
_GROUPS = 200
_CROSSED = 8
_VOTE_ROWS = 50
_RANK_ROWS = 100
_TABLE_ROWS = 200
_CELL_CHARS = 300
_NOTE_CHARS = 1000
_NOTES = 10
# Larger values are not decoded.
_LOADED_BYTES = 8_000_000
_MOST_COUNTED = 20_000
_SOURCES = 200


@dataclass(frozen=True, kw_only=True, slots=True)
class VoteTable:
    """The votes of all groups.

    Attributes:
        answers: The most frequent answers, as columns.
        rows: Each group with its votes for each answer, and the sum of its votes.
        rarer: The number of answers without a column.
    """

    answers: list[str]
    rows: list[tuple[str, list[int], int]]
    rarer: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Votes:
    """The result of a vote.

    Attributes:
        tied: How many answers share the most votes; 0 with a winner, or without votes.
        cast: The number of votes.
        rows: The most frequent answers with their votes.
        answers: The number of different answers.
    """

    winner: str | None
    tied: int
    cast: int
    rows: list[tuple[str, int]]
    answers: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Ranking:
    """A ranking: its first rows with rank, score or None, branch and output; and the row count."""

    rows: list[tuple[int, str | None, str, str]]
    count: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ShownTable:
    """A table: the names of its columns, its first rows with cells and whether each is a number."""

    names: list[str]
    rows: list[list[tuple[str, bool]]]
    count: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ShownSource:
    """A source: the name of its place on the page, its id, document with pages, and how often it is cited."""

    anchor: str
    id: str
    words: str
    count: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ShownAggregate:
    """An aggregate as the page shows it: votes, a ranking, a table, text, or other JSON, indented.

    Attributes:
        group: The name of its group; None if the run has no groups.
        count: All its branches, the ``succeeded`` ones included.
        behind: What is behind it, in words; None if that is not known.
        pieces: Where it cites sources: its text, or JSON, in pieces, citations with their sources.
        sources: Those that it cites, with the names of their places on the page.
        more_sources: The number of others.
    """

    group: str | None
    succeeded: int
    count: int
    notes: list[str]
    votes: Votes | None = None
    ranking: Ranking | None = None
    table: ShownTable | None = None
    text: str | None = None
    json: str | None = None
    behind: str | None = None
    pieces: list[tuple[str, ShownSource | None]] | None = None
    sources: list[ShownSource] = field(default_factory=list)
    more_sources: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class ShownAggregates:
    """The aggregates of a reduce as the page shows them.

    Attributes:
        name: The name of the reduce; empty for the only one of a job without a list.
        votes: The votes of all groups.
        problem: Why there is none, or None.
        more: The number of omitted groups.
    """

    name: str
    votes: VoteTable | None
    shown: list[ShownAggregate]
    more: int
    problem: str | None = None


class _CharBudget:
    """The number of characters of answers that the page can still take."""

    def __init__(self, chars: int) -> None:
        self._left = chars

    def take(self, text: str) -> str:
        shown = cut(text, self._left)
        self._left -= min(len(text), self._left)
        return shown

    def take_line(self, text: str) -> str:
        return self.take(one_line(text, _CELL_CHARS)) or EMPTY_GROUP

    def is_full(self) -> bool:
        return not self._left


def aggregates(values: ResultValues, reduces: Sequence[Reduce]) -> list[ShownAggregates]:
    """Return the aggregates of a run as the page shows them, for each reduce."""
    chars = _CHARS // max(1, len(reduces))
    return [_of_reduce(values.of(one.name), one, _CharBudget(chars)) for one in reduces]


def _of_reduce(values: ResultValues, reduce: Reduce, budget: _CharBudget) -> ShownAggregates:
    is_grouped = reduce.group_by is not None
    votes = _vote_table(values, budget) if is_grouped and reduce.kind == "vote" else None
    shown = list(_aggregates(values, reduce.kind, budget, is_grouped=is_grouped))
    return ShownAggregates(
        name=reduce.name,
        votes=votes,
        shown=shown,
        more=sum(1 for _ in values.aggregates()) - len(shown),
        problem=values.stored.problem,
    )


def _aggregates(
    values: ResultValues, reduction: str, budget: _CharBudget, *, is_grouped: bool
) -> Iterator[ShownAggregate]:
    for number, (group, one) in enumerate(values.aggregates()):
        if number >= _GROUPS or (number and budget.is_full()):
            return
        shown = _problem(one, budget) or _value(one, values, reduction, budget)
        sources = [
            ShownSource(
                anchor=f"source-{number}-{source.id}",
                id=source.id,
                words=budget.take_line(source.words),
                count=source.count,
            )
            for source in one.sources[:_SOURCES]
        ]
        yield ShownAggregate(
            group=budget.take_line(group) if is_grouped else None,
            succeeded=one.succeeded,
            count=one.succeeded + one.failed,
            notes=[one_line(note, _NOTE_CHARS) for note in one.notes[:_NOTES]],
            behind=_behind(one),
            pieces=_pieces(shown, sources) if sources else None,
            sources=sources,
            more_sources=len(one.sources) - len(sources),
            **shown,
        )


def _behind(one: Aggregate) -> str | None:
    """Return what is behind an aggregate, unless the reason why there is none says so."""
    words = None if one.coverage is None else one.coverage.words
    return None if words is not None and words in (one.problem or "") else words


def _pieces(
    shown: dict[str, Any], sources: list[ShownSource]
) -> list[tuple[str, ShownSource | None]] | None:
    text = shown.get("text") or shown.get("json")
    by_id = {source.id: source for source in sources}
    return (
        None
        if text is None
        else [(piece, None if one is None else by_id[one]) for piece, one in pieces(text, by_id)]
    )


def _problem(one: Aggregate, budget: _CharBudget) -> dict[str, Any]:
    problem = one.problem
    return {} if problem is None else {"text": budget.take(f"There is no aggregate: {problem}")}


def _value(
    one: Aggregate, values: ResultValues, reduction: str, budget: _CharBudget
) -> dict[str, Any]:
    value = values.preview(one, most_bytes=_LOADED_BYTES, most_rows=_TABLE_ROWS)
    held = one.held
    if held is not None and held.form == "json" and held.end - held.start > _LOADED_BYTES:
        return {"json": budget.take(value)}
    if value is not None:
        count = held.rows if held is not None and held.form == "rows" else None
        if reduction == "vote":
            return {"votes": _votes(value, budget)}
        if reduction in ("rank", "top"):
            return {"ranking": _ranking(value, count, budget)}
        if reduction in ("table", "pairwise", "resolve"):
            return {"table": _table(value, count, budget)}
        if reduction == "best":
            rows = [{"best of": key, **row} for key, row in value.items()]
            return {"table": _table(rows, None, budget)}
    is_text = isinstance(value, str)
    return {"text": budget.take(value)} if is_text else {"json": budget.take(_json(value))}


def _vote_table(values: ResultValues, budget: _CharBudget) -> VoteTable:
    sums: Counter[str] = Counter()
    for _, one in values.aggregates():
        sums.update(_counted(values, one))
        if len(sums) > _MOST_COUNTED:
            sums = Counter(dict(sums.most_common(_MOST_COUNTED // 2)))
    answers = [answer for answer, _ in sums.most_common(_CROSSED)]
    rows = []
    for group, one in islice(values.aggregates(), _GROUPS):
        votes = _counted(values, one)
        counts = [votes.get(answer, 0) for answer in answers]
        rows.append((budget.take_line(group), counts, sum(votes.values())))
    columns = [budget.take_line(answer) for answer in answers]
    return VoteTable(answers=columns, rows=rows, rarer=len(sums) - len(answers))


def _counted(values: ResultValues, one: Aggregate) -> dict[str, int]:
    """Return the votes of a group; none of one that has too many different answers for a page."""
    value = values.preview(one, most_bytes=_LOADED_BYTES, most_rows=0)
    return value.get("votes", {}) if isinstance(value, dict) else {}


def _votes(value: dict[str, Any], budget: _CharBudget) -> Votes:
    votes = sorted(value["votes"].items(), key=lambda item: -item[1])
    return Votes(
        winner=None if value["winner"] is None else budget.take_line(value["winner"]),
        tied=len(value["tied"]),
        cast=sum(count for _, count in votes),
        rows=[(budget.take_line(answer), count) for answer, count in votes[:_VOTE_ROWS]],
        answers=len(votes),
    )


def _ranking(value: list[dict[str, Any]], count: int | None, budget: _CharBudget) -> Ranking:
    rows = [
        (
            row["rank"],
            None if row["score"] is None else _number(row["score"]),
            budget.take(_branch(row)),
            budget.take_line(cell_words(row["output"])),
        )
        for row in value[:_RANK_ROWS]
    ]
    return Ranking(rows=rows, count=len(value) if count is None else count)


def _table(value: list[dict[str, Any]], count: int | None, budget: _CharBudget) -> ShownTable:
    shown = value[:_TABLE_ROWS]
    names = list(dict.fromkeys(name for row in shown for name in row))
    rows = [[_cell(row.get(name), budget) for name in names] for row in shown]
    shown_names = [budget.take_line(name) for name in names]
    return ShownTable(names=shown_names, rows=rows, count=len(value) if count is None else count)


def _cell(value: Any, budget: _CharBudget) -> tuple[str, bool]:
    if value is None:
        return "", False
    if isinstance(value, int | float) and not isinstance(value, bool):
        return budget.take(_number(value)), True
    return budget.take_line(cell_words(value)), False


def _number(value: float) -> str:
    """Return a number with separators of thousands."""
    words = cell_words(value)
    return words if "e" in words else format(Decimal(words), ",f")


def _branch(row: dict[str, Any]) -> str:
    sample = f"sample {row['sample'] + 1}" if "sample" in row else None
    return one_line(
        " · ".join(filter(None, (row["document"], row.get("aspect"), row.get("model"), sample)))
    )


def _json(value: Any) -> str:
    """Return a value as indented JSON, truncated to the size of the page."""
    pieces, size = [], 0
    for piece in json.JSONEncoder(ensure_ascii=False, indent=2).iterencode(value):
        pieces.append(piece)
        size += len(piece)
        if size > _CHARS:
            pieces.append("\n…")
            break
    return "".join(pieces)
