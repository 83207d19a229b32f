"""Packing of a stream of chunks into a stream of shards."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fanout.core.cells import cell_size
from fanout.core.records import Chunk, Shard

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["MAX_SHARD_BRANCHES", "MAX_SHARD_BYTES", "pack", "shard_chunk"]

MAX_SHARD_BRANCHES = 500
MAX_SHARD_BYTES = 8_000_000


def pack(
    chunks: Iterable[Chunk],
    *,
    branches_per_chunk: int,
    max_branches: int = MAX_SHARD_BRANCHES,
    max_bytes: int = MAX_SHARD_BYTES,
) -> Iterator[Shard]:
    """Yield shards of up to ``max_branches`` branches and about ``max_bytes`` of input, lazily.

    The input of a chunk is its text and its columns.

    A chunk whose branches do not fit into one shard is repeated in the next, so that any number
    of samples works. A chunk larger than ``max_bytes`` gets a shard of its own.
    """
    first = count = size_bytes = first_chunk = 0
    packed: list[Chunk] = []
    for number, chunk in enumerate(chunks):
        remaining = branches_per_chunk
        while remaining:
            if not packed:
                first_chunk = number
            packed.append(chunk)
            size_bytes += len(chunk.text)
            if chunk.columns:
                size_bytes += cell_size(chunk.columns)
            taken = min(remaining, max_branches - count)
            count += taken
            remaining -= taken
            if count >= max_branches or size_bytes >= max_bytes:
                yield Shard(first=first, count=count, first_chunk=first_chunk, chunks=packed)
                first += count
                count = size_bytes = 0
                packed = []
    if packed:
        yield Shard(first=first, count=count, first_chunk=first_chunk, chunks=packed)


def shard_chunk(shard: Shard, index: int, branches_per_chunk: int) -> Chunk:
    """Return the chunk of the branch with the stage-wide ``index``."""
    return shard.chunks[index // branches_per_chunk - shard.first_chunk]
