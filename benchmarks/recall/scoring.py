"""Scores answers whose truth is known, by code alone."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Score", "count_score", "fact_score", "span_score"]

_CITED = re.compile(r"\[(s-[a-z2-7]{7})\]")
_NUMBER = re.compile(r"(?<![\w.,-])\d+(?:,\d{3})*(?![\w]|[.,]\d)")
_WORD = re.compile(r"\w+")
# An answer that repeats the texts has all spans in it.
_MOST_WORDS = 40


class Score(NamedTuple):
    """What an answer is worth.

    Attributes:
        asked: How many things were asked for.
        right: How many of them the answer has.
        wrong: What it states besides, and is not so.
        cited: How many of the right ones cite the document that they are from.
        off: Of a count: by how much it is off, as a share of what was counted; else None.
    """

    asked: int
    right: int
    wrong: int
    cited: int = 0
    off: float | None = None


def fact_score(
    answer: str | None, facts: Mapping[str, tuple[str, int]], cited: Mapping[str, int]
) -> Score:
    """Score a list of codes.

    A code belongs to the nearest name before it. A fact is right if its name has its code, and no code is
    given to that name that is another's. Each other pair is wrong once.

    Args:
        answer: The answer; None is an empty one.
        facts: The code of each name, and the document that it is from.
        cited: The document of each id that the answer may cite.
    """
    names = re.compile("|".join([r"\b\d{5}\b", *(rf"\b{name}\b" for name in facts)]))
    found = list(names.finditer(answer or ""))
    said: dict[tuple[str, str], bool] = {}
    name = ""
    for number, match in enumerate(found):
        if match[0] in facts:
            name = match[0]
            continue
        after = found[number + 1].start() if number + 1 < len(found) else len(answer or "")
        ids = _CITED.findall((answer or "")[match.end() : after])
        document = facts[name][1] if name else -1
        is_cited = any(cited.get(one) == document for one in ids)
        said[name, match[0]] = said.get((name, match[0]), False) or is_cited
    confused = {name for name, code in said if not name or facts[name][0] != code}
    right = [pair for pair in said if pair[0] and facts[pair[0]][0] == pair[1]]
    clear = [pair for pair in right if pair[0] not in confused]
    wrong = len(said) - len(right)
    return Score(len(facts), len(clear), wrong, sum(said[pair] for pair in clear))


def count_score(answer: str | None, truth: int, of: int) -> Score:
    """Score a count: it is the first number of the answer. Without one, the answer is off by all."""
    found = _NUMBER.search(answer or "")
    if found is None:
        return Score(1, 0, 0, off=1.0)
    said = int(found[0].replace(",", ""))
    is_right = said == truth
    return Score(1, int(is_right), int(not is_right), off=min(abs(said - truth) / of, 1.0))


def span_score(
    answer: str | None, span: str, nothing: str, document: int, cited: Mapping[str, int]
) -> Score:
    """Score a short answer that must have a span in it, apart from case and punctuation.

    An answer that says that nothing is stated, or an empty one, is not right, but states nothing wrong.

    Args:
        answer: The answer; None is an empty one.
        span: What must stand in it.
        nothing: What it says if it does not know.
        document: The document that has the span.
        cited: The document of each id that the answer may cite.
    """
    words = _words(answer or "")
    if not words or " ".join(words) == " ".join(_words(nothing)):
        return Score(1, 0, 0)
    has_it = f" {' '.join(_words(span))} " in f" {' '.join(words)} "
    is_right = has_it and len(words) <= _MOST_WORDS
    is_cited = any(cited.get(one) == document for one in _CITED.findall(answer or ""))
    return Score(1, int(is_right), int(not is_right), int(is_right and is_cited))


def _words(text: str) -> list[str]:
    return _WORD.findall(_CITED.sub(" ", text).lower())
