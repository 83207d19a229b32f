"""Short answers of models without the marks around them: ``**Yes.**`` is ``Yes``, ``.NET`` stays."""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["OPENINGS", "folded", "layers", "loosened", "unmarked", "unwrapped"]

# What a label that is cut off may have before it: the pair has no end.
OPENINGS = " \t\r\n\"'`*_(["
_MOST_LAYERS = 8
_MINUS = "\u2212"
_ENDS = " \t\r\n.,;!?\u3002"
# Marks count in whole pairs only: that of `.NET`, `A*` or `C++` is a part of the label.
_PAIRS = (
    ("```", "```"), ("**", "**"), ("__", "__"), ("(", ")"), ("[", "]"), ("{", "}"), ('"', '"'),
    ("'", "'"), ("`", "`"), ("*", "*"), ("_", "_"), ("\u201c", "\u201d"), ("\u2018", "\u2019"),
    ("\u201e", "\u201c"), ("\u00ab", "\u00bb"), ("\u300c", "\u300d"),
)  # fmt: skip
# Those that a person takes for a part of the answer, as in `__init__` or `(none)`.
_OWN = ("__", "_", "(", "[", "{")
_MARKS = tuple(pair for pair in _PAIRS if pair[0] not in _OWN)


def layers(text: str, *, pairs: tuple[tuple[str, str], ...] = _PAIRS) -> Iterator[str]:
    """Yield a text, then the same with ever fewer of the marks around it; an empty one only at first.

    A layer is a pair of quotes, brackets or marks of Markdown that holds all of the text, or the
    punctuation at its end.
    """
    bare = text.strip()
    yield bare
    for _ in range(_MOST_LAYERS):
        inner = _without_pair(bare, pairs) or bare.rstrip(_ENDS)
        if not inner or inner == bare:
            return
        bare = inner
        yield bare


def unwrapped(text: str) -> str:
    """Return a text without the marks around it."""
    *_, bare = layers(text)
    return bare


def unmarked(text: str) -> str:
    """Return a text as a person would write it: without quotes and bold type around it."""
    *_, bare = layers(text, pairs=_MARKS)
    return bare


def folded(text: str) -> str:
    """Return a text as it is compared with others: without marks around it, case and spacing."""
    return " ".join(unwrapped(text).casefold().split())


def loosened(label: str) -> str:
    """Return what is the same for spellings of a label: also in other forms of its characters."""
    return folded(unicodedata.normalize("NFKC", label).replace(_MINUS, "-"))


def _without_pair(text: str, pairs: tuple[tuple[str, str], ...]) -> str:
    for left, right in pairs:
        if text.startswith(left) and text.endswith(right):
            inner = text[len(left) : -len(right)]
            # "(a) or (b)" is not in brackets.
            if left not in inner and right not in inner:
                return inner.strip()
    return ""
