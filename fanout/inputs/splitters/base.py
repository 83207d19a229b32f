"""The interface of splitters: text in, offsets of chunks out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Splitter"]


class Splitter(Protocol):
    """Splits a text into chunks."""

    def spans(self, text: str) -> Iterator[tuple[int, int]]:
        """Yield start and end (in characters, end excluded) of each chunk, in order."""
