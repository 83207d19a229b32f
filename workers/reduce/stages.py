"""The tasks around the branches of a stage: expand, collect, aggregate."""

from __future__ import annotations

import logging
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from fanout.broker.inspection import messages_of_shard
from fanout.core.errors import BrokerError, SpecError, StoredDataError, UnknownRunError
from fanout.core.ids import BranchId
from fanout.core.records import ErrorKind, Outcome, RunStatus
from fanout.core.state import RecordRequest
from fanout.core.units import exact_percent, percent
from fanout.policy.answers_so_far import AnswersSoFar
from fanout.policy.healing import unpublished
from fanout.policy.steps import at_step
from fanout.runs.enqueue import fleet_window
from fanout.runs.retried_runs import reset_retried_shard
from fanout.system.logs import RateLimitFilter, about, place_of, told_of
from workers.context.inflight import BEFORE_CALL, StopReason, run_ending
from workers.reduce import reductions
from workers.reduce.frontier import follow
from workers.reduce.groups import follow_groups
from workers.reduce.items import TooEarlyError
from workers.reduce.missing_fields import note_missing_fields
from workers.reduce.resolved_values import require_field

if TYPE_CHECKING:
    from fanout.core.ids import ShardId, StageId
    from fanout.core.spec import RunSpec
    from fanout.core.state import RunRecord, StageRecord
    from fanout.stores import RedisStore
    from workers.context.worker_context import WorkerContext

__all__ = ["aggregate", "collect", "expand"]

_TREE_LOG_S = 30.0

_log = logging.getLogger(__name__)
_tree_log = logging.getLogger(f"{__name__}.tree")
# What is wrong with a run is wrong with each shard of it.
_TREE_FILTER = RateLimitFilter(_TREE_LOG_S)
_tree_log.addFilter(_TREE_FILTER)


def expand(context: WorkerContext, shard_id: ShardId) -> None:
    """Publish the chord of a shard."""
    store, publisher = context.connections.store, context.connections.publisher
    run = store.run(shard_id.run_id)
    is_again = shard_id.stage == 0 and bool(run.retry)
    if is_again and not run.halt:
        reset_retried_shard(store, shard_id, run.retry)
    if store.is_finished(shard_id):
        # The message was redelivered, or the retry has no branch in this shard.
        publisher.collect(shard_id)
        return
    ending = _ending(run, shard_id.stage)
    if ending is not None:
        # A run with many shards must end soon: record its branches instead of publishing them.
        _record_rest(context, shard_id, run, *ending)
        publisher.collect(shard_id)
        return
    count = len(context.runs.indices.get(shard_id))
    # The branches whose outcomes a retry keeps.
    ended = store.shard_state(shard_id).ended if is_again else frozenset()
    todo = [position for position in range(count) if position not in ended]
    if not todo:
        publisher.collect(shard_id)
    elif store.start_shard(shard_id):
        if is_again:
            publisher.forget_chord(shard_id)
        publisher.shard_chord(shard_id, todo)
    else:
        _expand_rest(context, shard_id)


def _ending(run: RunRecord, stage: int) -> tuple[ErrorKind, str] | None:
    """Return the error of branches that are not published because their run must end, or None."""
    is_over = run.halt or run.has_ended
    reason = StopReason.HALTED if is_over else StopReason.EXPIRED
    if is_over or (stage == 0 and run.is_overdue):
        return run_ending(reason, when=BEFORE_CALL)
    return None


def _expand_rest(context: WorkerContext, shard_id: ShardId) -> None:
    """Publish the branches that the first attempt missed: a branch published twice is called twice."""
    store, publisher = context.connections.store, context.connections.publisher
    shard = store.shard_state(shard_id)
    task_ids = context.connections.messages.task_ids().get(shard_id.run_id, set())
    messages = messages_of_shard(task_ids, shard_id)
    missing = unpublished(shard, messages)
    if missing:
        publisher.branches(shard_id, missing)
    if shard.ended >= set(range(shard.count)):
        publisher.collect(shard_id)


def _record_rest(
    context: WorkerContext, shard_id: ShardId, run: RunRecord, kind: ErrorKind, message: str
) -> None:
    count = len(context.runs.indices.get(shard_id))
    failure = Outcome(index=0, kind=kind, message=message)
    _record(context, shard_id, dict.fromkeys(range(count), failure), opening=run.opening)


def _record(
    context: WorkerContext, shard_id: ShardId, failures: dict[int, Outcome], *, opening: float
) -> None:
    """Write the outcomes, by position, of branches that have none of their own."""
    indices, now = context.runs.indices.get(shard_id), time.time()
    requests = [
        RecordRequest(
            shard_id.branch(position),
            msgspec.structs.replace(failure, index=indices[position], ended_at=now),
            opening=opening,
        )
        for position, failure in failures.items()
    ]
    if shard_id.stage == 0:
        requests = _with_checkpoints(context, requests, shard_id.run_id)
    context.connections.store.record_all(requests)


