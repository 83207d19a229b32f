"""Packing of a stream of chunks into a stream of shards."""

from __future__ import annotations

from itertools import repeat
from typing import TYPE_CHECKING

from msgspec import structs

from fanout.core.cells import cell_size
from fanout.core.neighbours import with_beside
from fanout.core.records import Chunk, Shard

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from fanout.core.neighbours import Beside

__all__ = ["MAX_SHARD_BRANCHES", "MAX_SHARD_BYTES", "pack", "shard_chunk"]

MAX_SHARD_BRANCHES = 500
MAX_SHARD_BYTES = 8_000_000

_ALONE: Beside = ((), ())


def pack(
    chunks: Iterable[Chunk],
    *,
    branches_per_chunk: int,
    max_branches: int = MAX_SHARD_BRANCHES,
    max_bytes: int = MAX_SHARD_BYTES,
    neighbours: int = 0,
    first: int = 0,
    first_branches: int | None = None,
) -> Iterator[Shard]:
    """Yield shards of up to ``max_branches`` branches and about ``max_bytes`` of input, lazily.

    The input of a chunk is its text and its columns. With ``neighbours``, a shard has that many of the
    chunks beside its first and its last one, which count, too.

    ``first`` is the index of the first branch, where others precede these chunks. The first shard has up
    to ``first_branches``, and each further one twice as many, where the first answers are soon of use.

    A chunk whose branches do not fit into one shard is repeated in the next, so that any number
    of samples works. A chunk larger than ``max_bytes`` gets a shard of its own.
    """
    count = size_bytes = first_chunk = 0
    begins_at = first // branches_per_chunk
    most = min(max_branches, first_branches or max_branches)
    packed: list[Chunk] = []
    before: Sequence[Chunk] = ()
    after: Sequence[Chunk] = ()
    for number, (chunk, beside) in enumerate(_placed(chunks, neighbours), begins_at):
        remaining = branches_per_chunk
        while remaining:
            if not packed:
                first_chunk, before = number, beside[0]
                size_bytes = _text_size(before)
            after = beside[1]
            packed.append(chunk)
            size_bytes += len(chunk.text)
            if chunk.columns:
                size_bytes += cell_size(chunk.columns)
            taken = min(remaining, most - count)
            count += taken
            remaining -= taken
            if count >= most or size_bytes + (_text_size(after) if after else 0) >= max_bytes:
                yield _shard(first, count, first_chunk, packed, (before, after))
                first += count
                count = 0
                most = min(max_branches, 2 * most)
                packed = []
    if packed:
        yield _shard(first, count, first_chunk, packed, (before, after))


def _placed(chunks: Iterable[Chunk], neighbours: int) -> Iterable[tuple[Chunk, Beside]]:
    if neighbours:
        return with_beside(chunks, neighbours)
    return zip(chunks, repeat(_ALONE), strict=False)


def _text_size(chunks: Sequence[Chunk]) -> int:
    return sum(len(chunk.text) for chunk in chunks)


def _shard(first: int, count: int, first_chunk: int, packed: list[Chunk], beside: Beside) -> Shard:
    before, after = (list(map(_bare, some)) for some in beside)
    return Shard(
        first=first,
        count=count,
        first_chunk=first_chunk,
        chunks=packed,
        before=before,
        after=after,
    )


def _bare(chunk: Chunk) -> Chunk:
    """Return a chunk as a neighbour: what its own branches need is not there."""
    return structs.replace(chunk, columns={}, layout=None)


def shard_chunk(shard: Shard, index: int, branches_per_chunk: int) -> Chunk:
    """Return the chunk of the branch with the stage-wide ``index``."""
    return shard.chunks[index // branches_per_chunk - shard.first_chunk]
