"""Reopens runs that have ended, for their failed branches and the failed calls of their aggregate."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from fanout.core.errors import RunError, StoredDataError
from fanout.core.ids import StageId
from fanout.core.records import ErrorKind, RunStatus
from fanout.core.spec import stored_spec
from fanout.policy.answers_so_far import AnswersSoFar
from fanout.policy.packing import shard_chunk
from fanout.policy.steps import without_failed
from fanout.runs.branch_groups import follows_chunks
from fanout.runs.budgets import new_limits
from fanout.runs.enqueue import fleet_window
from fanout.runs.result_values import stored_values
from fanout.runs.retried_budgets import has_room, has_room_again, map_limits_of_retry

if TYPE_CHECKING:
    from fanout.broker.publisher import Publisher
    from fanout.core.budgets import BudgetLimits
    from fanout.core.ids import ShardId
    from fanout.core.records import Outcome
    from fanout.core.spec import BudgetSpec, RunSpec
    from fanout.core.state import RunRecord, StageRecord
    from fanout.stores import RedisStore

__all__ = ["reset_retried_shard", "retry_failed"]


def retry_failed(
    store: RedisStore,
    publisher: Publisher,
    run_id: str,
    kinds: frozenset[ErrorKind] | None,
    budget: BudgetSpec | None = None,
) -> int:
    """Reopen a run that has ended for its failed branches; return their number.

    Reopening is one atomic step; if this process dies after it, the reaper does the rest. Each shard
    is reset when it is published (``reset_retried_shard``). Shards without such branches need no
    calls, and the aggregate is made again, also for its calls that failed. A run that would end again as
    it has ended stays as it is.
    ``budget`` has the limits that replace those of the run; the others stay.

    Raises:
        RunError: The run has not ended, or another process is retrying it; or it has no budget.
        SpecError: The new budget has no room, or cannot be kept.
    """
    run = store.run(run_id)
    map_id = StageId(run_id, 0)
    record = store.stage(map_id)
    errors = record.errors
    given = None
    if budget is not None and run.has_ended:
        given = new_limits(store, run, budget)
    wanted = frozenset(errors if kinds is None else errors.keys() & kinds)
    unread = 0
    if run.has_ended and ErrorKind.BAD_REQUEST in wanted:
        unread = _count_unread(store, map_id)
        if unread == errors[ErrorKind.BAD_REQUEST]:
            wanted, unread = wanted - {ErrorKind.BAD_REQUEST}, 0
    can_call = can_reduce = True
    if run.has_budget and run.has_ended:
        failed = sum(errors[kind] for kind in wanted) - unread
        # Also of a run that stays as it is: a later retry has them.
        can_call, can_reduce = _set_budget(store, run, given, failed=failed)
        if not can_call:
            wanted, unread = frozenset(), 0
    if not wanted:
        lost = _reduce_kinds(store, run_id)
        again = bool(lost if kinds is None else lost & kinds)
        can = {"can_call": can_call, "can_reduce": can_reduce}
        if _lacks_room(store, run, lost) or _stays(store, run, record, again=again, **can):
            return 0
    if not store.reopen_run(run_id, retry=wanted):
        raise RunError(f"run {run_id} {_problem_of_retry(store, store.run(run_id))}")
    publisher.forget_chord(map_id)
    publisher.expand(map_id, store.open_shards(map_id, window=fleet_window(store)))
    publisher.seal(map_id, shards=store.seal_stage(map_id).shards)
    return sum(errors[kind] for kind in wanted) - unread


def _stays(
    store: RedisStore,
    run: RunRecord,
    record: StageRecord,
    *,
    again: bool,
    can_call: bool,
    can_reduce: bool,
) -> bool:
    """Return whether a retry that processes no branch leaves a run as it is.

    Without room for a call, what there is of the aggregate must not be discarded.

    Args:
        store: Has the run.
        run: The run, which may have ended.
        record: Its first stage.
        again: Whether calls of its reduce that failed are to be made again.
        can_call: Whether the budget has room for any call of a branch.
        can_reduce: Whether it has room for any call of the reduce.
    """
    spec = stored_spec(store.spec(run.run_id))
    if not can_reduce and len(spec.called_reductions) == len(spec.reductions):
        return True
    if _is_decided(run, record, spec):
        return run.status is not RunStatus.SUCCEEDED or not (again and can_reduce)
    if can_reduce and (can_call or again or run.halt is not None):
        return False
    return _has_called(store, run.run_id, spec)


def _lacks_room(store: RedisStore, run: RunRecord, reduce_kinds: frozenset[ErrorKind]) -> bool:
    """Return whether the budget has too little room to make the aggregate again that calls have made.

    Args:
        store: Has the run.
        run: The run, which may have ended.
        reduce_kinds: The kinds of the calls of its reduce that failed.
    """
    if not run.has_budget or not run.has_ended:
        return False
    spec = stored_spec(store.spec(run.run_id))
    has_room = has_room_again(store, run, spec, reduce_kinds=reduce_kinds)
    return not has_room and _has_called(store, run.run_id, spec)


def _set_budget(
    store: RedisStore,
    run: RunRecord,
    given: tuple[BudgetLimits, BudgetLimits] | None,
    *,
    failed: int,
) -> tuple[bool, bool]:
    """Set what a retry may use; return whether any call of a branch, and of the reduce, has room in it.

    Args:
        store: Has the run.
        run: The run, which has ended.
        given: The limits that replace those of the run; None if these stay.
        failed: How many branches are processed again.
    """
    state, spec = store.budget(run.run_id), stored_spec(store.spec(run.run_id))
    limits = (state.limits, state.map_limits) if given is None else given
    of_map = map_limits_of_retry(
        store, run, spec, limits, failed=failed, reduce_kinds=_reduce_kinds(store, run.run_id)
    )
    # Also if they stay: what the last reduce has used is not what is kept for the next one.
    store.set_budget(run.run_id, limits=limits[0], map_limits=of_map)
    return has_room(store, run, spec, of_map), has_room(store, run, spec, limits[0], is_reduce=True)


def _count_unread(store: RedisStore, map_id: StageId) -> int:
    """Return how many branches failed because their document cannot be used: they make no call."""
    per_chunk = stored_spec(store.spec(map_id.run_id)).branches_per_chunk
    count = 0
    for shard_id in map(map_id.shard, range(store.stage(map_id).shards)):
        failed = [
            outcome.index
            for outcome in store.outcomes(shard_id).values()
            if outcome.kind is ErrorKind.BAD_REQUEST and not outcome.attempts
        ]
        if failed:
            shard = store.shard(shard_id)
            count += sum(shard_chunk(shard, at, per_chunk).error is not None for at in failed)
    return count


def _is_decided(run: RunRecord, record: StageRecord, spec: RunSpec) -> bool:
    """Return whether a run with the same outcomes of its branches ends as this one has."""
    fails = not record.succeeded or record.succeeded < spec.min_success * record.total
    is_refused = run.status is RunStatus.FAILED and run.halt is None and fails
    return run.status is RunStatus.SUCCEEDED or is_refused


def _has_called(store: RedisStore, run_id: str, spec: RunSpec) -> bool:
    """Return whether there is an aggregate that calls have made, at least of a group."""
    found = stored_values(store, run_id)
    return found is not None and any(
        one.value is not None or one.held is not None
        for reduce in spec.called_reductions
        for _, one in found.of(reduce.name).aggregates()
    )


def _reduce_kinds(store: RedisStore, run_id: str) -> frozenset[ErrorKind]:
    """Return the kinds of the calls of the aggregate that failed."""
    found = stored_values(store, run_id)
    return frozenset(error.kind for error in found.errors()) if found else frozenset()


def _problem_of_retry(store: RedisStore, run: RunRecord) -> str:
    """Return why a run cannot be retried yet, and the command that helps."""
    go_on = f"`fanout resume {run.run_id}` works on it until its end"
    if run.status is RunStatus.PAUSED and run.halt is None:
        unpause = f"`fanout unpause {run.run_id}` lets it go on"
        follow = f", then {go_on}" if store.is_embedded else ""
        return f"is paused: {unpause}{follow}; or cancel it, before a retry"
    if store.is_embedded:
        return f"has not ended: {go_on}, then retry it"
    if not store.workers():
        return (
            "has not ended, and no worker is alive: start one with `fanout worker`, then retry it"
        )
    if run.status is RunStatus.ENQUEUING:
        return (
            "has not ended: wait for it, or cancel it, before a retry; if its client has died, "
            f"`fanout resume {run.run_id}` enqueues the rest"
        )
    return "has not ended: wait for it, or cancel it, before a retry"


def reset_retried_shard(store: RedisStore, shard_id: ShardId, retry: frozenset[ErrorKind]) -> None:
    """Reset a shard of a retried run to the outcomes that remain, once for each retry."""
    outcomes = store.outcomes(shard_id)
    again = {at for at, outcome in outcomes.items() if outcome.kind in retry}
    if again:
        store.reopen_shard(
            shard_id,
            kept={at: outcome for at, outcome in outcomes.items() if at not in again},
            dropped=[outcomes[at] for at in sorted(again)],
            checkpoints=_checkpoints(store, shard_id, {at: outcomes[at] for at in again}),
            regrouped=_regrouped(store, shard_id.run_id),
        )


def _regrouped(store: RedisStore, run_id: str) -> list[int]:
    """Return the numbers of the reduces whose groups go by the answers."""
    try:
        spec = stored_spec(store.spec(run_id))
    except StoredDataError:
        # Of another version of fanout: its branches must end all the same.
        return []
    return [
        number
        for number, reduce in enumerate(spec.reductions)
        if reduce.has_partitions and not follows_chunks(spec, reduce)
    ]


def _checkpoints(
    store: RedisStore, shard_id: ShardId, failed: dict[int, Outcome]
) -> dict[int, bytes]:
    """Return where branches that failed in a later step go on: their earlier steps are paid for."""
    if not any(outcome.steps for outcome in failed.values()):
        return {}
    steps = stored_spec(store.spec(shard_id.run_id)).steps
    found: dict[int, bytes] = {}
    for at, outcome in failed.items():
        kept = without_failed(steps, outcome.steps, is_rejected=outcome.is_rejected)
        if kept or outcome.is_rejected:
            # Their usage is counted already.
            so_far = AnswersSoFar(steps=kept, asks_anew=outcome.is_rejected)
            found[at] = msgspec.json.encode(so_far)
    return found
