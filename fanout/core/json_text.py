"""JSON in answers, which may wrap it in reasoning, a code fence or prose, and its equality."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import msgspec

from fanout.core.reasoning import OWN_TAGS, PROMPTED_TAGS, without_reasoning

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["bare_json", "fenced", "found_json", "identity", "is_deeper", "parse_json"]

# Deeper than a useful answer is, and shallow enough to be merged and stored.
_DEEPEST = 100
_TOO_DEEP = f"JSON is nested more than {_DEEPEST} levels deep"
_FENCES = ("```", "~~~")
_MARK = re.compile(r'\\.|["{}\[\]]', re.DOTALL)
_OPENING = re.compile(r"[{\[]")
# The beginnings of JSON; ``[1]`` is a reference, and ``{name}`` a placeholder.
_JSON_START = re.compile(r'\{\s*"|\[\s*["{\[]')
# The search for matching brackets reads at most this many times the text: a hostile text has many
# brackets without a match.
_MAX_READS = 4
_MIN_SEARCH_CHARS = 10_000


def bare_json(answer: str) -> str:
    """Return the JSON of an answer, as the answer has it. Raises ValueError: see parse_json."""
    return found_json(answer)[0]


def parse_json(answer: str) -> Any:
    """Return the JSON value of an answer.

    It is the whole answer, or the only JSON in its code fences, or the only object in its text (or
    the only array, if that has lines of its own). Reasoning before the answer is left out.

    Raises:
        ValueError: There is no JSON (``NaN`` and ``Infinity`` are none), there are several values
            that differ, or it is nested more than 100 levels deep.
    """
    return found_json(answer)[1]


def found_json(answer: str) -> tuple[str, Any]:
    """Return the JSON of an answer, as the answer has it, and its value. Raises as parse_json."""
    whole = answer.strip()
    try:
        return whole, _decoded(whole)
    except ValueError as error:
        reason = error
    text = without_reasoning(whole, OWN_TAGS + PROMPTED_TAGS).strip()
    for candidates in ((text,), fenced(text), _in_prose(text)):
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
        raise ValueError(_TOO_DEEP) from None
    except UnicodeError:
        raise ValueError("it has an unpaired surrogate") from None
    if is_deeper(value, _DEEPEST):
        raise ValueError(_TOO_DEEP)
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
        raise ValueError(f"it has {len(values)} different JSON values, not one")
    return first


def fenced(text: str) -> Iterator[str]:
    """Yield the text within code fences; the last fence may have no end."""
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

    The search stops at JSON that is not closed: a part of an answer is not the answer.
    """
    left = max(_MAX_READS * len(text), _MIN_SEARCH_CHARS)
    position = 0
    while left > 0 and (opening := _OPENING.search(text, position)):
        start = opening.start()
        end = _closing(text, start)
        left -= (len(text) if end is None else end) - start
        if end is None and _JSON_START.match(text, start):
            return
        if end is None or (text[start] == "[" and not _JSON_START.match(text, start)):
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
    """Say whether a piece has its lines to itself: ``[1]`` in a sentence is a reference."""
    line_start = text.rfind("\n", 0, start) + 1
    line_end = text.find("\n", end)
    after = text[end : len(text) if line_end < 0 else line_end]
    return not text[line_start:start].strip() and not after.strip()


def is_deeper(value: Any, limit: int) -> bool:
    """Say whether lists and objects are nested more than ``limit`` levels deep."""
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


def identity(value: Any) -> bytes:
    """Return bytes that are equal for two JSON values if and only if the values are equal.

    The order of keys makes no difference, ``1`` and ``1.0`` are equal, ``1`` and ``true`` are not.
    """
    return msgspec.json.encode(_plain_numbers(value), order="deterministic")


def _plain_numbers(value: Any) -> Any:
    if isinstance(value, float):
        return int(value) if value.is_integer() else value
    if isinstance(value, dict):
        return {key: _plain_numbers(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_plain_numbers(one) for one in value]
    return value
