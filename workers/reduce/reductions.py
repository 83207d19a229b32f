"""The reduces of a run: aggregates that are computed at once, or by further stages of calls.

The reduces of a job with several share the stages: the branches of a stage are those that any of them has
there. A stage is sealed once all of them have written their last ones, and the run ends once none has any.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from fanout.core.errors import BrokerError, SpecError, UnknownRunError
from fanout.core.ids import StageId
from fanout.core.records import RunStatus
from fanout.runs.enqueue import seal_reduce_stage
from fanout.runs.result_writer import (
    ResultTooLargeError,
    standing_problems,
    write_result,
    write_results,
)
from fanout.runs.token_counts import packing_ratio, reduce_room
from fanout.system.logs import about, place_of, told_of
from workers.reduce.clustering import write_clusters
from workers.reduce.comparisons import compare
from workers.reduce.computed import computed
from workers.reduce.coverage import lacking_all, with_reason
from workers.reduce.frontier import refine_calls, write_rest
from workers.reduce.groups import await_partitions
from workers.reduce.made import Made
from workers.reduce.resolving import resolve
from workers.reduce.stopped import kept
from workers.reduce.trees import TreeAnswers, answer_of_refining

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fanout.core.reduces import Reduce
    from fanout.core.spec import RunSpec
    from fanout.core.state import RunRecord
    from fanout.runs.result_writer import ReduceMade
    from workers.context.worker_context import WorkerContext

__all__ = ["end_run", "reduce", "stop"]

_log = logging.getLogger(__name__)


def reduce(context: WorkerContext, run: RunRecord, stage_id: StageId, spec: RunSpec) -> None:
    """Reduce the outcomes of a stage: end the run, or open the next stage."""
    store, run_id, called = context.connections.store, run.run_id, spec.called_reductions
    found: dict[str, ReduceMade] = {}
    if _waits(context, run, stage_id, spec, found):
        # The last partition of groups to be packed, or the last call of a chain, publishes this task again.
        return
    if called and _was_stopped(context, run, stage_id, spec):
        return
    last = max(stage_id.stage, run.base_stage)
    target = StageId(run_id, last + 1)
    goes_on = any(one.name not in found for one in called)
    if goes_on and store.stage(target).total:
        seal_reduce_stage(store, context.connections.publisher, target)
        return
    stages = range(run.base_stage + 1, last + 1)
    for one in called:
        if one.name not in found:
            found[one.name] = _answered(context, run, spec, one, stages)
    others = [one for one in spec.reductions if not one.makes_calls]
    with computed(context, run_id, spec, others) as made:
        _end(context, run, spec, {**found, **made})


def _was_stopped(context: WorkerContext, run: RunRecord, stage_id: StageId, spec: RunSpec) -> bool:
    """Return whether a run was stopped while its calls were written: some of them may be missing.

    One that was halted ends here; one that another process has ended, or reopened, is not touched.
    """
    now = context.connections.store.run(run.run_id)
    if now.has_ended or now.reopened_at != run.reopened_at:
        return True
    if now.halt is None:
        return False
    stop(context, now, stage_id, spec)
    return True


def stop(context: WorkerContext, run: RunRecord, stage_id: StageId, spec: RunSpec) -> None:
    """End a run that was stopped while its reduces went on, with those aggregates that are made."""
    others = [one for one in spec.reductions if not one.makes_calls]
    try:
        with computed(context, run.run_id, spec, others) as made:
            _write(context, run, spec, {**kept(context, run, spec, stage_id), **made})
    except (BrokerError, UnknownRunError):
        # The task is done again, or was for nothing.
        raise
    except Exception as error:  # noqa: BLE001 - of the aggregates alone: a stopped run ends
        text = "run %s ends without its aggregates: %s (%s)"
        _log.warning(text, run.run_id, told_of(error), place_of(error), extra=about(stage_id))
    end_run(context, run, run.halt or RunStatus.CANCELLED)


def _waits(
    context: WorkerContext,
    run: RunRecord,
    stage_id: StageId,
    spec: RunSpec,
    found: dict[str, ReduceMade],
) -> bool:
    """Write the calls that follow a stage; return whether some of them are written later.

    These are the nodes of groups whose partitions are still to be packed, and calls that follow each other.

    ``found`` gets what reduces have come to, where that is known.
    """
    is_waiting = False
    for number, one in enumerate(spec.reductions):
        if not one.makes_calls:
            continue
        try:
            if one.has_partitions:
                is_waiting |= await_partitions(context, run, spec, stage_id, number)
                continue
            ended = _advanced(context, run, stage_id, spec, one)
            if ended is None and one.refines and stage_id.stage == 0:
                is_waiting |= not refine_calls(context, run, spec, one).finish()
        except SpecError as error:
            # It would be the same for ever.
            ended = Made(problem=str(error))
        if ended is not None:
            found[one.name] = ended
    return is_waiting


def _advanced(
    context: WorkerContext, run: RunRecord, stage_id: StageId, spec: RunSpec, reduce: Reduce
) -> Made | None:
    """Write the calls of a reduce that follow a stage; return what it comes to if that is known."""
    if reduce.resolves:
        return resolve(context, run, stage_id, spec, reduce)
    if reduce.compares:
        return compare(context, run, stage_id, spec, reduce)
    if spec.min_group_success and (ended := lacking_all(context, run.run_id, spec)):
        return ended
    if reduce.clusters and stage_id.stage == 0:
        write_clusters(context, run, spec, reduce)
    elif not reduce.refines:
        write_rest(context, run, spec, reduce, stage_id)
    return None


def _answered(
    context: WorkerContext, run: RunRecord, spec: RunSpec, reduce: Reduce, stages: range
) -> ReduceMade:
    """Return what the calls of a reduce have come to: a tree, or one after the other."""
    run_id, number = run.run_id, spec.reductions.index(reduce)
    ratio = packing_ratio(context.connections.store, run_id, spec, reduce, ())
    try:
        if reduce.refines:
            refine_calls(context, run, spec, reduce).require_all()
            return answer_of_refining(context, run, spec, reduce)
        reduce_room(spec, reduce, ratio)
    except SpecError as error:
        return Made(problem=str(error))
    return TreeAnswers(context, run_id, spec, number, stages)


def _end(
    context: WorkerContext, run: RunRecord, spec: RunSpec, made: Mapping[str, ReduceMade]
) -> None:
    """End a run with what its reduces have come to, by name."""
    for one in spec.reductions:
        # Groups may be very many; that without any has its reason in the coverage, too.
        if one.group_by is None and isinstance(alone := made.get(one.name), Made):
            made = {**made, one.name: with_reason(context, run.run_id, spec, alone)}
    _write(context, run, spec, made)
    # Another process may have written the result, and this one have read a part of its own only.
    problems = standing_problems(context.connections.store, run.run_id)
    if problems is None:
        # The run has ended without a result, or was reopened.
        return
    lines = [f"reduce {name}: {one}" if name else one for name, one in problems.items()]
    status = RunStatus.FAILED if lines else RunStatus.SUCCEEDED
    end_run(context, run, status, error="; ".join(lines) or None)


def _write(
    context: WorkerContext, run: RunRecord, spec: RunSpec, made: Mapping[str, ReduceMade]
) -> None:
    store, run_id, opening = context.connections.store, run.run_id, run.opening
    try:
        if spec.reduces:
            named = {one.name: made[one.name] for one in spec.reductions}
            write_results(store, run_id, named, opening=opening)
        else:
            only = made.get("", Made())
            # Some are known when the aggregates have been read.
            write_result(
                store,
                run_id,
                only.aggregates,
                only.errors,
                problem=lambda: only.problem,
                opening=opening,
            )
    except ResultTooLargeError:
        # The answers themselves remain in the store.
        problem = (
            "the aggregate has more groups than can be stored: use another group_by, or "
            f"`fanout results {run_id} --out DIR`, which has all answers"
        )
        errors = (error for one in made.values() for error in one.errors)
        write_result(store, run_id, (), errors, problem=lambda: problem, opening=opening)


def end_run(
    context: WorkerContext, run: RunRecord, status: RunStatus, *, error: str | None = None
) -> None:
    """Give a run its final status; report its end unless another process already has.

    ``run`` is the run as the task has read it: if it was retried since, it goes on.
    """
    store = context.connections.store
    if store.end_run(run.run_id, status, ended_at=store.now(), error=error, opening=run.opening):
        context.reports.run_ended(run.run_id)
