"""The aggregator that counts equal answers, for a majority vote."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import msgspec

from fanout.aggregators.base import Aggregate, NameSample, ballots
from fanout.aggregators.parts import Fields, Written, answer_value, as_written
from fanout.aggregators.records import Records
from fanout.aggregators.streams import Streamed
from fanout.aggregators.vote_names import Ballots
from fanout.core.json_text import found_json, identity
from fanout.core.label_text import folded, unmarked, unwrapped
from fanout.core.numbers import plain_signs
from fanout.core.units import plural
from fanout.system.external_sort import grouped

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Self

    from fanout.aggregators.base import Item
    from fanout.aggregators.vote_names import First

__all__ = ["Vote", "value_key"]

_ALL = Fields()
_NULL = "null"
# What a candidate takes beside its texts.
_CANDIDATE_BYTES = 400


class _Candidate(msgspec.Struct):
    """An answer that may win; ``full`` is shown if another candidate has the same label.

    It is shown as in the first answer that gave it: ``first`` is the index of the branch, which of its
    answers it is, and which value of that.
    """

    label: str
    full: str
    first: First
    votes: int = 0


class Vote:
    """Counts equal answers, or with ``by`` equal values of one part of them.

    JSON is compared as values, without spacing and the order of keys; ``1`` equals ``1.0``, and neither
    equals ``true`` or ``"1"``. Answers with a shape are compared as they are. Otherwise texts, also
    those in JSON, are compared without case, white space, marks around them and final punctuation. Of
    equal answers the first is shown: a number as it was written, an object with a single field as the
    value of that field, and a text "null" in quotes where there may also be null.

    The value is ``{"winner", "tied", "votes", "share"}``: on a tie, ``winner`` is None and
    ``tied`` lists the answers with most votes; ``share`` is the largest count by the votes cast.

    Failed branches do not vote, and neither do answers without the part; notes have their number. A
    branch that asked for several answers has a vote for each.
    """

    def __init__(self, fields: Fields = _ALL, records: Records | None = None) -> None:
        self._fields = fields
        self._records = records or Records()
        reader = fields.reader(fields.by[0]) if fields.by else None
        self._reader = None if reader is None or reader.is_whole else reader
        # A part, or an answer with a schema, may be null, which is no text.
        self._may_be_null = self._reader is not None or fields.schema is not None
        self._candidates: dict[bytes, _Candidate] = {}
        self._succeeded = 0
        self._failed = 0
        # Votes for answers that branches of several answers do not name: they are rare and long.
        self._unnamed = 0
        self._without = NameSample()

    def add(self, item: Item) -> None:
        """See Accumulator."""
        if item.output is None:
            self._failed += 1
            return
        self._succeeded += 1
        for at, (answer, votes) in enumerate(ballots(item).items()):
            if answer:
                for part, (key, value) in enumerate(self._values(item, answer).items()):
                    self._cast(key, value, (item.index, at, part), votes)
            else:
                self._unnamed += votes

    def ballot(self, answer: str) -> bytes:
        """Return what is equal for two answers of a branch that vote for the same.

        Answers without the part are compared whole.
        """
        value = answer_value(answer, self._fields)
        parts = [] if self._reader is None else self._reader.of_answer(value)
        values = parts or [value if self._fields.is_typed else _read(answer)]
        return b"\n".join(sorted({self._key(one) for one in values}))

    def merge(self, other: Self) -> None:
        """See Accumulator."""
        other.spill()
        for key, data in other._records:
            self._records.add(key, *data)
        self._succeeded += other._succeeded
        self._failed += other._failed
        self._unnamed += other._unnamed
        self._without.merge(other._without)

    def spill(self) -> None:
        """See Spilling."""
        for key, one in self._candidates.items():
            self._records.add((key, one.first), one.label, one.full, one.votes)
        self._candidates = {}

    def result(self) -> Streamed:
        """See Accumulator."""
        self.spill()
        found = Ballots(self._records.scratch)
        return Streamed(form="json", chunks=self._chunks(found), end=lambda: self._end(found))

    def _chunks(self, found: Ballots) -> Iterator[bytes]:
        with found:
            for _, same in grouped(self._records):
                (_, first), (label, full, votes) = next(same)
                found.add(first, label, full, votes + sum(one[1][2] for one in same))
            found.close_list()
            is_tie = found.with_most > 1
            winner = next(iter(found.leaders()), None) if not is_tie else None
            yield b'{"winner":' + msgspec.json.encode(winner) + b',"tied":['
            yield from _joined(map(msgspec.json.encode, found.leaders() if is_tie else ()))
            yield b'],"votes":{'
            yield from _joined(b"%b:%d" % (msgspec.json.encode(name), n) for name, n in found)
            cast = found.cast + self._unnamed
            yield b'},"share":' + msgspec.json.encode(found.most / cast if cast else 0.0) + b"}"

    def _end(self, found: Ballots) -> Aggregate:
        return Aggregate(
            value=None,
            succeeded=self._succeeded,
            failed=self._failed,
            notes=self._notes(found.with_most, found.most),
        )

    def _notes(self, first: int, most: int) -> list[str]:
        each = plural(most, "vote", "votes")
        notes = [f"a tie of {first:,} answers with {each} each"] if first > 1 else []
        if self._failed:
            failed = plural(self._failed, "branch", "branches")
            notes.append(f"{failed} failed and did not vote")
        if self._reader is not None:
            what = f"no {self._reader.name} and did not vote"
            notes += self._without.notes(f"answers have {what}", one=f"answer has {what}")
        return notes

    def _values(self, item: Item, output: str) -> dict[bytes, Any]:
        """Return what an answer votes for, by what is compared; each value once."""
        if self._reader is None:
            value = answer_value(output, self._fields) if self._fields.is_typed else _read(output)
            values = [value]
        else:
            values = self._reader.values(item, answer_value(output, self._fields))
            if not values:
                self._without.add(item)
        votes: dict[bytes, Any] = {}
        for value in values:
            # The first of equal values is the one that is shown.
            votes.setdefault(self._key(value), value)
        return votes

    def _key(self, value: Any) -> bytes:
        value = value.value if isinstance(value, Written) else value
        return identity(value if self._fields.is_typed else _comparable(value))

    def _cast(self, key: bytes, value: Any, first: First, votes: int) -> None:
        candidate = self._candidates.get(key)
        if candidate is None or first < candidate.first:
            made = _candidate(value, first, is_typed=self._fields.is_typed)
            if self._may_be_null and isinstance(value, str) and made.label == _NULL:
                made.label = made.full = json.dumps(_NULL)
            if candidate is None:
                texts = sum(map(sys.getsizeof, {key, made.label, made.full}))
                self._records.hold(_CANDIDATE_BYTES + texts)
            made.votes = 0 if candidate is None else candidate.votes
            self._candidates[key] = candidate = made
        candidate.votes += votes


def value_key(value: Any) -> bytes:
    """Return what is equal for two values, JSON or text, that a vote would count as equal."""
    value = _read(value) if isinstance(value, str) else value
    return identity(_comparable(value.value if isinstance(value, Written) else value))


def _read(answer: str) -> Any:
    """Return the JSON value of an answer, or the answer itself."""
    bare = unwrapped(answer)
    try:
        text, value = found_json(answer)
    except ValueError:
        number = _number(bare)
        return answer if number is None else number
    # A text that is also a JSON literal, such as "true", is shown as it was written.
    return bare if value is None or isinstance(value, bool) else as_written(text, value)


def _number(bare: str) -> int | float | Written | None:
    """Return the number if a text has nothing else, as in ``**7**``, or None."""
    plain = plain_signs(bare)
    try:
        value = msgspec.json.decode(plain)
    except (msgspec.DecodeError, ValueError, RecursionError):
        return None
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    found: int | float | Written = as_written(bare, value)
    return found


def _comparable(value: Any) -> Any:
    if isinstance(value, str):
        return folded(value)
    if isinstance(value, dict):
        return {key: _comparable(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_comparable(one) for one in value]
    return value


def _candidate(value: Any, first: First, *, is_typed: bool) -> _Candidate:
    if isinstance(value, Written):
        return _Candidate(label=value.text, full=value.text, first=first)
    full = json.dumps(value, ensure_ascii=False)
    if isinstance(value, str):
        label = value if is_typed else unmarked(value)
        return _Candidate(label=label, full=full if is_typed else value.strip(), first=first)
    only = next(iter(value.values())) if isinstance(value, dict) and len(value) == 1 else None
    if isinstance(only, str) and only.strip():
        return _Candidate(label=only.strip(), full=full, first=first)
    if isinstance(only, int | float):
        return _Candidate(label=json.dumps(only), full=full, first=first)
    return _Candidate(label=full, full=full, first=first)


def _joined(parts: Iterator[bytes]) -> Iterator[bytes]:
    mark = b""
    for part in parts:
        yield mark + part
        mark = b","
