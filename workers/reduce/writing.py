"""Writes the branches of a reduce into the next stage, which other reduces and processes write to, too."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import msgspec

from fanout.core.state import Frontier, StageFrontier
from fanout.policy.packing import pack
from fanout.runs.enqueue import fleet_window

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from fanout.core.ids import StageId
    from fanout.core.records import Chunk, Shard
    from fanout.core.reduces import Reduce
    from workers.context.worker_context import WorkerContext

__all__ = ["MORE_SHARDS", "MOST_BYTES", "SHOWN_PARTS", "StageWriter", "write_all"]

# Shards of nodes in flight beyond those of the window: they are small, one for each shard that has ended.
MORE_SHARDS = 32
# The prompts of a shard are in memory together where it is written, and several shards where they are put to
# models; a prompt may be hundreds of kilobytes.
MOST_BYTES = 2_000_000
# Nodes are packed by the tokens that the first answers have.
SHOWN_PARTS = 50


class StageWriter:
    """Writes the branches of one reduce into a stage.

    What a reduce has written is known from its frontier, which is written with each shard. Processes that
    write the same reduce find the same branches, and each of them is written once.

    Args:
        context: The worker's process.
        target: The stage.
        reduce: The reduce.
        more_shards: How many shards may be in flight beyond those of the window.
    """

    def __init__(
        self, context: WorkerContext, target: StageId, reduce: Reduce, *, more_shards: int = 0
    ) -> None:
        self._store = context.connections.store
        self._publisher = context.connections.publisher
        self._target = target
        self._reduce = reduce.name
        self._window = fleet_window(self._store) + more_shards
        self._at = StageFrontier(shards=0, branches=0, frontier=Frontier())

    def begin(self) -> Frontier:
        """Return how far the reduce has written the stage."""
        self._at = self._store.frontier(self._target, reduce=self._reduce)
        return self._at.frontier

    def write(self, chunks: Iterable[Chunk], end_of: Callable[[int], Frontier]) -> bool:
        """Write the branches that follow the frontier, and open their shards.

        Args:
            chunks: Their chunks.
            end_of: Returns the frontier after so many of them.

        Returns:
            False if another process has written some of them meanwhile: begin again.
        """
        count, is_done = 0, True
        for shard in pack(chunks, branches_per_chunk=1, max_bytes=MOST_BYTES):
            count += shard.count
            is_first = self._put(shard, end_of(count))
            if not is_first:
                # None: the run was stopped, or the stage is sealed.
                is_done = is_first is None
                break
            self.open()
        if not count:
            self.open()
        return is_done

    def _put(self, shard: Shard, frontier: Frontier) -> bool | None:
        """Write a shard; return False if another process has written it, None if the stage takes none."""
        while True:
            at = self._at
            placed = msgspec.structs.replace(shard, first=at.branches, first_chunk=at.branches)
            shard_id = self._target.shard(at.shards)
            is_first = self._store.put_next(shard_id, placed, frontier, reduce=self._reduce)
            if is_first is None:
                return None
            if is_first:
                branches = at.branches + shard.count
                self._at = StageFrontier(shards=at.shards + 1, branches=branches, frontier=frontier)
                return True
            self._at = self._store.frontier(self._target, reduce=self._reduce)
            if self._at.frontier != at.frontier:
                return False
            # Another reduce has written a shard: this one is the next.

    def open(self) -> None:
        """Publish shards that are written, also those of a process that has died after the write."""
        opened = self._store.open_shards(self._target, window=self._window)
        self._publisher.expand(self._target, opened)


def write_all(writer: StageWriter, chunks: Callable[[int], Iterator[Chunk]]) -> None:
    """Write all branches of a reduce in a stage.

    Args:
        writer: Writes them.
        chunks: Returns the chunks from one on, by its number.
    """
    while True:
        done = writer.begin().branches
        if writer.write(chunks(done), partial(_after, done)):
            return


def _after(done: int, count: int) -> Frontier:
    return Frontier(branches=done + count)
