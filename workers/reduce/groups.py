"""The trees of calls of very many groups: partitions of the groups, which the workers share.

A partition is some groups that follow each other in the order of first appearance
(fanout.policy.group_plans). As soon as all branches of a group have ended, its answers are packed into nodes.
Which nodes these are depends on the answers of the group alone. One worker at a time packs a partition; how
far it is, is written in one step with each shard of nodes, so that another one can go on from there.

The nodes of a group follow each other in the shards of its partition, and say how many they are. A group
with one is answered by it; the others go on to the next level in the same partition. A large group that is a
partition by itself is packed while its branches go on, as a tree without groups is.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

from fanout.core.errors import SpecError
from fanout.core.ids import PartitionId, StageId
from fanout.core.records import RunStatus
from fanout.policy.group_plans import due_partitions, planned
from fanout.runs.branch_groups import follows_chunks
from fanout.system.fork_locks import ForkSafeLock
from workers.reduce.frontier import may_succeed
from workers.reduce.group_nodes import measures, stage_has_ended, target_of
from workers.reduce.group_packing import LEASE_S, Packing
from workers.reduce.group_parts import GroupLeaves

if TYPE_CHECKING:
    from fanout.core.ids import ShardId
    from fanout.core.spec import RunSpec
    from fanout.core.state import RunRecord
    from fanout.policy.group_plans import GroupPlan
    from workers.context.worker_context import WorkerContext

__all__ = ["await_partitions", "follow_groups", "pack_partition"]

# Seconds until a partition is tried again that another worker packs, or for which this one has no room.
_AGAIN_S = 1.0
# Seconds that a task has to make the plan, before another one makes it, too: both make the same.
_PLAN_S = 120.0
# The most branches of a partition; None goes by the number of branches of the run.
MOST_BRANCHES: int | None = None
# A process packs one partition at a time: its answers are in a file, and those of a group in memory.
_PACKING = ForkSafeLock()


def follow_groups(context: WorkerContext, shard_id: ShardId) -> None:
    """Publish the partitions that are worth being packed after the end of a shard."""
    run_id, store = shard_id.run_id, context.connections.store
    spec = context.runs.specs.get(run_id)
    numbers = [at for at, one in enumerate(spec.reductions) if one.has_partitions]
    if not numbers:
        return
    run = store.run(run_id)
    is_over = run.has_ended or run.halt is not None
    if is_over or 0 < shard_id.stage <= run.base_stage:
        return
    may_go_on = may_succeed(context, spec, run_id)
    for number in numbers:
        if shard_id.stage == 0 and not follows_chunks(spec, spec.reductions[number]):
            # They are planned when all branches have ended; until then, a run may still come to succeed.
            leaves = GroupLeaves(context, spec, shard_id.stage_id, number)
            leaves.write_hashes(shard_id.shard, opening=run.opening)
        elif may_go_on:
            _follow(context, run, spec, shard_id, number)


def _follow(
    context: WorkerContext, run: RunRecord, spec: RunSpec, shard_id: ShardId, reduce: int
) -> None:
    store, publisher = context.connections.store, context.connections.publisher
    if shard_id.stage > 0:
        owner = store.owner(shard_id)
        if owner is not None and owner.reduce == reduce and store.partition(owner).has_more:
            publisher.pack([owner])
        return
    stage_id, before = shard_id.stage_id, shard_id.shard
    plan = store.group_plan(run.run_id, reduce)
    if plan is None:
        if not store.stage(stage_id).sealed:
            return
        plan, before = _plan_once(context, run, spec, reduce), 0
        if plan is None:
            return
    front = store.progress(stage_id).first_open
    due = due_partitions(plan, before=before, front=front)
    publisher.pack(stage_id.partition(reduce, number) for number in due)


def make_plan(context: WorkerContext, run: RunRecord, spec: RunSpec, reduce: int) -> GroupPlan:
    """Return the plan of the groups of a run whose input is complete; write it if there is none."""
    store, map_id = context.connections.store, StageId(run.run_id, 0)
    leaves = GroupLeaves(context, spec, map_id, reduce)
    shards = range(store.stage(map_id).shards)
    plan, groups = planned(
        lambda: (hashes for _, hashes in leaves.hashes(shards)),
        most_branches=MOST_BRANCHES,
    )
    store.put_group_plan(run.run_id, reduce, plan, groups, opening=run.opening)
    return plan


def _plan_once(
    context: WorkerContext, run: RunRecord, spec: RunSpec, reduce: int
) -> GroupPlan | None:
    """Make the plan unless another task does: that one publishes what is due, then or before it.

    The ends of many shards ask for it at the same time, and it takes long to make for a large run. If its
    maker dies, the aggregate of the stage makes it.
    """
    store, token = context.connections.store, secrets.token_hex(8)
    # No partition writes the map: this lease is nobody else's.
    place = StageId(run.run_id, 0).partition(reduce, 0)
    if not store.take_partition(place, token, lasts_s=_PLAN_S):
        return None
    try:
        if store.group_plan(run.run_id, reduce) is not None:
            return None
        return make_plan(context, run, spec, reduce)
    finally:
        store.release_partition(place, token)


def await_partitions(
    context: WorkerContext, run: RunRecord, spec: RunSpec, source: StageId, reduce: int
) -> bool:
    """Publish the partitions that have not packed a stage that has ended; return whether there are any.

    The last of them publishes the aggregate of the stage again.

    Raises:
        SpecError: The job leaves no room for answers.
    """
    store = context.connections.store
    # What does not fit is not packed: of this reduce alone, which says so here.
    measures(context, run, spec, reduce)
    plan = store.group_plan(run.run_id, reduce) or make_plan(context, run, spec, reduce)
    waiting = _incomplete(context, run, source, reduce, len(plan.partitions))
    context.connections.publisher.pack(source.partition(reduce, number) for number in waiting)
    return bool(waiting)


def _incomplete(
    context: WorkerContext, run: RunRecord, source: StageId, reduce: int, count: int
) -> list[int]:
    """Return the partitions that have not packed all that they have of a stage that has ended."""
    store = context.connections.store
    records = store.partitions(target_of(run, source), reduce, count)
    waiting = [number for number, record in enumerate(records) if not record.is_complete]
    if source.stage > 0 and waiting:
        # Those without a group that has several nodes there have nothing to pack.
        before = store.partitions(source, reduce, count)
        waiting = [number for number in waiting if before[number].has_more]
    return waiting


def pack_partition(context: WorkerContext, partition_id: PartitionId) -> None:
    """Pack what has ended of a partition at a stage; the stage's aggregate follows the last one."""
    store, publisher = context.connections.store, context.connections.publisher
    run = store.run(partition_id.run_id)
    if run.has_ended or 0 < partition_id.stage <= run.base_stage:
        return
    if run.halt is not None:
        _end_stopped(context, run, partition_id)
        return
    spec = context.runs.specs.get(run.run_id)
    target = partition_id.at(target_of(run, partition_id.stage_id).stage)
    if not _PACKING.take():
        publisher.pack([partition_id], wait_s=_AGAIN_S)
        return
    token = secrets.token_hex(8)
    try:
        if not store.take_partition(target, token, lasts_s=LEASE_S):
            publisher.pack([partition_id], wait_s=_AGAIN_S)
            return
        try:
            Packing(context, run, spec, partition_id, target, token).advance()
        except SpecError as error:
            # No answer of its reduce can be packed.
            if stage_has_ended(context, run, partition_id.stage_id):
                _fail(context, run, str(error))
            return
        finally:
            store.release_partition(target, token)
    finally:
        _PACKING.give_back()
    _end_level(context, run, partition_id)


