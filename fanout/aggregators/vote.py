"""The aggregator that counts equal answers, for a majority vote."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import msgspec

from fanout.aggregators.base import Aggregate, ballots
from fanout.core.json_text import identity, parse_json
from fanout.core.units import plural

if TYPE_CHECKING:
    from fanout.aggregators.base import Item

__all__ = ["Vote", "normalised", "value_key"]

_AROUND = " \t\r\n.,;:!?\"'`*_()[]{}"
_MOST_MARKS = 4
_TRAILING = " \t\r\n.,;!?"
_PAIRS = {"**": "**", "__": "__", "```": "```", "(": ")", "[": "]", "{": "}",
          '"': '"', "'": "'", "`": "`", "*": "*", "_": "_"}  # fmt: skip


class _Candidate(msgspec.Struct):
    """An answer that may win; ``full`` is shown if another candidate has the same label."""

    label: str
    full: str
    votes: int = 0


class Vote:
    """Counts equal answers.

    Texts are compared without case, white space, and surrounding punctuation. JSON answers are
    compared as values, without spacing and the order of keys; ``1`` equals ``1.0``, and strings in
    them are compared as texts. An object with a single field is shown as the value of that field.

    The value is ``{"winner", "tied", "votes", "share"}``: on a tie, ``winner`` is None and
    ``tied`` lists the answers with most votes; ``share`` is the largest count by the votes cast.

    Failed branches do not vote; a note has their number. A branch that asked for several answers has
    a vote for each.
    """

    def __init__(self) -> None:
        self._candidates: dict[bytes, _Candidate] = {}
        self._succeeded = 0
        self._failed = 0
        # Votes for answers that branches of several answers do not name: they are rare and long.
        self._unnamed = 0

    def add(self, item: Item) -> None:
        """See Accumulator."""
        if item.output is None:
            self._failed += 1
            return
        self._succeeded += 1
        for answer, votes in ballots(item).items():
            if answer:
                self._count(answer, votes)
            else:
                self._unnamed += votes

    def _count(self, answer: str, votes: int) -> None:
        value = _value(answer)
        key = identity(_comparable(value))
        if key not in self._candidates:
            self._candidates[key] = _candidate(value)
        self._candidates[key].votes += votes

    def result(self) -> Aggregate:
        """See Accumulator."""
        votes = dict(_shown(list(self._candidates.values())))
        cast = sum(votes.values()) + self._unnamed
        most = max(votes.values(), default=0)
        first = [label for label, count in votes.items() if count == most]
        is_tie = len(first) > 1
        value = {
            "winner": first[0] if len(first) == 1 else None,
            "tied": first if is_tie else [],
            "votes": votes,
            "share": most / cast if cast else 0.0,
        }
        each = plural(most, "vote", "votes")
        notes = [f"a tie of {len(first):,} answers with {each} each"] if is_tie else []
        if self._failed:
            failed = plural(self._failed, "branch", "branches")
            notes.append(f"{failed} failed and did not vote")
        return Aggregate(value=value, succeeded=self._succeeded, failed=self._failed, notes=notes)


def value_key(value: Any) -> bytes:
    """Return what is equal for two values, JSON or text, that a vote would count as equal."""
    return identity(_comparable(_value(value) if isinstance(value, str) else value))


def normalised(answer: str) -> str:
    """Return the form of a text in which it is compared."""
    bare = answer.strip(_AROUND) or answer
    return " ".join(bare.casefold().split())


def _value(answer: str) -> Any:
    """Return the JSON value of an answer, or the answer itself."""
    bare = answer.strip(_AROUND)
    try:
        value = parse_json(answer)
    except ValueError:
        number = _number(bare)
        return answer if number is None else number
    # A text that is also a JSON literal, such as "true", is shown as it was written.
    return bare if value is None or isinstance(value, bool) else value


def _number(bare: str) -> int | float | None:
    """Return the number if a text has nothing else, as in ``**7**``, or None."""
    try:
        value = msgspec.json.decode(bare)
    except (msgspec.DecodeError, ValueError, RecursionError):
        return None
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _comparable(value: Any) -> Any:
    if isinstance(value, str):
        return normalised(value)
    if isinstance(value, dict):
        return {key: _comparable(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_comparable(one) for one in value]
    return value


def _candidate(value: Any) -> _Candidate:
    if isinstance(value, str):
        return _Candidate(label=_unwrapped(value), full=value.strip())
    full = json.dumps(value, ensure_ascii=False)
    only = next(iter(value.values())) if isinstance(value, dict) and len(value) == 1 else None
    if isinstance(only, str) and only.strip():
        return _Candidate(label=only.strip(), full=full)
    if isinstance(only, int | float):
        return _Candidate(label=json.dumps(only), full=full)
    return _Candidate(label=full, full=full)


def _unwrapped(text: str) -> str:
    """Return a text without the marks that surround it; only whole pairs are removed."""
    bare = text.strip()
    for _ in range(_MOST_MARKS):
        bare = bare.rstrip(_TRAILING) or bare
        for left, right in _PAIRS.items():
            if bare.startswith(left) and bare.endswith(right):
                bare = bare[len(left) : -len(right)].strip() or bare
                break
        else:
            break
    return bare


def _shown(candidates: list[_Candidate]) -> list[tuple[str, int]]:
    """Return label and votes of each candidate; no two have the same label."""
    named: dict[str, int] = {}
    for one in candidates:
        named[one.label] = named.get(one.label, 0) + 1
    taken: set[str] = set()
    shown = []
    for one in candidates:
        label = one.label if named[one.label] == 1 else one.full
        number = 1
        while label in taken:
            number += 1
            label = f"{one.full} ({number})"
        taken.add(label)
        shown.append((label, one.votes))
    return shown
