"""Packing of a stream of chunks into a stream of shards."""

from __future__ import annotations

from typing import TYPE_CHECKING

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
    """Yield shards of up to ``max_branches`` branches and about ``max_bytes`` of text, lazily.

    A chunk whose branches do not fit into one shard is repeated in the next, so that any number
    of samples works. A chunk larger than ``max_bytes`` gets a shard of its own.
    """
    packer = _ShardPacker(max_branches, max_bytes)
    for number, chunk in enumerate(chunks):
        remaining = branches_per_chunk
        while remaining:
            remaining -= packer.take(number, chunk, remaining)
            if packer.is_full:
                yield packer.shard()
    if packer.count:
        yield packer.shard()


def shard_chunk(shard: Shard, index: int, branches_per_chunk: int) -> Chunk:
    """Return the chunk of the branch with the stage-wide ``index``."""
    return shard.chunks[index // branches_per_chunk - shard.first_chunk]


class _ShardPacker:
    def __init__(self, max_branches: int, max_bytes: int) -> None:
        self._max_branches = max_branches
        self._max_bytes = max_bytes
        self._first = 0
        self._clear()

    def _clear(self) -> None:
        self.count = 0
        self._bytes = 0
        self._chunks: list[Chunk] = []
        self._first_chunk = 0
        self._last_chunk = -1

    @property
    def is_full(self) -> bool:
        return self.count >= self._max_branches or self._bytes >= self._max_bytes

    def take(self, number: int, chunk: Chunk, branches: int) -> int:
        """Take branches of a chunk into the shard; return how many fit."""
        if not self._chunks:
            self._first_chunk = number
        if number != self._last_chunk:
            self._chunks.append(chunk)
            self._bytes += len(chunk.text)
            self._last_chunk = number
        taken = min(branches, self._max_branches - self.count)
        self.count += taken
        return taken

    def shard(self) -> Shard:
        shard = Shard(
            first=self._first,
            count=self.count,
            first_chunk=self._first_chunk,
            chunks=self._chunks,
        )
        self._first += self.count
        self._clear()
        return shard