def _fail(context: WorkerContext, run: RunRecord, problem: str) -> None:
    store = context.connections.store
    if store.end_run(
        run.run_id, RunStatus.FAILED, ended_at=store.now(), error=problem, opening=run.opening
    ):
        context.reports.run_ended(run.run_id)


def _end_level(context: WorkerContext, run: RunRecord, partition_id: PartitionId) -> None:
    """Publish the aggregate of a stage if all partitions have packed it, or its run was stopped."""
    store, source = context.connections.store, partition_id.stage_id
    if store.run(run.run_id).halt is not None:
        _end_stopped(context, run, partition_id)
        return
    plan = store.group_plan(run.run_id, partition_id.reduce)
    if (
        plan is None
        or store.stage(target_of(run, source)).sealed
        or not stage_has_ended(context, run, source)
    ):
        return
    if not _incomplete(context, run, source, partition_id.reduce, len(plan.partitions)):
        context.connections.publisher.aggregate(source)


def _end_stopped(context: WorkerContext, run: RunRecord, partition_id: PartitionId) -> None:
    """Publish the aggregate of a stage that has ended in a run that was stopped, as it ends the run.

    The callback of the stage has ended: it waits for partitions, of which each comes here, as none is packed
    to its end. So the first one holds the others off.
    """
    store, source = context.connections.store, partition_id.stage_id
    if not stage_has_ended(context, run, source):
        # Its callback is still to come.
        return
    all_of_them = PartitionId(run.run_id, target_of(run, source).stage, partition_id.reduce, -1)
    if store.take_partition(all_of_them, secrets.token_hex(8), lasts_s=LEASE_S):
        context.connections.publisher.aggregate(source)
