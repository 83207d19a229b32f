"""Answers by the number in them."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

from fanout.aggregators.base import Aggregate, Named, place
from fanout.json_text import parse_json

if TYPE_CHECKING:
    from fanout.aggregators.base import Item

__all__ = ["Rank", "score_of"]

_FIELDS = ("score", "rating", "rank_score")
_NUMBER = r"(?<![\w.])[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?"
_LABEL = r"\b(?:score|rating|grade)\b"
# The scale, which people put between the label and the colon: "Score (0-10): 7".
_SCALE = r"(?:\s*(?:\([^)\n]*\)|\[[^\]\n]*\]|(?:out of|on a scale|from|between)\b[^:=\n]{0,40}))?"
_GAP = r"[^\d\n+-]{0,20}"
_ASSIGNED = re.compile(rf"{_LABEL}[\"'*_]*{_SCALE}\W{{0,4}}?[:=]{_GAP}({_NUMBER})", re.IGNORECASE)
_LABELLED = re.compile(rf"{_LABEL}{_GAP}({_NUMBER})", re.IGNORECASE)
_RANGE = re.compile(
    r"\b(?:scale|range)\s+(?:of\s+|from\s+)?\d+\s*(?:-|\u2013|to)\s*\d+", re.IGNORECASE
)
_ANY = re.compile(_NUMBER)


class Rank:
    """Sorts answers by their number, the highest first; equal numbers share a rank.

    The number is the field ``score`` or ``rating`` of a JSON answer; else the one behind the word
    score, rating or grade; else the first one. ``7/10`` counts as 7, and the scale of ``Score
    (0-10): 7`` is not taken for the score.

    Answers without a number are ranked last, and failed branches are left out; notes name both.
    """

    def __init__(self) -> None:
        self._rows: list[dict[str, Any]] = []
        self._missing = Named()
        self._unscored = Named()

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
        return Aggregate(
            value=ranked,
            succeeded=len(rows),
            failed=self._missing.count,
            notes=self._notes(),
        )

    def _notes(self) -> list[str]:
        notes = []
        missing, unscored = self._missing, self._unscored
        if unscored.count:
            notes.append(f"{unscored.count:,} answers hold no number: ranked last: {unscored}")
        if missing.count:
            notes.append(f"{missing.count:,} failed and left out: {missing}")
        return notes


def _sort_key(row: dict[str, Any]) -> tuple[bool, float, int]:
    return row["score"] is None, -(row["score"] or 0.0), row["index"]


def score_of(answer: str) -> float | None:
    """Return the number that an answer is ranked by, or None where it has none."""
    try:
        value = parse_json(answer)
    except ValueError:
        value = None
    if isinstance(value, dict):
        for field in _FIELDS:
            score = _field_score(value.get(field))
            if score is not None:
                return score
    return _text_score(answer)


def _field_score(value: Any) -> float | None:
    if isinstance(value, str):
        return _text_score(value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return _finite(value)
    return None


def _text_score(text: str) -> float | None:
    found = _ASSIGNED.search(text) or _LABELLED.search(text) or _ANY.search(_RANGE.sub(" ", text))
    if found is None:
        return None
    return _finite(found[found.lastindex or 0].replace(",", ""))


def _finite(number: float | str) -> float | None:
    """Return a number that can be compared, or None where it is too large to be one."""
    try:
        value = float(number)
    except OverflowError:
        return None
    return value if math.isfinite(value) else None
