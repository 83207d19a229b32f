"""The number in an answer, by which it is ranked."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from fanout.core.json_text import parse_json
from fanout.core.numbers import NUMBER, as_number, plain_signs, read_number

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["score_of", "text_score"]

_FIELDS = ("score", "rating", "grade", "rank_score")
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


def score_of(answer: str) -> int | float | None:
    """Return the number by which an answer is ranked, or None if it has none.

    The number of a JSON answer is its field ``score``, ``rating`` or ``grade`` at any depth; without
    such a field, it is the only number in the answer. For text see text_score.
    """
    try:
        value = parse_json(answer)
    except ValueError:
        return text_score(answer)
    return _json_score(value)


def _json_score(value: Any) -> int | float | None:
    """Return the score in a JSON value: the value of a score field, or else the only number."""
    numbers: list[int | float] = []
    has_field = False
    level = [value]
    while level:
        for score in _named_scores(level):
            has_field = True
            if score is not None:
                return score
        numbers += [number for one in level if (number := as_number(one)) is not None]
        level = [child for one in level for child in _children(one)]
    if has_field:
        return None
    if isinstance(value, str):
        return text_score(value)
    return numbers[0] if len(numbers) == 1 else None


def _named_scores(level: list[Any]) -> Iterator[int | float | None]:
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
                yield text_score(value) if isinstance(value, str) else as_number(value)


def _children(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def text_score(text: str) -> int | float | None:
    """Return the number after the word score, rating or grade, or else the first one in a text.

    ``7/10`` is 7. The scale in ``Score (0-10): 7`` is not the score, and ``Score: N/A`` has none. How
    numbers are written: see ``fanout.core.numbers``.
    """
    text = plain_signs(text)
    windows = [text[label.end() : label.end() + _WINDOW] for label in _LABEL.finditer(text)]
    assigned = [window[found.end() :] for window in windows if (found := _ASSIGNMENT.match(window))]
    is_denied = False
    for rest in (*assigned, *windows):
        gap = _GAP.match(rest)
        end = gap.end() if gap else 0
        if _NO_SCORE.search(rest, 0, end):
            is_denied = True
        elif found := NUMBER.match(rest, end):
            return read_number(found[0])
    if is_denied:
        return None
    found = NUMBER.search(_RANGE.sub(" ", text))
    return None if found is None else read_number(found[0])
