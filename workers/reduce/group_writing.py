"""Writes the nodes of a partition of groups: shards of a stage that other partitions write, too."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import structs

from fanout.core.partitions import PartitionRecord, PartWrite
from fanout.core.records import Shard
from fanout.policy.packing import MAX_SHARD_BRANCHES
from fanout.runs.enqueue import fleet_window
from workers.reduce.writing import MORE_SHARDS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from fanout.core.ids import PartitionId
    from fanout.core.records import Chunk
    from workers.context.worker_context import WorkerContext

    Change = Callable[[PartitionRecord], PartitionRecord]

__all__ = ["GroupWriter", "OvertakenError", "StageClosedError"]

# The text of a shard. A worker has some tens of them in memory, and those of prompts are the largest.
_MOST_BYTES = 1_000_000


class OvertakenError(Exception):
    """Another process has written the partition meanwhile: begin again from its record."""


class StageClosedError(Exception):
    """The stage takes no more shards: its run has ended, or is to end."""


class GroupWriter:
    """Writes nodes in shards, each with how far the partition is then.

    The nodes of a group are in one shard, if they fit: then it is written whole, or not at all.

    Args:
        context: The worker's process.
        target: The partition, at the stage that is written.
        record: How far it is.
        reduce: The name of its reduce.
    """

    def __init__(
        self, context: WorkerContext, target: PartitionId, record: PartitionRecord, reduce: str
    ) -> None:
        self._context = context
        self._store = context.connections.store
        self._target = target
        self.record = record
        self._reduce = reduce
        self._after = record
        self._chunks: list[Chunk] = []
        self._bytes = 0

    @property
    def packed(self) -> bytes:
        """The groups that are written, or will be with the next shard."""
        return self._after.packed

    @property
    def nodes(self) -> int:
        """The nodes of a group that are written, or will be with the next shard."""
        return self._after.nodes

    def add(self, chunks: Sequence[Chunk], done: Change, begun: Change | None = None) -> None:
        """Add all nodes of a group.

        Args:
            chunks: The nodes. The first ones are written already if the record says so.
            done: Returns the record of a partition that has written them, too.
            begun: Returns the record of one that has begun with them; the number of nodes is added.
        """
        written = self._after.nodes if begun is not None else 0
        for at, chunk in enumerate(chunks):
            if at < written:
                continue
            is_full = len(self._chunks) >= MAX_SHARD_BRANCHES or self._bytes > _MOST_BYTES
            if is_full or (at == 0 and not self._fits(chunks)):
                if at > 0 and begun is not None:
                    self._after = structs.replace(begun(self._after), nodes=at)
                self.flush()
            self._chunks.append(chunk)
            self._bytes += len(chunk.text)
        self._after = done(self._after)

    def _fits(self, chunks: Sequence[Chunk]) -> bool:
        size_bytes = self._bytes + sum(len(chunk.text) for chunk in chunks)
        count = len(self._chunks) + len(chunks)
        return count <= MAX_SHARD_BRANCHES and size_bytes <= _MOST_BYTES

    def flush(self, *, is_complete: bool = False) -> None:
        """Write what was added, and publish it.

        Args:
            is_complete: Whether it is the last of the partition.

        Raises:
            OvertakenError: Another process has written the partition.
            StageClosedError: The stage takes no more.
        """
        after = self._after
        if is_complete:
            after = structs.replace(after, is_complete=True)
        if self._chunks:
            after = self._write(after)
        elif after != self.record:
            _check(self._store.put_part(self._target, before=self.record, after=after))
        self.record = self._after = after
        self._chunks, self._bytes = [], 0

    def open(self) -> None:
        """Publish shards that are written: also those of a process that has died after the write."""
        stage_id = self._target.stage_id
        window = fleet_window(self._store) + MORE_SHARDS
        opened = self._store.open_shards(stage_id, window=window)
        self._context.connections.publisher.expand(stage_id, opened)

    def _write(self, after: PartitionRecord) -> PartitionRecord:
        stage_id = self._target.stage_id
        wrote = PartWrite.MOVED
        while wrote is PartWrite.MOVED:
            number, first = self._store.size(stage_id)
            made = structs.replace(after, shards=(*self.record.shards, number))
            shard = Shard(
                first=first, count=len(self._chunks), first_chunk=first, chunks=self._chunks
            )
            wrote = self._store.put_part(
                self._target,
                before=self.record,
                after=made,
                shard=(stage_id.shard(number), shard),
                reduce=self._reduce,
            )
        _check(wrote)
        self.open()
        return made


def _check(wrote: PartWrite) -> None:
    if wrote is PartWrite.OVERTAKEN:
        raise OvertakenError
    if wrote is PartWrite.CLOSED:
        raise StageClosedError
