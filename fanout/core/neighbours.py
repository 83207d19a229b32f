"""The text around a chunk: ``{before}`` and ``{after}``."""

from __future__ import annotations

from collections import deque
from itertools import takewhile
from typing import TYPE_CHECKING, TypeAlias

from msgspec import structs

from fanout.core.records import Chunk

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from fanout.core.records import Shard

    # The chunks before and after one in its document, both in the order of the document.
    Beside: TypeAlias = tuple[Sequence[Chunk], Sequence[Chunk]]

__all__ = ["around_in", "with_around", "with_beside"]


def around_in(shard: Shard, number: int, most: int) -> tuple[str, str]:
    """Return the texts before and after a chunk of a shard.

    Args:
        shard: The shard.
        number: The stage-wide index of the chunk.
        most: How many chunks each text may have.
    """
    at = len(shard.before) + number - shard.first_chunk
    known = [*shard.before, *shard.chunks, *shard.after]
    chunk = known[at]
    if chunk.around is not None:
        return chunk.around
    before = _same(known[max(0, at - most) : at], chunk)
    return _joined(before), _joined(_same(known[at + 1 : at + 1 + most], chunk))


def with_around(chunks: Iterable[Chunk], most: int) -> Iterator[Chunk]:
    """Yield chunks that know the texts around them, lazily; without neighbours, as they are."""
    if not most:
        yield from chunks
        return
    for chunk, (before, after) in with_beside(chunks, most):
        yield structs.replace(chunk, around=(_joined(before), _joined(after)))


def _same(chunks: Iterable[Chunk], as_this: Chunk) -> list[Chunk]:
    return [one for one in chunks if one.document_index == as_this.document_index]


def _joined(chunks: Sequence[Chunk]) -> str:
    """Return the text of chunks that follow each other, without what two of them share."""
    text, end = "", None
    for chunk in chunks:
        shared = 0 if end is None else max(0, end - chunk.start)
        # Chunks are cut at white space, which they do not have.
        between = "\n" if end is not None and chunk.start > end else ""
        text += between + chunk.text[shared:]
        end = chunk.end if end is None else max(end, chunk.end)
    return text


def with_beside(chunks: Iterable[Chunk], most: int) -> Iterator[tuple[Chunk, Beside]]:
    """Yield chunks with up to ``most`` chunks before and after each in its document, lazily."""
    seen = deque[Chunk]()
    at = 0
    for chunk in chunks:
        seen.append(chunk)
        if len(seen) - at > most:
            yield seen[at], _beside(seen, at, most)
            at += 1
        if at > most:
            seen.popleft()
            at -= 1
    for last in range(at, len(seen)):
        yield seen[last], _beside(seen, last, most)


def _beside(seen: Sequence[Chunk], at: int, most: int) -> Beside:
    document = seen[at].document_index

    def is_same(one: Chunk) -> bool:
        return one.document_index == document

    near = range(at - 1, max(-1, at - 1 - most), -1)
    before = list(takewhile(is_same, (seen[one] for one in near)))
    after = takewhile(is_same, (seen[one] for one in range(at + 1, min(len(seen), at + 1 + most))))
    return before[::-1], list(after)
