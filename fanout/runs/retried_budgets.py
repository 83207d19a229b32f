"""The budget of a run that is retried: what its branches may use of what is left."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fanout.core.ids import StageId
from fanout.core.model_names import keeps_answers
from fanout.core.records import ErrorKind, RunStatus, total_usage
from fanout.policy.budget_retries import ShownUse, limited_use, limits_of_retry
from fanout.policy.budgets import fits
from fanout.runs.budget_status import BudgetStatus
from fanout.runs.budgets import has_room_for, most_of_reduce

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fanout.core.budgets import Amounts, BudgetLimits, BudgetState
    from fanout.core.spec import RunSpec
    from fanout.core.state import RunRecord, StageRecord
    from fanout.stores import RedisStore

__all__ = ["has_room", "has_room_again", "map_limits_of_retry"]


def map_limits_of_retry(
    store: RedisStore,
    run: RunRecord,
    spec: RunSpec,
    limits: tuple[BudgetLimits, BudgetLimits],
    *,
    failed: int,
    reduce_kinds: frozenset[ErrorKind],
) -> BudgetLimits:
    """Return what the branches of a run may use in its retry.

    A run that has an aggregate has shown what its reduce needs: the rest of what is kept for that goes
    to the branches. One whose reduce had too little room has not.

    Args:
        store: Has the run.
        run: The run, which has ended.
        spec: Its job.
        limits: What all calls may use, and what those of the branches may use so far.
        failed: How many branches are processed again.
        reduce_kinds: The kinds of the calls of its reduce that failed.
    """
    has_shown = run.status is RunStatus.SUCCEEDED and ErrorKind.BUDGET not in reduce_kinds
    if not failed or not has_shown or not spec.called_reductions:
        return limits[1]
    first = store.stage(StageId(run.run_id, 0))
    reduce, branches = _use_of_reduce(store, run, limits[0]), _use([first], limits[0])
    if reduce is None or branches is None:
        return limits[1]
    shown = ShownUse(
        spent=_spent(store.budget(run.run_id)),
        branches=branches,
        reduce=reduce,
        most=most_of_reduce(spec),
        answers=first.succeeded,
        failed=failed,
        is_by_pairs=any(one.compares or one.resolves for one in spec.called_reductions),
    )
    return limits_of_retry(*limits, shown)


def has_room(
    store: RedisStore,
    run: RunRecord,
    spec: RunSpec,
    limits: BudgetLimits,
    *,
    is_reduce: bool = False,
) -> bool:
    """Return whether the budget of a run that has ended has room for any call of a branch, or its reduce."""
    return has_room_for(spec, limits, _spent(store.budget(run.run_id)), is_reduce=is_reduce)


def has_room_again(
    store: RedisStore, run: RunRecord, spec: RunSpec, *, reduce_kinds: frozenset[ErrorKind]
) -> bool:
    """Return whether the budget of a run that has ended has room for its reduce again.

    All calls of the reduce are made again where answers are not kept: with less room, some of what they
    have made would be lost. True if what they have used is unknown.

    Args:
        store: Has the run.
        run: The run.
        spec: Its job.
        reduce_kinds: The kinds of the calls of its reduce that failed.
    """
    if spec.cache and any(keeps_answers(reduce.model) for reduce in spec.called_reductions):
        return True
    state = store.budget(run.run_id)
    needed = _use_of_reduce(store, run, state.limits)
    if needed is not None and ErrorKind.BUDGET in reduce_kinds:
        # Those were not made: without room for one of them, the others would be made for nothing.
        needed += most_of_reduce(spec)
    return needed is None or fits(needed, used=_spent(state), limits=state.limits)


def _use_of_reduce(store: RedisStore, run: RunRecord, limits: BudgetLimits) -> Amounts | None:
    """Return what the stages of the latest reduce used; None if there are none, or it is unknown."""
    stages = range(run.base_stage + 1, run.last_stage + 1)
    return _use([store.stage(StageId(run.run_id, stage)) for stage in stages], limits)


def _spent(state: BudgetState) -> Amounts:
    return BudgetStatus.of(state, has_ended=True).spent


def _use(stages: Sequence[StageRecord], limits: BudgetLimits) -> Amounts | None:
    """Return what stages used, with what answers would have used that were kept; None if unknown."""
    parts = [usage for stage in stages for usage in (stage.usage, stage.saved) if usage.calls]
    return limited_use(total_usage(parts), limits) if parts else None