def _with_checkpoints(
    context: WorkerContext, requests: list[RecordRequest], run_id: str
) -> list[RecordRequest]:
    """Return requests with what their branches, if these are of several calls, have come to."""
    try:
        spec = context.runs.specs.get(run_id)
    except StoredDataError:
        # Of another version of fanout: its branches must end all the same.
        return requests
    if spec.certainty is None and not spec.steps:
        return requests
    found = context.connections.store.checkpoints([request.branch_id for request in requests])
    return list(map(partial(_with_answers, spec), requests, found))


def _with_answers(spec: RunSpec, request: RecordRequest, checkpoint: bytes | None) -> RecordRequest:
    """Return a request with the answers that its branch has paid for."""
    if checkpoint is None:
        return request
    try:
        so_far = AnswersSoFar.of(checkpoint)
    except StoredDataError as error:
        _log.warning("answers are lost: %s", error, extra=about(request.branch_id))
        return request
    outcome = request.outcome
    if outcome.message is not None:
        message = at_step(outcome.message, spec.steps, so_far.steps)
        outcome = msgspec.structs.replace(outcome, message=message)
    return msgspec.structs.replace(
        request,
        outcome=so_far.lost(outcome),
        has_checkpoint=True,
        usage_of=so_far.usage_of if spec.is_by_model else {},
    )


def collect(context: WorkerContext, results: list[Any], shard_id: ShardId) -> dict[str, int]:
    """Account for every branch of a shard, compact its outcomes, and publish the next shards.

    Args:
        context: The worker's process.
        results: The results of the chord's members; a record of failure gives the reason why a
            branch wrote no outcome.
        shard_id: The shard.

    Returns:
        The shard's counts: a small result, as it travels through the root chord.

    Raises:
        TooEarlyError: A branch has neither an outcome nor a record of failure, or is to be retried.
    """
    store = context.connections.store
    outcomes = _complete(context, shard_id, _failures(results))
    outcomes, opening = _of_opening(store, shard_id, outcomes)
    # The run may end now, and with it an embedded worker.
    context.keep_learnt()
    is_again = store.is_finished(shard_id)
    if not store.compact(shard_id, outcomes, opening=opening):
        raise TooEarlyError(shard_id)
    if not is_again:
        context.reports.shard_ended(shard_id, outcomes)
    stage_id, finished = shard_id.stage_id, shard_id.shard
    opened = store.open_shards(stage_id, window=fleet_window(store), finished=finished)
    context.connections.publisher.expand(stage_id, opened)
    _follow(context, shard_id)
    succeeded = sum(outcome.ok for outcome in outcomes.values())
    return {"shard": shard_id.shard, "succeeded": succeeded, "failed": len(outcomes) - succeeded}


def _follow(context: WorkerContext, shard_id: ShardId) -> None:
    """Let the tree follow a shard that has ended.

    What goes wrong there is no failure of the shard: once all have ended, the tree has them all the same.
    """
    try:
        require_field(context, shard_id)
        note_missing_fields(context, shard_id)
        follow(context, shard_id)
        follow_groups(context, shard_id)
    except (BrokerError, UnknownRunError):
        # The task is done again, or was for nothing.
        raise
    except Exception as error:  # noqa: BLE001 - of the tree alone
        _tree_log.warning(
            "the tree of run %s cannot follow shard %d of stage %d: %s (%s)",
            shard_id.run_id,
            shard_id.shard,
            shard_id.stage,
            told_of(error),
            place_of(error),
            extra=about(shard_id),
        )


def _of_opening(
    store: RedisStore, shard_id: ShardId, outcomes: dict[int, Outcome]
) -> tuple[dict[int, Outcome], float | None]:
    """Return the outcomes of a shard, and the opening of the run that they are of; None is any.

    A retry resets only shards of branches that have failed.

    Raises:
        TooEarlyError: They are those that a retry discards: the collect is a late copy from before it, and
            would end the run as it was.
    """
    if shard_id.stage > 0 or not _kinds_of(outcomes):
        return outcomes, None
    run = store.run(shard_id.run_id)
    if run.opening:
        # The shard may have been reset since they were read.
        count = len(outcomes)
        outcomes = store.outcomes(shard_id)
        if len(outcomes) < count:
            raise TooEarlyError(shard_id)
    is_again = not run.halt and not _kinds_of(outcomes).isdisjoint(run.retry)
    if is_again and not store.is_reopened(shard_id):
        raise TooEarlyError(shard_id)
    return outcomes, run.opening


def _kinds_of(outcomes: dict[int, Outcome]) -> set[ErrorKind]:
    return {outcome.kind for outcome in outcomes.values() if outcome.kind is not None}


