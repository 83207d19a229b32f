"""JSON in answers: models like to wrap it."""

from __future__ import annotations

import json
import re
from typing import Any

__all__ = ["bare_json", "parse_json"]

_FENCE = re.compile(r"\A```[a-zA-Z]*\s*\n(.*?)\n?\s*```\Z", re.DOTALL)


def bare_json(answer: str) -> str:
    """Return an answer without white space and a code fence around it."""
    bare = answer.strip()
    fenced = _FENCE.match(bare)
    return fenced[1].strip() if fenced else bare


def parse_json(answer: str) -> Any:
    """Return the JSON value of an answer, fenced or not. Raises ValueError where it is none."""
    return json.loads(bare_json(answer))
