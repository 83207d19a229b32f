"""The aggregators that rank answers by a number: all of them, or the first few."""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING, Any

import msgspec

from fanout.aggregators.base import LEFT_OUT, Aggregate, NameSample, place
from fanout.aggregators.parts import LOWEST_FIRST, Fields, answer_value
from fanout.aggregators.records import Records
from fanout.aggregators.scores import score_of, text_score
from fanout.aggregators.streams import Streamed
from fanout.core.numbers import as_number
from fanout.core.units import plural

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Self

    from fanout.aggregators.base import Item

__all__ = ["Rank", "Rerank", "Top", "row_place"]

_ALL = Fields()
_TOP = 10
_ANSWER = "answer"
# What an entry of a heap takes.
_ENTRY_BYTES = 160

# Whether an answer has a number, and that number, the highest first; then the lowest index.
_Number = tuple[bool, float]
_Entry = tuple[bool, float, int]


class _Best:
    """Says of answers whether they may be among the first ``k``, so that few of the others are kept.

    Args:
        k: How many there are to be.
    """

    def __init__(self, k: int) -> None:
        self._k = k
        # A heap, whose first is the last of the first k.
        self._last_first: list[_Entry] = []
        # The answers that were refused with the number of that one.
        self._refused = 0

    def takes(self, entry: _Entry) -> bool | None:
        """Say whether an answer may be among the first ``k``; None if it takes no other's place."""
        if len(self._last_first) < self._k:
            heapq.heappush(self._last_first, entry)
            return None
        last = self._last_first[0]
        if entry < last:
            self._refused += entry[:2] == last[:2]
            return False
        heapq.heapreplace(self._last_first, entry)
        if self._last_first[0][:2] != last[:2]:
            self._refused = 0
        return True

    def refused(self) -> list[tuple[_Number, int]]:
        """Return the number of which answers were refused, with how many, unless none were."""
        return [(self._last_first[0][:2], self._refused)] if self._refused else []


class Rank:
    """Sorts answers by their number, the highest first; equal numbers share a rank.

    With ``by``, the number is that part of the answer: a number, or a text with one. With a ``-``
    before the name, the lowest is first. Without ``by``, it is what ``score_of`` finds. With ``k``, only
    the first ``k`` answers are kept.

    Answers without a number are ranked last, and failed branches are left out; notes name both.
    """

    has_unscored = True
    # The answers it has where the job does not say how many; None is all.
    most: int | None = None

    def __init__(self, fields: Fields = _ALL, records: Records | None = None) -> None:
        name = fields.by[0] if fields.by else None
        self._fields = fields
        self._sign = 1 if name and name.startswith(LOWEST_FIRST) else -1
        self._reader = fields.reader(name.removeprefix(LOWEST_FIRST)) if name else None
        self._k = self.most if fields.k is None else fields.k
        self._rows = records or Records()
        self._best = _Best(self._k) if self._k is not None else None
        self._refused: list[tuple[_Number, int]] = []
        self._succeeded = 0
        self._missing = NameSample()
        self._unscored = NameSample()
        # The last rank that is shown: its answers that are kept, and those that are left out.
        self._last_rank = self._kept = self._cut = 0

    def add(self, item: Item) -> None:
        """See Accumulator."""
        score = self._counted(item)
        if item.output is None or (score is None and not self.has_unscored):
            return
        order = 0 if score is None else self._sign * score
        if self._may_be_kept((score is not None, -order, -item.index)):
            self._keep((score is None, order, item.index), item)

    def _counted(self, item: Item) -> float | None:
        """Count an item, and return its number, or None if it has none."""
        if item.output is None:
            self._missing.add(item)
            return None
        self._succeeded += 1
        score = self._score(item, item.output)
        if score is None:
            self._unscored.add(item)
        return score

    def _may_be_kept(self, entry: _Entry) -> bool:
        if self._best is None:
            return True
        takes = self._best.takes(entry)
        if takes is None:
            self._rows.hold(_ENTRY_BYTES)
        return takes is not False

    def spill(self) -> None:
        """See Spilling: from now on, all answers are kept as records."""
        if self._best is not None:
            self._refused += self._best.refused()
            self._best = None

    def _keep(self, key: tuple[bool, float, int], item: Item) -> None:
        self._rows.add(key, item.output, msgspec.json.encode(dict(row_place(item))))

    def merge(self, other: Self) -> None:
        """See Accumulator."""
        other.spill()
        self._refused += other._refused
        for key, data in other._rows:
            is_unscored, order, index = key
            if self._may_be_kept((not is_unscored, -order, -index)):
                self._rows.add(key, *data)
        self._succeeded += other._succeeded
        self._missing.merge(other._missing)
        self._unscored.merge(other._unscored)

    def result(self) -> Aggregate | Streamed:
        """See Accumulator."""
        return Streamed(form="rows", chunks=self._chunks(), end=self._end)

    def _chunks(self) -> Iterator[bytes]:
        self.spill()
        last: _Number | None = None
        for position, ((is_unscored, order, _), (output, where)) in enumerate(self._rows, 1):
            number = (not is_unscored, -order)
            if self._k is not None and position > self._k:
                if number != last:
                    break
                self._cut += 1
                continue
            if number != last:
                self._last_rank, self._kept = position, 0
            self._kept += 1
            last = number
            row = {
                "rank": self._last_rank,
                "score": None if is_unscored else self._sign * order,
                **msgspec.json.decode(where),
                "output": self._shown(output),
            }
            yield msgspec.json.encode(row) + b"\n"
        self._cut += sum(count for number, count in self._refused if number == last)

    def _end(self) -> Aggregate:
        last = "ranked last" if self.has_unscored else LEFT_OUT.removeprefix("failed and ")
        what = "no number" if self._reader is None else f"no number in {self._reader.name}"
        what = f"{what}: {last}"
        return Aggregate(
            value=None,
            succeeded=self._succeeded,
            failed=self._missing.count,
            notes=[
                *self._unscored.notes(f"answers have {what}", one=f"answer has {what}"),
                *self._missing.notes(LEFT_OUT),
                *self._notes_of_ties(),
            ],
        )

    def _notes_of_ties(self) -> list[str]:
        if not self._cut:
            return []
        kept, cut = self._kept, self._cut
        first = "the first in the input is" if kept == 1 else f"the first {kept:,} in the input are"
        return [
            f"{kept + cut:,} answers share rank {self._last_rank:,}: {first} kept, and {cut:,} left out"
        ]

    def _score(self, item: Item, output: str) -> int | float | None:
        if self._reader is None:
            return score_of(output)
        value = self._reader.value(item, answer_value(output, self._fields))
        return text_score(value) if isinstance(value, str) else as_number(value)

    def _shown(self, output: str) -> Any:
        # As elsewhere: an answer with a schema is a value.
        return output if self._fields.schema is None else answer_value(output, self._fields)


