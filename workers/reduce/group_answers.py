"""The answers of groups that were reduced in partitions: one partition in memory after the other."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from fanout.core.group_hashes import group_hash
from fanout.core.ids import StageId
from workers.reduce.items import shard_branches

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from fanout.core.ids import PartitionId
    from fanout.core.records import Chunk, Outcome
    from workers.context.worker_context import WorkerContext

__all__ = ["in_order", "partition_branches", "partitions_of"]

_V = TypeVar("_V")


def partitions_of(context: WorkerContext, run_id: str, reduce: int) -> Iterator[PartitionId]:
    """Yield the partitions of a reduce, in the order in which their groups first appear."""
    plan = context.connections.store.group_plan(run_id, reduce)
    for number in range(0 if plan is None else len(plan.partitions)):
        yield StageId(run_id, 0).partition(reduce, number)


def partition_branches(
    context: WorkerContext, partition_id: PartitionId, stages: Iterable[int]
) -> Iterator[Iterator[tuple[Chunk, Outcome]]]:
    """Yield, for each of some stages, chunk and outcome of the nodes of a partition there."""
    store = context.connections.store
    for stage in stages:
        of_stage = partition_id.at(stage)
        shards = map(of_stage.stage_id.shard, store.partition(of_stage).shards)
        yield (one for shard_id in shards for one in shard_branches(context, shard_id))


def in_order(
    context: WorkerContext, partition_id: PartitionId, found: Mapping[str, _V]
) -> Iterator[tuple[str, _V]]:
    """Yield what was found for the groups of a partition, in the order in which these first appear."""
    names: dict[int, list[str]] = {}
    for name in found:
        names.setdefault(group_hash(name, run_id=partition_id.run_id), []).append(name)
    for one in context.connections.store.partition_groups(partition_id).hashes:
        for name in names.pop(one, ()):
            yield name, found[name]
