"""The splitters without a size: the whole text, or its lines."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["LineSplitter", "WholeSplitter"]


class WholeSplitter:
    """The whole text as one chunk of any length."""

    def spans(self, text: str) -> Iterator[tuple[int, int]]:
        """See Splitter."""
        yield 0, len(text)


class LineSplitter:
    """One chunk of any length for each line that is not blank."""

    def spans(self, text: str) -> Iterator[tuple[int, int]]:
        """See Splitter."""
        start = 0
        for line in text.splitlines(keepends=True):
            bare = line.rstrip()
            if bare:
                yield start, start + len(bare)
            start += len(line)
