"""The aggregator that ranks answers by the number in them."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

from fanout.aggregators.base import LEFT_OUT, Aggregate, NameSample, place
from fanout.core.json_text import parse_json

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from fanout.aggregators.base import Item

__all__ = ["Rank", "score_of"]

_FIELDS = ("score", "rating", "grade", "rank_score")
_NUMBER = re.compile(r"(?<![\w.])[-+]?(?:\d{1,3}(?:,\d{3})++|\d++)(?:\.\d++)?")
_LABEL = re.compile(r"\b(?:score|rating|grade)\b", re.IGNORECASE)
# The characters behind a label that the patterns below read, which bounds their cost.
_WINDOW = 120
# A label may be followed by its scale before the colon: "Score (0-10): 7".
_ASSIGNMENT = re.compile(
    r"[\"'*_]{0,8}"
    r"(?:\s{0,8}(?:\([^)\n]*+\)|\[[^\]\n]*+\]"
    r"|(?:out of|on a scale|from|between)\b[^:=\n]{0,40}+))?+"
    r"\W{0,4}?[:=]",
    re.IGNORECASE,
)
_GAP = re.compile(r"[^\d\n+-]{0,20}+")
# "Score: N/A out of 10" has no score, and "out of 10" is not one.
_NO_SCORE = re.compile(
    r"\b(?:null|none|nil|nan|n/?a|unknown|undefined|unscored|tbd|not|no|cannot)\b"
    r"|\b(?:out of|max(?:imum)?)\b",
    re.IGNORECASE,
)
_RANGE = re.compile(
    r"\b(?:scale|range)\s++(?:of\s++|from\s++)?\d++\s*+(?:-|\u2013|to)\s*+\d++", re.IGNORECASE
)


class Rank:
    """Sorts answers by their number, the highest first; equal numbers share a rank.

    The number of a JSON answer is its field ``score``, ``rating`` or ``grade`` at any depth;
    without such a field, it is the only number in the answer. In a text it is the number after the
    word score, rating or grade, or else the first number. ``7/10`` counts as 7. The scale in
    ``Score (0-10): 7`` is not the score, and ``Score: N/A`` has none.

    Answers without a number are ranked last, and failed branches are left out; notes name both.
    """

    def __init__(self) -> None:
        self._rows: list[dict[str, Any]] = []
        self._missing = NameSample()
        self._unscored = NameSample()

    def add(self, item: Item) -> None:
        """See Accumulator."""
        if item.output is None:
            self._missing.add(place(item))
            return
        score = score_of(item.output)
        if score is None:
            self._unscored.add(place(item))
        row = {"score": score, "index": item.index, "document": item.document}
        if item.aspect is not None:
            row["aspect"] = item.aspect
        if item.model is not None:
            row["model"] = item.model
        if item.sample:
            row["sample"] = item.sample
        self._rows.append({**row, "output": item.output})

    def result(self) -> Aggregate:
        """See Accumulator."""
        rows = sorted(self._rows, key=_sort_key)
        ranked: list[dict[str, Any]] = []
        for position, row in enumerate(rows, 1):
            shares = bool(ranked) and ranked[-1]["score"] == row["score"]
            ranked.append({"rank": ranked[-1]["rank"] if shares else position, **row})
        unscored = self._unscored.notes("answers hold no number: ranked last")
        return Aggregate(
            value=ranked,
            succeeded=len(rows),
            failed=self._missing.count,
            notes=[*unscored, *self._missing.notes(LEFT_OUT)],
        )


def _sort_key(row: dict[str, Any]) -> tuple[bool, float, int]:
    return row["score"] is None, -(row["score"] or 0.0), row["index"]


def score_of(answer: str) -> float | None:
    """Return the number by which an answer is ranked, or None if it has none."""
    try:
        value = parse_json(answer)
    except ValueError:
        return _text_score(answer)
    return _json_score(value)


def _json_score(value: Any) -> float | None:
    """Return the score in a JSON value: the value of a score field, or else the only number."""
    numbers: list[float] = []
    has_field = False
    level = [value]
    while level:
        for score in _named_scores(level):
            has_field = True
            if score is not None:
                return score
        numbers += [number for one in level if (number := _number(one)) is not None]
        level = [child for one in level for child in _children(one)]
    if has_field:
        return None
    if isinstance(value, str):
        return _text_score(value)
    return numbers[0] if len(numbers) == 1 else None


def _named_scores(level: list[Any]) -> Iterator[float | None]:
    """Yield the values of score fields, in the order of preference of their names."""
    objects = [
        {str(key).casefold(): one for key, one in each.items()}
        for each in level
        if isinstance(each, dict)
    ]
    for field in _FIELDS:
        for fields in objects:
            if field in fields and not isinstance(fields[field], dict | list):
                value = fields[field]
                yield _text_score(value) if isinstance(value, str) else _number(value)


def _children(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def _number(value: Any) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return _finite(value) if is_number else None


def _text_score(text: str) -> float | None:
    windows = [text[label.end() : label.end() + _WINDOW] for label in _LABEL.finditer(text)]
    assigned = [window[found.end() :] for window in windows if (found := _ASSIGNMENT.match(window))]
    is_denied = False
    for rest in (*assigned, *windows):
        gap = _GAP.match(rest)
        end = gap.end() if gap else 0
        if _NO_SCORE.search(rest, 0, end):
            is_denied = True
        elif found := _NUMBER.match(rest, end):
            return _finite(found[0].replace(",", ""))
    if is_denied:
        return None
    found = _NUMBER.search(_RANGE.sub(" ", text))
    return None if found is None else _finite(found[0].replace(",", ""))


def _finite(number: float | str) -> float | None:
    """Return a finite number, or None."""
    try:
        value = float(number)
    except OverflowError:
        return None
    return value if math.isfinite(value) else None
