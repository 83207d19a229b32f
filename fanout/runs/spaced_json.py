"""JSON in parts, with the spaces and lines that ``json.dumps`` gives it."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from fanout.system.text_parts import long_parts

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["array_json", "indented_json", "object_json", "spaced_json"]

_OUTSIDE = re.compile(r'["{}\[\],:]|[^"{}\[\],:]+')
# The rest of a string, to its closing quotation mark.
_INSIDE = re.compile(r'[^"\\]+|\\.|\\\Z|"', re.DOTALL)
_MARKS = frozenset("{}[],:")
_STEP = "  "


def spaced_json(parts: Iterable[str]) -> Iterator[str]:
    """Yield JSON without spaces, in parts, as ``json.dumps`` has it."""
    return long_parts(_spaced(parts))


def indented_json(parts: Iterable[str]) -> Iterator[str]:
    """Yield JSON without spaces, in parts, as ``json.dumps`` has it with ``indent=2``."""
    return long_parts(_indented(parts))


def array_json(values: Iterable[Any], *, is_indented: bool = False) -> Iterator[str]:
    """Yield the JSON of a list of values, in parts, as ``json.dumps`` has it."""
    return long_parts(_array(values, is_indented=is_indented))


def _array(values: Iterable[Any], *, is_indented: bool) -> Iterator[str]:
    mark, comma, end = ("[\n  ", ",\n  ", "\n]") if is_indented else ("[", ", ", "]")
    is_empty = True
    for value in values:
        text = json.dumps(value, ensure_ascii=False, indent=2 if is_indented else None)
        yield mark + text.replace("\n", "\n  ")
        mark, is_empty = comma, False
    yield "[]" if is_empty else end


def object_json(
    items: Iterable[tuple[str, Iterable[str]]], *, is_indented: bool = False
) -> Iterator[str]:
    """Yield the JSON of an object, in parts, as ``json.dumps`` has it.

    Args:
        items: Its names, each with the JSON of its value, in parts, in the same form.
        is_indented: Whether it is that with ``indent=2``.
    """
    return long_parts(_object(items, is_indented=is_indented))


def _object(items: Iterable[tuple[str, Iterable[str]]], *, is_indented: bool) -> Iterator[str]:
    mark, comma, end = ("{\n  ", ",\n  ", "\n}") if is_indented else ("{", ", ", "}")
    is_empty = True
    for name, parts in items:
        yield f"{mark}{json.dumps(name, ensure_ascii=False)}: "
        for part in parts:
            # A line break is one between values: those in strings are escaped.
            yield part.replace("\n", "\n  ") if is_indented else part
        mark, is_empty = comma, False
    yield "{}" if is_empty else end


def _spaced(parts: Iterable[str]) -> Iterator[str]:
    for piece, is_mark in _pieces(parts):
        yield f"{piece} " if is_mark and piece in ",:" else piece


def _indented(parts: Iterable[str]) -> Iterator[str]:
    depth = 0
    # An empty list or object has no line of its own.
    opened = ""
    for piece, is_mark in _pieces(parts):
        if is_mark and piece in "}]":
            depth -= 1
            yield f"{opened}{piece}" if opened else f"\n{_STEP * depth}{piece}"
            opened = ""
            continue
        if opened:
            yield f"{opened}\n{_STEP * depth}"
            opened = ""
        if is_mark and piece in "{[":
            depth += 1
            opened = piece
        elif is_mark and piece == ",":
            yield f",\n{_STEP * depth}"
        else:
            yield ": " if is_mark else piece


def _pieces(parts: Iterable[str]) -> Iterator[tuple[str, bool]]:
    """Yield brackets, commas and colons, numbers and words, and strings in pieces; and which are marks."""
    in_string = False
    rest = ""
    for part in parts:
        text, at = rest + part, 0
        rest = ""
        while at < len(text):
            found = (_INSIDE if in_string else _OUTSIDE).match(text, at)
            piece = text[at:] if found is None else found[0]
            at += len(piece)
            is_mark = not in_string and piece in _MARKS
            if piece == '"':
                in_string = not in_string
                yield piece, False
            elif is_mark:
                yield piece, True
            elif at == len(text) and (piece == "\\" or not in_string):
                # It may go on in the next part.
                rest = piece
            else:
                yield piece if in_string else _as_dumped(piece), False
    if rest:
        yield _as_dumped(rest), False


def _as_dumped(word: str) -> str:
    """Return a number with an exponent as ``json.dumps`` writes it, and other words as they are."""
    return json.dumps(json.loads(word)) if "e" in word and word[-1].isdigit() else word
