"""JSON in answers: models like to wrap it, in reasoning, in a code fence, in a sentence."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import msgspec

from fanout.core.reasoning import OWN_TAGS, PROMPTED_TAGS, without_reasoning

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["bare_json", "is_deeper", "parse_json"]

# Deeper than any answer means to be, and shallow enough to be merged and stored.
_DEEPEST = 100
_FENCES = ("```", "~~~")
_MARK = re.compile(r'\\.|["{}\[\]]', re.DOTALL)
_OPENING = re.compile(r"[{\[]")
# What begins so was meant to be JSON; a reference is ``[1]``, and a placeholder ``{name}``.
_MEANT = re.compile(r'\{\s*"|\[\s*["{\[]')
# How often a text is read in search of brackets that match: hostile ones have many that do not.
_READINGS = 4
_LEAST_LOOK = 10_000


def bare_json(answer: str) -> str:
    """Return the JSON of an answer, as it is written there. Raises ValueError: see parse_json."""
    return _found(answer)[0]


def parse_json(answer: str) -> Any:
    """Return the JSON value of an answer.

    It is all of the answer, or the only JSON in its code fences, or the only object in its text
    (or the only array, where that has lines of its own). What the model thought before its answer
    is left out.

    Raises:
        ValueError: There is no JSON (``NaN`` and ``Infinity`` are none), there are several values
            that differ, or it is nested more than 100 levels deep.
    """
    return _found(answer)[1]


def _found(answer: str) -> tuple[str, Any]:
    whole = answer.strip()
    try:
        return whole, _decoded(whole)
    except ValueError as error:
        reason = error
    text = without_reasoning(whole, OWN_TAGS + PROMPTED_TAGS).strip()
    for candidates in ((text,), _fenced(text), _in_prose(text)):
        values = list(_values(candidates))
        if values:
            return _only(values)
    raise reason


def _decoded(text: str) -> Any:
    try:
        value = msgspec.json.decode(text)
    except msgspec.DecodeError as error:
        raise ValueError(str(error)) from None
    except RecursionError:
        raise ValueError(_too_deep()) from None
    except UnicodeError:
        raise ValueError("it has half a character") from None
    if is_deeper(value, _DEEPEST):
        raise ValueError(_too_deep())
    return value


def _values(candidates: Iterable[str]) -> Iterator[tuple[str, Any]]:
    for candidate in candidates:
        try:
            yield candidate, _decoded(candidate)
        except ValueError:
            continue


def _only(values: list[tuple[str, Any]]) -> tuple[str, Any]:
    first = values[0]
    if any(value != first[1] for _, value in values[1:]):
        raise ValueError(f"it has {len(values)} JSON values that differ, where one was asked for")
    return first


def _fenced(text: str) -> Iterator[str]:
    """Yield what is between the lines of code fences; the last one may have no end."""
    lines: list[str] | None = None
    for line in text.splitlines():
        is_fence = line.lstrip().startswith(_FENCES)
        if is_fence and lines is not None:
            yield "\n".join(lines).strip()
        if is_fence:
            lines = [] if lines is None else None
        elif lines is not None:
            lines.append(line)
    if lines is not None:
        yield "\n".join(lines).strip()


def _in_prose(text: str) -> Iterator[str]:
    """Yield the outermost objects, and arrays that have lines of their own.

    What was meant to be JSON and is none is not searched: a part of an answer is not the answer.
    """
    left = max(_READINGS * len(text), _LEAST_LOOK)
    position = 0
    while left > 0 and (opening := _OPENING.search(text, position)):
        start = opening.start()
        end = _closing(text, start)
        left -= (len(text) if end is None else end) - start
        if end is None and _MEANT.match(text, start):
            return
        if end is None or (text[start] == "[" and not _MEANT.match(text, start)):
            position = start + 1
            continue
        position = end
        if text[start] == "{" or _has_own_lines(text, start, end):
            yield text[start:end]


def _closing(text: str, start: int) -> int | None:
    """Return where the bracket at ``start`` is closed, or None."""
    depth, in_string = 0, False
    for found in _MARK.finditer(text, start):
        mark = found[0]
        if mark == '"':
            in_string = not in_string
        elif in_string or mark[0] == "\\":
            continue
        elif mark in "{[":
            depth += 1
        else:
            depth -= 1
            if depth == 0:
                return found.end()
    return None


def _has_own_lines(text: str, start: int, end: int) -> bool:
    """Say whether nothing else is on the lines of a piece: ``[1]`` in a sentence is a reference."""
    line_start = text.rfind("\n", 0, start) + 1
    line_end = text.find("\n", end)
    after = text[end : len(text) if line_end < 0 else line_end]
    return not text[line_start:start].strip() and not after.strip()


def _too_deep() -> str:
    return f"JSON is nested more than {_DEEPEST} levels deep"


def is_deeper(value: Any, limit: int) -> bool:
    """Say whether lists and objects are nested in each other more than ``limit`` levels deep."""
    level = [value]
    for _ in range(limit + 1):
        nested = [item for item in level if isinstance(item, dict | list)]
        level = [
            child
            for item in nested
            for child in (item.values() if isinstance(item, dict) else item)
        ]
        if not level:
            return False
    return True