def _complete(
    context: WorkerContext, shard_id: ShardId, failures: dict[int, Outcome]
) -> dict[int, Outcome]:
    store = context.connections.store
    indices = context.runs.indices.get(shard_id)
    # Before the outcomes are read: a retry may reset the shard meanwhile.
    opening = store.run(shard_id.run_id).opening if failures else 0.0
    outcomes = store.outcomes(shard_id)
    missing = [position for position in range(len(indices)) if position not in outcomes]
    if not missing:
        return outcomes
    if not failures.keys() >= set(missing):
        raise TooEarlyError(shard_id)
    rest = {position: failures[position] for position in missing}
    _record(context, shard_id, rest, opening=opening)
    outcomes = store.outcomes(shard_id)
    if len(outcomes) < len(indices):
        raise TooEarlyError(shard_id)
    return outcomes


# By Celery's names: the ends that a branch cannot record itself.
_KINDS = {
    "WorkerLostError": (ErrorKind.WORKER_LOST, "the worker process died while it ran the branch"),
    "Terminated": (ErrorKind.WORKER_LOST, "the worker process was terminated"),
    "TimeLimitExceeded": (ErrorKind.TIME_LIMIT, "the task exceeded its hard time limit"),
    "SoftTimeLimitExceeded": (ErrorKind.TIME_LIMIT, "the task exceeded its soft time limit"),
}


def _failures(results: list[Any]) -> dict[int, Outcome]:
    """Return an outcome, by position, for each failed member of a shard chord's header."""
    records = (result for result in results if isinstance(result, dict) and "task_id" in result)
    return {BranchId.parse(r["task_id"]).position: _failure(r) for r in records}


def _failure(record: dict[str, Any]) -> Outcome:
    if record["state"] == "REVOKED":
        if "expired" in record.get("reason", ""):
            return Outcome(index=0, kind=ErrorKind.EXPIRED, message="the task expired in the queue")
        return Outcome(index=0, kind=ErrorKind.CANCELLED, message="the task was revoked")
    kind, message = _KINDS.get(
        record["error"], (ErrorKind.INTERNAL, f"the task ended with {record['error']}")
    )
    return Outcome(index=0, kind=kind, message=message)


def aggregate(context: WorkerContext, stage_id: StageId) -> None:
    """Reduce the outcomes of a stage: end the run, or open the next stage.

    Raises:
        TooEarlyError: A branch of the stage has no outcome yet, or is to be retried.
    """
    store, run_id, stage = context.connections.store, stage_id.run_id, stage_id.stage
    run = store.run(run_id)
    if run.has_ended or 0 < stage <= run.base_stage:
        return
    record = store.stage(stage_id)
    if not record.sealed or (record.done < record.total and store.incomplete(stage_id)):
        raise TooEarlyError(stage_id)
    if run.halt:
        _end_stopped(context, run, stage_id)
        return
    if stage == 0 and run.retry and not store.progress(stage_id).is_complete:
        # A late copy from before the retry: the counts are still those of then.
        raise TooEarlyError(stage_id)
    spec = context.runs.specs.get(run_id)
    problem = _policy_problem(spec, record) if stage == 0 else None
    if problem:
        reductions.end_run(context, run, RunStatus.FAILED, error=problem)
        return
    if not store.set_status(run_id, RunStatus.REDUCING, opening=run.opening):
        # Another process has ended the run meanwhile; it may have been retried, too.
        return
    reductions.reduce(context, run, stage_id, spec)


def _end_stopped(context: WorkerContext, run: RunRecord, stage_id: StageId) -> None:
    """End a run that was stopped; if the map had ended, with the aggregates that are made."""
    is_reducing = run.status is RunStatus.REDUCING or run.stage > run.base_stage
    if is_reducing or stage_id.stage:
        try:
            spec = context.runs.specs.get(run.run_id)
        except (StoredDataError, SpecError) as error:
            # Of another version of fanout: it must end all the same.
            text = "run %s ends without its aggregates: %s"
            _log.warning(text, run.run_id, told_of(error), extra=about(stage_id))
        else:
            reductions.stop(context, run, stage_id, spec)
            return
    reductions.end_run(context, run, run.halt or RunStatus.CANCELLED)


def _policy_problem(spec: RunSpec, record: StageRecord) -> str | None:
    """Return why the outcomes of a run's branches make it fail, or None."""
    kinds = ", ".join(f"{kind.value} {count}" for kind, count in sorted(record.errors.items()))
    if record.succeeded == 0:
        return f"no branch succeeded: {record.failed} of {record.total} failed ({kinds})"
    if record.succeeded < spec.min_success * record.total:
        share = percent(record.succeeded, record.total)
        return (
            f"{record.succeeded} of {record.total} branches succeeded ({share}), "
            f"min_success is {exact_percent(spec.min_success)} ({kinds})"
        )
    return None
