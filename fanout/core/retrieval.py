"""Where the passages of a prompt come from."""

from __future__ import annotations

import re
from typing import NamedTuple

__all__ = ["Retrieval", "is_retrieval_function"]

_FUNCTION = re.compile(r"[^\W\d]\w*(?:\.[^\W\d]\w*)*:[^\W\d]\w*")


class Retrieval(NamedTuple):
    """What the ``{context}`` of a prompt is made of.

    Attributes:
        source: The files of the passages, or the function that finds them.
        top_k: The most passages.
        query: The template of what is looked for.
    """

    source: str
    top_k: int
    query: str

    @property
    def is_function(self) -> bool:
        """Whether a function finds the passages."""
        return is_retrieval_function(self.source)


def is_retrieval_function(source: str) -> bool:
    """Say whether passages come from a function, and not from files or another run."""
    if source.startswith("run:"):
        return False
    return source.startswith("callable:") or _FUNCTION.fullmatch(source) is not None
