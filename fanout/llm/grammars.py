"""Grammars of answers in GBNF, the form that llama.cpp enforces.

Source: llama.cpp, grammars/README.md.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from fanout.core.strict_schema import WRAPPED

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["LABEL_LEAD", "label_end_grammar"]

# How an answer begins that is a label, in JSON.
LABEL_LEAD = f'{{"{WRAPPED}": "'
_ESCAPED = {"\\": "\\\\", '"': '\\"'}


def label_end_grammar(labels: Iterable[str]) -> str:
    """Return the grammar of what follows ``LABEL_LEAD``: one of the labels, and the end of the JSON."""
    literals = " | ".join(f'"{_literal(label)}"' for label in labels)
    return f'root ::= ({literals}) "\\"}}"'


def _literal(label: str) -> str:
    within = json.dumps(label, ensure_ascii=False)[1:-1]
    return "".join(_ESCAPED.get(char) or _visible(char) for char in within)


def _visible(char: str) -> str:
    return char if char.isprintable() else f"\\U{ord(char):08X}"
