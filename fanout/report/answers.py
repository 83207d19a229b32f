"""The aggregate of a run for people: text as it is, votes and ranks as tables, the rest as JSON."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any

from fanout.report.charts import meter
from fanout.report.markup import Markup, cut, fragment, one_line, tag
from fanout.report.tables import table
from fanout.words import plural, share

if TYPE_CHECKING:
    from fanout.aggregators import Aggregate
    from fanout.results import StoredResult

__all__ = ["aggregates"]

# The page must open on a phone: what is left out is said, and `fanout results` has all of it.
_CHARS = 120_000
_GROUPS = 200
_CROSSED = 8
_VOTE_ROWS = 50
_RANK_ROWS = 100
_CELL_CHARS = 300
_NOTE_CHARS = 1000
_NOTES = 10


class _Room:
    """How many characters of answers the page still takes."""

    def __init__(self) -> None:
        self._left = _CHARS

    def take(self, text: str) -> str:
        shown = cut(text, self._left)
        self._left -= min(len(text), self._left)
        return shown

    def is_full(self) -> bool:
        return not self._left


def aggregates(stored: StoredResult, reduction: str, *, is_grouped: bool) -> Markup:
    """Return the aggregate of a run, or one under a heading for each group."""
    room, shown = _Room(), []
    is_crossed = is_grouped and reduction == "vote"
    if is_crossed:
        shown.append(_crossed(stored, room))
    for number, (group, one) in enumerate(stored.aggregates.items()):
        if number >= _GROUPS or (number and room.is_full()):
            break
        shown.append(_aggregate(group, one, reduction, room, is_grouped=is_grouped))
    more = len(stored.aggregates) - len(shown) + is_crossed
    if more:
        left_out = plural(more, "more group is", "more groups are")
        shown.append(tag("p", f"{left_out} not shown here.", class_="faint"))
    return fragment(*shown)


def _crossed(stored: StoredResult, room: _Room) -> Markup:
    """Return the votes of all groups as one table: a row for each, a column for each answer."""
    sums: Counter[str] = Counter()
    for one in stored.aggregates.values():
        sums.update((one.value or {}).get("votes", {}))
    answers = [answer for answer, _ in sums.most_common(_CROSSED)]
    rows = []
    for group, one in list(stored.aggregates.items())[:_GROUPS]:
        votes = (one.value or {}).get("votes", {})
        cast = sum(votes.values())
        cells = [f"{votes.get(answer, 0):,} ({share(votes.get(answer, 0), cast)})"
                 for answer in answers]  # fmt: skip
        name = tag("bdi", room.take(one_line(group, _CELL_CHARS)) or "(empty)")
        rows.append((name, *cells, f"{cast:,}"))
    names = [tag("bdi", room.take(one_line(answer, _CELL_CHARS)) or "(empty)")
             for answer in answers]  # fmt: skip
    heads = ("Group", *names, "Votes")
    numbers = tuple(range(1, len(heads)))
    left_out = len(sums) - len(answers)
    more = tag("p", f"{left_out:,} rarer answers are only below.", class_="faint")
    return tag(
        "div", table("Votes by group", heads, rows, numbers=numbers), more if left_out else None,
        class_="aggregate",
    )  # fmt: skip


def _aggregate(
    group: str, one: Aggregate, reduction: str, room: _Room, *, is_grouped: bool
) -> Markup:
    heading = None
    if is_grouped:
        of = f"{one.succeeded:,} of {one.succeeded + one.failed:,} branches"
        name = tag("bdi", room.take(one_line(group, _CELL_CHARS)) or "(empty)")
        heading = tag("h3", name, " ", tag("small", of))
    return tag("div", heading, _value(one.value, reduction, room), _notes(one), class_="aggregate")


def _value(value: Any, reduction: str, room: _Room) -> Markup:
    if reduction == "vote":
        return _vote(value, room)
    if reduction == "rank":
        return _rank(value, room)
    if isinstance(value, str):
        return tag("div", room.take(value) or "(an empty text)", class_="answer")
    return tag("pre", room.take(_json(value)), tabindex=0)


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


def _vote(value: dict[str, Any], room: _Room) -> Markup:
    votes = sorted(value["votes"].items(), key=lambda item: -item[1])
    cast = sum(count for _, count in votes)
    said = tag("p", "Nobody voted.")
    if value["winner"] is not None:
        winner = tag("bdi", room.take(one_line(value["winner"], _CELL_CHARS)) or "(empty)")
        said = tag("p", tag("strong", winner), f" won with {share(votes[0][1], cast)} of the ",
                   plural(cast, "vote", "votes"), class_="verdict")  # fmt: skip
    elif value["tied"]:
        count = plural(votes[0][1], "vote", "votes")
        said = tag("p", f"A tie: {len(value['tied']):,} answers have {count} each.")
    rows = [
        (tag("bdi", room.take(one_line(answer, _CELL_CHARS)) or "(empty)"), f"{count:,}",
         share(count, cast), meter([(count, "ok")], cast))
        for answer, count in votes[:_VOTE_ROWS]
    ]  # fmt: skip
    heads = ("Answer", "Votes", "Share", "")
    return fragment(
        said,
        table("Votes", heads, rows, numbers=(1, 2)) if rows else None,
        _more(len(votes), _VOTE_ROWS),
    )


def _rank(value: list[dict[str, Any]], room: _Room) -> Markup:
    rows = [
        (
            f"{row['rank']:,}",
            "none" if row["score"] is None else f"{row['score']:,.6g}",
            fragment(
                tag("bdi", tag("small", room.take(_where(row)))),
                tag("div", tag("bdi", room.take(one_line(row["output"], _CELL_CHARS)))),
            ),
        )
        for row in value[:_RANK_ROWS]
    ]
    if not rows:
        return tag("p", "No answer was ranked.")
    heads = ("Rank", "Score", "Answer")
    return fragment(table("Ranking", heads, rows, numbers=(0, 1)), _more(len(value), _RANK_ROWS))


def _where(row: dict[str, Any]) -> str:
    sample = f"sample {row['sample'] + 1}" if "sample" in row else None
    return one_line(" · ".join(filter(None, (row["document"], row.get("aspect"), sample))), 200)


def _more(count: int, shown: int) -> Markup | None:
    return tag("p", f"The first {shown:,} of {count:,}.", class_="faint") if count > shown else None


def _notes(one: Aggregate) -> Markup | None:
    if not one.notes:
        return None
    notes = [tag("li", one_line(note, _NOTE_CHARS)) for note in one.notes[:_NOTES]]
    return tag("ul", *notes, class_="notes")
