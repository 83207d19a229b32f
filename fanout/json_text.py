"""JSON in answers: models like to wrap it."""

from __future__ import annotations

import re
from typing import Any

import msgspec

__all__ = ["bare_json", "parse_json"]

_FENCE = re.compile(r"\A```[a-zA-Z]*\s*\n(.*?)\n?\s*```\Z", re.DOTALL)
# Deeper than any answer means to be, and shallow enough to be merged and stored.
_DEEPEST = 100


def bare_json(answer: str) -> str:
    """Return an answer without white space and a code fence around it."""
    bare = answer.strip()
    fenced = _FENCE.match(bare)
    return fenced[1].strip() if fenced else bare


def parse_json(answer: str) -> Any:
    """Return the JSON value of an answer, fenced or not.

    Raises:
        ValueError: It is not JSON (``NaN`` and ``Infinity`` are none), or is nested more than 100
            levels deep.
    """
    try:
        value = msgspec.json.decode(bare_json(answer))
    except msgspec.DecodeError as error:
        raise ValueError(str(error)) from None
    except RecursionError:
        raise ValueError(_too_deep()) from None
    if _is_deeper(value, _DEEPEST):
        raise ValueError(_too_deep())
    return value


def _too_deep() -> str:
    return f"JSON is nested more than {_DEEPEST} levels deep"


def _is_deeper(value: Any, limit: int) -> bool:
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
