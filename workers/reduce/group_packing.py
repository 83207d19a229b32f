"""Packs the answers of one partition of groups into nodes: see workers.reduce.groups."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from msgspec import structs

from fanout.aggregators import NodePacker, Tally, nodes_of
from fanout.core.errors import SpecError
from fanout.core.ids import StageId
from fanout.core.partitions import PartitionRecord, has_bit, with_bits
from fanout.policy.group_plans import closed_groups
from workers.reduce.frontier import node_chunk
from workers.reduce.group_clusters import clustered_nodes
from workers.reduce.group_nodes import (
    NodePart,
    Reading,
    level_of,
    measures,
    node_of,
    node_parts,
    only_name,
    reason_for_none,
    stage_has_ended,
    without_call,
)
from workers.reduce.group_parts import GroupLeaves, complete_groups
from workers.reduce.group_writing import GroupWriter, OvertakenError, StageClosedError
from workers.reduce.room_above import is_only, with_room_above

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fanout.aggregators import Node, Part
    from fanout.core.ids import PartitionId
    from fanout.core.records import Chunk
    from fanout.core.spec import RunSpec
    from fanout.core.state import RunRecord
    from fanout.policy.group_plans import PartitionPlan
    from workers.context.worker_context import WorkerContext

__all__ = ["LEASE_S", "Packing"]

# Seconds that a worker has a partition for, and those after which it renews that.
LEASE_S = 15.0
_RENEW_S = 3.0
# The bytes of answers of a partition that wait in a file at once.
MOST_BYTES = 256_000_000


class Packing:
    """Packs a partition at one stage.

    Args:
        context: The worker's process.
        run: The run.
        spec: Its job.
        source: The partition at the stage whose outcomes are packed.
        target: The partition at the stage that is written.
        token: That of the lease.
    """

    def __init__(
        self,
        context: WorkerContext,
        run: RunRecord,
        spec: RunSpec,
        source: PartitionId,
        target: PartitionId,
        token: str,
    ) -> None:
        self._context = context
        self._store = context.connections.store
        self._run = run
        self._spec = spec
        self._reduce = spec.reductions[source.reduce]
        self._source = source
        self._target = target
        self._token = token
        self._most_bytes = MOST_BYTES
        self._level = level_of(run, source.stage_id)
        self._map_id = StageId(run.run_id, 0)
        self._leaves = GroupLeaves(
            context, spec, self._map_id, source.reduce, on_shard=self._renewed
        )
        self._renewed_at = time.monotonic()
        self._is_over = False
        self._opened, self._still_open = 0, frozenset[int]()
        self._ratio, self._room = 0.0, 0

    def advance(self) -> None:
        """Pack and publish what has ended, as far as it is not packed yet.

        Nothing, if the job leaves no room for answers: the aggregate of the stage reports that.
        """
        plan = self._store.group_plan(self._run.run_id, self._source.reduce)
        if plan is None:
            return
        own = plan.partitions[self._source.partition]
        is_again = True
        while is_again:
            record = self._store.partition(self._target)
            self._look()
            if record.is_complete or not self._has_ended(0):
                return
            try:
                self._ratio, self._room = measures(
                    self._context, self._run, self._spec, self._source.reduce
                )
            except SpecError:
                return
            try:
                writer = GroupWriter(self._context, self._target, record, self._reduce.name)
                is_again = self._advanced(writer, own)
                writer.open()
            except StageClosedError:
                return
            except OvertakenError:
                continue

    def _look(self) -> None:
        """Note which shards of the map have ended."""
        progress = self._store.progress(self._map_id)
        self._is_over = stage_has_ended(self._context, self._run, self._source.stage_id)
        self._opened, self._still_open = progress.opened, progress.open
        if self._is_over or (self._level > 0 and self._run.stage > 0):
            # A shard whose callback was lost may still count as open.
            self._opened, self._still_open = progress.written, frozenset()

    def _has_ended(self, shard: int) -> bool:
        return shard < self._opened and shard not in self._still_open

    def _advanced(self, writer: GroupWriter, own: PartitionPlan) -> bool:
        """Pack what has ended; return whether there may be more."""
        # Clusters are found among all answers of a group.
        if own.is_alone and not self._reduce.clusters:
            if self._is_due(writer, own):
                self._pack_large(writer, own)
            return False
        if self._level > 0:
            self._pack_nodes(writer)
            return False
        return self._pack_groups(writer)

    def _renewed(self) -> None:
        """Renew the lease now and then.

        Raises:
            StageClosedError: The run has ended, or is to end.
        """
        if time.monotonic() - self._renewed_at < _RENEW_S:
            return
        self._renewed_at = time.monotonic()
        run = self._store.run(self._run.run_id)
        if run.has_ended or run.halt is not None:
            raise StageClosedError
        self._store.take_partition(self._target, self._token, lasts_s=LEASE_S)

    # Many groups, of the map.

    def _pack_groups(self, writer: GroupWriter) -> bool:
        groups = self._store.partition_groups(self._source)
        record = writer.record
        closed = closed_groups(
            groups, record.packed, opened=self._opened, still_open=self._still_open
        )
        if record.group is not None:
            # It is finished first: the record has room for one that is begun.
            closed = [record.group]
        if closed:
            found = complete_groups(self._leaves, groups, closed, most_bytes=self._most_bytes)
            for at, names in found:
                self._add_group(writer, at, names)
        is_complete = all(has_bit(writer.packed, at) for at in range(len(groups.hashes)))
        writer.flush(is_complete=is_complete)
        return bool(closed) and not is_complete

    def _add_group(self, writer: GroupWriter, at: int, names: list[list[Part]]) -> None:
        chunks, has_more = [], False
        for parts in names:
            nodes = self._group_nodes(parts)
            chunks += nodes
            has_more = has_more or len(nodes) > 1

        def done(record: PartitionRecord) -> PartitionRecord:
            return structs.replace(
                record,
                packed=with_bits(record.packed, [at]),
                group=None,
                nodes=0,
                has_more=record.has_more or has_more,
            )

        def begun(record: PartitionRecord) -> PartitionRecord:
            return structs.replace(record, group=at, has_more=record.has_more or has_more)

        writer.add(chunks, done, begun)

    def _group_nodes(self, parts: list[Part]) -> list[Chunk]:
        """Return the nodes of all answers of a group."""
        group = parts[0].group
        tally = Tally.total(part.tally for part in parts)
        problem = reason_for_none(tally, self._spec.min_group_success)
        if self._level == 0 and problem is not None:
            # No call could change it.
            return [without_call(self._reduce, group, tally, problem)]
        try:
            chunks = [
                self._node_chunk(node, group=group, position=position, is_root=is_root)
                for position, (node, is_root) in enumerate(
                    is_only(self._packed(parts), may_be=True)
                )
            ]
        except SpecError as error:
            # Other groups have their aggregates.
            return [without_call(self._reduce, group, tally, str(error))]
        return [node_of(chunk, len(chunks)) for chunk in chunks]

    def _packed(self, parts: list[Part]) -> Iterator[Node]:
        cites = self._spec.sources
        if self._level == 0 and self._reduce.clusters:
            nodes = clustered_nodes(
                parts,
                room_tokens=self._room,
                bytes_per_token=self._ratio,
                cites=cites,
                look=self._renewed,
            )
        else:
            nodes = nodes_of(
                parts,
                room_tokens=self._room,
                level=self._level,
                bytes_per_token=self._ratio,
                cites=cites,
            )
        for node in nodes:
            self._renewed()
            yield node

    def _node_chunk(self, node: Node, *, group: str, position: int, is_root: bool) -> Chunk:
        chunk = node_chunk(
            node,
            self._reduce,
            group=group,
            position=position,
            level=self._level,
            cites=self._spec.sources,
        )
        room = self._room
        return with_room_above(chunk, self._spec, self._reduce, room_tokens=room, is_root=is_root)

    # Many groups, of a level of nodes: those of a group follow each other.

    def _pack_nodes(self, writer: GroupWriter) -> None:
        source = self._store.partition(self._source)
        reading = Reading(source.shards)
        parts: list[Part] = []
        for found in self._node_parts(reading, writer.record):
            if found.nodes == 1:
                continue
            parts.append(found.part)
            if len(parts) == found.nodes:
                self._add_nodes(writer, found, parts)
                parts = []
        writer.flush(is_complete=source.is_complete and reading.is_read)

    def _add_nodes(self, writer: GroupWriter, last: NodePart, parts: list[Part]) -> None:
        chunks = self._group_nodes(parts)

        def done(record: PartitionRecord) -> PartitionRecord:
            return structs.replace(
                record,
                shard=last.shard,
                position=last.position + 1,
                nodes=0,
                has_more=record.has_more or len(chunks) > 1,
            )

        def begun(record: PartitionRecord) -> PartitionRecord:
            return structs.replace(record, has_more=True)

        writer.add(chunks, done, begun)

    def _node_parts(self, reading: Reading, begins: PartitionRecord) -> Iterator[NodePart]:
        return node_parts(
            self._context,
            self._source.stage_id,
            reading,
            begins,
            is_over=self._is_over,
            on_shard=self._renewed,
        )

    # One large group, whose nodes are written while its branches go on.

    def _is_due(self, writer: GroupWriter, own: PartitionPlan) -> bool:
        """Return whether nodes of the group may be written: not before it is known that it has enough.

        A group with too few answers is ended here, by a node without a call.
        """
        if self._level > 0 or not self._spec.min_group_success or writer.nodes:
            return True
        if not all(map(self._has_ended, range(own.first, own.last + 1))):
            return False
        if not self._end_lacking(writer, own):
            return True
        writer.flush(is_complete=True)
        return False

    def _end_lacking(self, writer: GroupWriter, own: PartitionPlan) -> bool:
        """Add the node without a call of a group with too little behind it; return whether it is one."""
        group, tally = self._large_tally(own)
        problem = reason_for_none(tally, self._spec.min_group_success)
        if problem is not None:
            writer.add([without_call(self._reduce, group, tally, problem)], lambda record: record)
        return problem is not None

    def _large_tally(self, own: PartitionPlan) -> tuple[str, Tally]:
        """Return the name of the group and what is behind it; its answers are read again later."""
        reading, names = Reading(()), set()

        def tallies() -> Iterator[Tally]:
            for found in self._large_leaves(reading, own, PartitionRecord()):
                names.add(found.part.group)
                yield found.part.tally

        tally = Tally.total(tallies())
        return only_name(names), tally

    def _pack_large(self, writer: GroupWriter, own: PartitionPlan) -> None:
        source = self._store.partition(self._source) if self._level else None
        reading = Reading(() if source is None else source.shards)
        if source is None:
            places = self._large_leaves(reading, own, writer.record)
        else:
            places = self._node_parts(reading, writer.record)
        packer = NodePacker(
            room_tokens=self._room,
            level=self._level,
            bytes_per_token=self._ratio,
            cites=self._spec.sources,
        )
        taken: list[tuple[int, int]] = []
        group = None
        for found in places:
            if group != found.part.group:
                group = only_name({found.part.group, group or found.part.group})
            taken.append((found.shard, found.position))
            self._add_large(writer, packer.add(found.part), taken, group)
        is_complete = reading.is_read and (source is None or source.is_complete)
        if is_complete and group is not None:
            self._add_large(writer, packer.finish(), taken, group, is_end=True)
            if not self._level and not writer.nodes:
                self._end_lacking(writer, own)
        writer.flush(is_complete=is_complete)

    def _add_large(
        self,
        writer: GroupWriter,
        nodes: Iterator[Node],
        taken: list[tuple[int, int]],
        group: str,
        *,
        is_end: bool = False,
    ) -> None:
        for node, is_root in is_only(nodes, may_be=is_end and not writer.nodes):
            shard, position = taken[node.taken - 1]
            del taken[: node.taken]
            number = writer.nodes

            def done(
                record: PartitionRecord, shard: int = shard, position: int = position
            ) -> PartitionRecord:
                nodes = record.nodes + 1
                return structs.replace(
                    record, shard=shard, position=position + 1, nodes=nodes, has_more=nodes > 1
                )

            chunk = self._node_chunk(node, group=group, position=number, is_root=is_root)
            writer.add([chunk], done)

    def _large_leaves(
        self, reading: Reading, own: PartitionPlan, begins: PartitionRecord
    ) -> Iterator[NodePart]:
        """Yield the branches of the only group up to the first shard that has not ended."""
        hashes = self._store.partition_groups(self._source).hashes
        shards = range(max(begins.shard, own.first), own.last + 1)
        ended = next((shard for shard in shards if not self._has_ended(shard)), own.last + 1)
        for found in self._leaves.of_groups(range(shards.start, ended), hashes):
            if isinstance(found, int):
                continue
            if found.shard > begins.shard or found.position >= begins.position:
                yield NodePart(found.shard, found.position, 0, found.part)
        reading.is_read = ended > own.last
