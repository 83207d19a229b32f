"""The aggregators that rank answers by a number: all of them, or the first few."""

from __future__ import annotations

import heapq
from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

from fanout.aggregators.base import LEFT_OUT, Aggregate, NameSample
from fanout.aggregators.parts import Fields, answer_value
from fanout.aggregators.scores import score_of, text_score
from fanout.core.numbers import as_number

if TYPE_CHECKING:
    from typing import Self

    from fanout.aggregators.base import Item

__all__ = ["Rank", "Top", "row_place"]

_ALL = Fields()
_TOP = 10
_LOWEST_FIRST = "-"


class _Row(NamedTuple):
    """A ranked answer. Rows are ordered as they are ranked: without a score last, then by input."""

    is_unscored: bool
    order: float
    at: int
    score: int | float | None
    output: str
    place: tuple[tuple[str, Any], ...]


class Rank:
    """Sorts answers by their number, the highest first; equal numbers share a rank.

    With ``by``, the number is that part of the answer: a number, or a text with one. With a ``-``
    before the name, the lowest is first. Without ``by``, it is what ``score_of`` finds. With ``k``, only
    the first ``k`` answers are kept.

    Answers without a number are ranked last, and failed branches are left out; notes name both.
    """

    has_unscored = True

    def __init__(self, fields: Fields = _ALL) -> None:
        name = fields.by[0] if fields.by else None
        self._fields = fields
        self._sign = 1 if name and name.startswith(_LOWEST_FIRST) else -1
        self._reader = fields.reader(name.removeprefix(_LOWEST_FIRST)) if name else None
        self._k = fields.k
        # With a limit a heap, whose first is the last that is kept.
        self._rows: list[_Row] = []
        self._last_first: list[tuple[bool, float, int, _Row]] = []
        # The answers that were left out, by score, as far as it is that of the last that is kept.
        self._cut: Counter[tuple[bool, float]] = Counter()
        self._succeeded = 0
        self._missing = NameSample()
        self._unscored = NameSample()

    def add(self, item: Item) -> None:
        """See Accumulator."""
        if item.output is None:
            self._missing.add(item)
            return
        self._succeeded += 1
        score = self._score(item, item.output)
        if score is None:
            self._unscored.add(item)
            if not self.has_unscored:
                return
        order = 0 if score is None else self._sign * score
        self._keep(_Row(score is None, order, item.index, score, item.output, row_place(item)))

    def merge(self, other: Self) -> None:
        """See Accumulator."""
        for row in other._kept():
            self._keep(row)
        self._cut.update(other._cut)
        self._forget_lower()
        self._succeeded += other._succeeded
        self._missing.merge(other._missing)
        self._unscored.merge(other._unscored)

    def result(self) -> Aggregate:
        """See Accumulator."""
        ranked: list[dict[str, Any]] = []
        for position, row in enumerate(sorted(self._kept()), 1):
            shares = bool(ranked) and ranked[-1]["score"] == row.score
            ranked.append({
                "rank": ranked[-1]["rank"] if shares else position,
                "score": row.score,
                **dict(row.place),
                "output": self._shown(row.output),
            })  # fmt: skip
        last = "ranked last" if self.has_unscored else LEFT_OUT.removeprefix("failed and ")
        what = "number" if self._reader is None else f"number in {self._reader.name}"
        return Aggregate(
            value=ranked,
            succeeded=self._succeeded,
            failed=self._missing.count,
            notes=[
                *self._unscored.notes(f"answers hold no {what}: {last}"),
                *self._missing.notes(LEFT_OUT),
                *self._notes_of_ties(ranked),
            ],
        )

    def _notes_of_ties(self, ranked: list[dict[str, Any]]) -> list[str]:
        cut = self._cut.total()
        if not cut:
            return []
        rank = ranked[-1]["rank"]
        kept = sum(row["rank"] == rank for row in ranked)
        first = "the first in the input is" if kept == 1 else f"the first {kept:,} in the input are"
        return [f"{kept + cut:,} answers share rank {rank:,}: {first} kept, and {cut:,} left out"]

    def _score(self, item: Item, output: str) -> int | float | None:
        if self._reader is None:
            return score_of(output)
        value = self._reader.value(item, answer_value(output, self._fields))
        return text_score(value) if isinstance(value, str) else as_number(value)

    def _shown(self, output: str) -> Any:
        # As elsewhere: an answer with a schema is a value.
        return output if self._fields.schema is None else answer_value(output, self._fields)

    def _kept(self) -> list[_Row]:
        return self._rows if self._k is None else [entry[-1] for entry in self._last_first]

    def _keep(self, row: _Row) -> None:
        if self._k is None:
            self._rows.append(row)
            return
        entry = (not row.is_unscored, -row.order, -row.at, row)
        if len(self._last_first) < self._k:
            heapq.heappush(self._last_first, entry)
            return
        least = max(entry, self._last_first[0])
        left_out = heapq.heapreplace(self._last_first, entry) if least is entry else entry
        self._cut[left_out[:2]] += 1
        self._forget_lower()

    def _forget_lower(self) -> None:
        if self._cut:
            last = self._last_first[0][:2]
            self._cut = Counter({last: self._cut[last]}) if last in self._cut else Counter()


class Top(Rank):
    """The answers with the highest numbers, the first ``k`` (else 10) of a ranking.

    Answers without a number are left out. Equal numbers share a rank, and the first in the input is
    before the others, also where only some of them are among the first ``k``.
    """

    has_unscored = False

    def __init__(self, fields: Fields = _ALL) -> None:
        super().__init__(fields)
        self._k = fields.k or _TOP


def row_place(item: Item) -> tuple[tuple[str, Any], ...]:
    """Return where an answer comes from, as the fields of a row."""
    place: list[tuple[str, Any]] = [("index", item.index), ("document", item.document)]
    if item.aspect is not None:
        place.append(("aspect", item.aspect))
    if item.model is not None:
        place.append(("model", item.model))
    if item.asked_model is not None:
        place.append(("asked_model", item.asked_model))
    if item.sample is not None:
        place.append(("sample", item.sample))
    return tuple(place)
