"""A uniform random sample of a stream, in bounded memory."""

from __future__ import annotations

from heapq import heappush, heapreplace
from random import Random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from fanout.core.records import Document

__all__ = ["sampled"]

# The characters of a sample that are kept in memory. Of a larger one only the positions are, and
# its documents are read again where that is possible.
_KEPT_CHARS = 64_000_000
_COLUMN_CHARS = 100


def sampled(
    documents: Iterable[Document],
    size: int,
    *,
    seed: int,
    again: Callable[[], Iterable[Document]] | None,
) -> Iterator[Document]:
    """Yield a sample of documents without repetition, in their order.

    Each document draws a number, and those with the smallest are taken. So the sample depends on
    the seed and the order alone, and a larger sample has all documents of a smaller one.

    Args:
        documents: The documents, which are read to their end first.
        size: The size of the sample; fewer documents are all taken.
        seed: Another seed gives another sample.
        again: Returns the same documents once more; None if they can be read only once, and then
            the whole sample is kept in memory.
    """
    draw = Random(seed).random  # noqa: S311 - no secret
    reservoir = _Reservoir(size, most_chars=None if again is None else _KEPT_CHARS)
    for position, document in enumerate(documents):
        reservoir.add(draw(), position, document)
    if again is None or reservoir.has_documents:
        yield from reservoir.documents()
        return
    wanted = reservoir.positions()
    for position, document in enumerate(again()):
        if position in wanted:
            yield document


class _Reservoir:
    """Keeps the documents with the smallest numbers, or only their positions if they are large.

    Args:
        size: How many it keeps.
        most_chars: The size of the documents above which only positions are kept; None is no limit.
    """

    def __init__(self, size: int, *, most_chars: int | None) -> None:
        self._size = size
        self._most_chars = most_chars
        self._chars = 0
        self.has_documents = True
        # The largest number comes first, as the numbers are negated.
        self._heap: list[tuple[float, int, Document | None]] = []

    def add(self, number: float, position: int, document: Document) -> None:
        """Keep a document if its number is among the smallest so far."""
        is_full = len(self._heap) == self._size
        if is_full and -number <= self._heap[0][0]:
            return
        entry = (-number, position, document if self.has_documents else None)
        out = None
        if is_full:
            out = heapreplace(self._heap, entry)[2]
        else:
            heappush(self._heap, entry)
        if self.has_documents:
            self._chars += _chars(document) - (0 if out is None else _chars(out))
            if self._most_chars is not None and self._chars > self._most_chars:
                self.has_documents = False
                self._heap = [(key, at, None) for key, at, _ in self._heap]

    def positions(self) -> frozenset[int]:
        """Return the positions of what it keeps."""
        return frozenset(at for _, at, _ in self._heap)

    def documents(self) -> Iterator[Document]:
        """Yield the documents that it keeps, in their order."""
        for _, _, document in sorted(self._heap, key=lambda one: one[1]):
            if document is not None:
                yield document


def _chars(document: Document) -> int:
    return len(document.text) + _COLUMN_CHARS * (1 + len(document.columns))