class Top(Rank):
    """The answers with the highest numbers, the first ``k`` (else 10) of a ranking.

    Answers without a number are left out. Equal numbers share a rank, and the first in the input is
    before the others, also where only some of them are among the first ``k``.
    """

    has_unscored = False
    most = _TOP


class Rerank(Rank):
    """The answer with the highest number; of equal ones, the first in the input.

    Of an object with a field ``answer``, the value is that field; of any other answer, all of it. A note
    says where it is from, and another how many have the same number.
    """

    has_unscored = False

    def __init__(self, fields: Fields = _ALL, records: Records | None = None) -> None:
        super().__init__(fields, records)
        # What it is ranked by, its number, and the branch; then how many have that number.
        self._first: tuple[tuple[float, int], float, Item] | None = None
        self._equal = 0

    def add(self, item: Item) -> None:
        """See Accumulator."""
        score = self._counted(item)
        if score is not None:
            self._offer(((self._sign * score, item.index), score, item), 1)

    def _offer(self, other: tuple[tuple[float, int], float, Item], count: int) -> None:
        if self._first is None or other[0] < self._first[0]:
            is_equal = self._first is not None and other[0][0] == self._first[0][0]
            self._equal = self._equal + count if is_equal else count
            self._first = other
        elif other[0][0] == self._first[0][0]:
            self._equal += count

    def merge(self, other: Self) -> None:
        """See Accumulator."""
        if other._first is not None:
            self._offer(other._first, other._equal)
        self._succeeded += other._succeeded
        self._missing.merge(other._missing)
        self._unscored.merge(other._unscored)

    def spill(self) -> None:
        """See Spilling: it keeps one answer."""

    def result(self) -> Aggregate:
        """See Accumulator."""
        notes = self._end().notes
        value = None
        if self._first is not None:
            _, score, item = self._first
            scored = self._succeeded - self._unscored.count
            best = f"the best of {plural(scored, 'answer', 'answers')}"
            notes = [f"{best} is of {place(item)}: score {score}", *notes]
            if self._equal > 1:
                notes.append(
                    f"{self._equal:,} answers have this score: the first in the input is taken"
                )
            value = self._answer(item.output or "")
        return Aggregate(
            value=value, succeeded=self._succeeded, failed=self._missing.count, notes=notes
        )

    def _answer(self, output: str) -> Any:
        value = answer_value(output, self._fields)
        is_object = isinstance(value, dict) and _ANSWER in value
        return value[_ANSWER] if is_object else self._shown(output)


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
