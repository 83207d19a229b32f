"""What happens around the branches of a stage: expand, collect, aggregate."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import msgspec

from fanout.broker.inspection import seen_of_shard
from fanout.core.records import ErrorKind, Outcome, RunStatus
from fanout.policy.healing import unpublished
from fanout.runs.enqueue import fleet_window, take_back
from fanout.stores import End
from workers.reduce import reductions

if TYPE_CHECKING:
    from fanout.core.spec import RunSpec
    from fanout.stores import RunRecord, StageRecord
    from workers.context.runtime import Runtime

__all__ = ["TooEarlyError", "aggregate", "collect", "drain", "expand"]


class TooEarlyError(Exception):
    """A callback ran before all of its header has ended: a stale copy, or a message was lost.

    It does nothing. The real one is still to come, or the reaper sees to it.
    """


def expand(runtime: Runtime, run_id: str, stage: int, number: int, lanes: int) -> None:
    """Publish the chord of a shard; ``lanes`` branches of it at first, or all where that is 0."""
    run = runtime.store.run(run_id)
    if stage == 0 and run.retry and not run.halt:
        take_back(runtime.store, run, number)
    if runtime.store.is_finished(run_id, stage, number):
        # Delivered again, or a retry to which this shard has nothing to add.
        runtime.publisher.collect(run_id, stage, number)
        return
    ending = _ending(run, stage)
    if ending is not None:
        # A run with many shards must end soon: its branches are recorded, not published.
        _record_rest(runtime, run_id, stage, number, *ending)
        runtime.publisher.collect(run_id, stage, number)
        return
    count = len(runtime.indices(run_id, stage, number))
    is_again = stage == 0 and bool(run.retry)
    ended = _ended(runtime, run_id, number) if is_again else frozenset()
    todo = [position for position in range(count) if position not in ended]
    if not todo:
        runtime.publisher.collect(run_id, stage, number)
        return
    first = todo[: lanes or count]
    feed = count if len(first) < len(todo) else 0
    published = first[-1] + 1 if feed else count
    if runtime.store.start_shard(run_id, stage, number, published=published):
        if is_again:
            runtime.publisher.forget_shard(run_id, stage, number)
        runtime.publisher.shard_chord(run_id, stage, number, first, size=len(todo), feed=feed)
    else:
        _expand_rest(runtime, run_id, stage, number, lanes)


def _ended(runtime: Runtime, run_id: str, number: int) -> frozenset[int]:
    """Return the branches of a shard of the map whose outcomes a retry has kept."""
    return runtime.store.shard_state(run_id, 0, number).ended


def _ending(run: RunRecord, stage: int) -> tuple[ErrorKind, str] | None:
    """Return what becomes of branches that are not published because their run is to end."""
    if run.halt:
        return ErrorKind.CANCELLED, "the run was stopped before this branch was called"
    if stage == 0 and run.is_overdue:
        return ErrorKind.EXPIRED, "the run's deadline passed before this branch was called"
    return None


def _expand_rest(runtime: Runtime, run_id: str, stage: int, number: int, lanes: int) -> None:
    """Publish what a first attempt has not: a branch in the queue twice would be called twice."""
    shard = runtime.store.shard_state(run_id, stage, number)
    task_ids = runtime.messages.task_ids().get(run_id, set())
    seen = seen_of_shard(task_ids, run_id, stage, number)
    missing = unpublished(shard, seen, lanes=lanes)
    if missing:
        feed = shard.count if 0 < lanes < shard.count else 0
        runtime.store.advance_shard(run_id, stage, number, published=missing[-1] + 1)
        runtime.publisher.branches(run_id, stage, number, missing, feed=feed)
    if shard.ended >= set(range(shard.count)):
        runtime.publisher.collect(run_id, stage, number)


def _record_rest(
    runtime: Runtime, run_id: str, stage: int, number: int, kind: ErrorKind, message: str
) -> None:
    now = time.time()
    runtime.store.record_all(
        [
            End(
                run_id,
                stage,
                number,
                position,
                Outcome(index=index, kind=kind, message=message, ended_at=now),
            )
            for position, index in enumerate(runtime.indices(run_id, stage, number))
        ]
    )


def collect(
    runtime: Runtime, results: list[Any], run_id: str, stage: int, number: int
) -> dict[str, int]:
    """Account for every branch of a shard, compact its outcomes, and publish the next shards.

    Args:
        runtime: The worker's process.
        results: What the members of the chord returned; records of failure tell why a branch
            that wrote no outcome has none.
        run_id: The run.
        stage: The stage.
        number: The shard.

    Returns:
        The shard's counts: this travels through the root chord, so it is tiny.

    Raises:
        TooEarlyError: A branch has neither an outcome nor a record of failure.
    """
    outcomes = _complete(runtime, run_id, stage, number, _failures(results))
    store = runtime.store
    is_again = store.is_finished(run_id, stage, number)
    store.compact(run_id, stage, number, outcomes)
    if not is_again:
        runtime.reports.shard_ended(run_id, stage, number, outcomes)
    grants = store.open_shards(run_id, stage, window=fleet_window(store), finished=number)
    runtime.publisher.expand(run_id, stage, grants)
    succeeded = sum(outcome.ok for outcome in outcomes.values())
    return {"shard": number, "succeeded": succeeded, "failed": len(outcomes) - succeeded}


def drain(runtime: Runtime, run_id: str, stage: int, number: int, left: int) -> None:
    """Publish further shards, as few branches are left of this one, and may be slow."""
    store = runtime.store
    grants = store.open_shards(run_id, stage, window=fleet_window(store), draining=(number, left))
    runtime.publisher.expand(run_id, stage, grants)


def _complete(
    runtime: Runtime, run_id: str, stage: int, number: int, failures: dict[int, Outcome]
) -> dict[int, Outcome]:
    indices = runtime.indices(run_id, stage, number)
    outcomes = runtime.store.outcomes(run_id, stage, number)
    missing = [position for position in range(len(indices)) if position not in outcomes]
    if not missing:
        return outcomes
    if not failures.keys() >= set(missing):
        raise TooEarlyError(run_id, stage, number)
    runtime.store.record_all(
        [
            End(run_id, stage, number, position, _at(indices[position], failures[position]))
            for position in missing
        ]
    )
    return runtime.store.outcomes(run_id, stage, number)


def _at(index: int, failure: Outcome) -> Outcome:
    return msgspec.structs.replace(failure, index=index, ended_at=time.time())


# What Celery calls the ends that a branch cannot record by itself.
_KINDS = {
    "WorkerLostError": (ErrorKind.WORKER_LOST, "the worker process died while it ran the branch"),
    "Terminated": (ErrorKind.WORKER_LOST, "the worker process was terminated"),
    "TimeLimitExceeded": (ErrorKind.TIME_LIMIT, "the task exceeded its hard time limit"),
    "SoftTimeLimitExceeded": (ErrorKind.TIME_LIMIT, "the task exceeded its soft time limit"),
}


def _failures(results: list[Any]) -> dict[int, Outcome]:
    """Return an outcome, by position, for each failed member of a shard chord's header."""
    records = (result for result in results if isinstance(result, dict) and "task_id" in result)
    return {int(r["task_id"].rpartition("/")[2]): _failure(r) for r in records}


def _failure(record: dict[str, Any]) -> Outcome:
    if record["state"] == "REVOKED":
        if "expired" in record.get("reason", ""):
            return Outcome(index=0, kind=ErrorKind.EXPIRED, message="the task expired in the queue")
        return Outcome(index=0, kind=ErrorKind.CANCELLED, message="the task was revoked")
    kind, message = _KINDS.get(
        record["error"], (ErrorKind.INTERNAL, f"the task ended with {record['error']}")
    )
    return Outcome(index=0, kind=kind, message=message)


def aggregate(runtime: Runtime, run_id: str, stage: int) -> None:
    """Reduce the outcomes of a stage: end the run, or open the next stage.

    Raises:
        TooEarlyError: A branch of the stage has no outcome yet.
    """
    store = runtime.store
    run = store.run(run_id)
    if run.has_ended or 0 < stage <= run.base_stage:
        return
    record = store.stage(run_id, stage)
    if not record.sealed or (record.done < record.total and store.incomplete(run_id, stage)):
        raise TooEarlyError(run_id, stage)
    if run.halt:
        runtime.end_run(run_id, run.halt)
        return
    spec = runtime.spec(run_id)
    problem = _policy_problem(spec, record) if stage == 0 else None
    if problem:
        runtime.end_run(run_id, RunStatus.FAILED, error=problem)
        return
    store.set_status(run_id, RunStatus.REDUCING)
    reductions.reduce(runtime, run, stage, spec)


def _policy_problem(spec: RunSpec, record: StageRecord) -> str | None:
    """Return why the outcomes of a run's branches make it fail, or None."""
    kinds = ", ".join(f"{kind.value} {count}" for kind, count in sorted(record.errors.items()))
    if record.succeeded == 0:
        return f"no branch succeeded: {record.failed} of {record.total} failed ({kinds})"
    if record.succeeded < spec.min_success * record.total:
        share = record.succeeded / record.total
        return (
            f"{record.succeeded} of {record.total} branches succeeded ({share:.1%}), "
            f"min_success is {spec.min_success:.1%} ({kinds})"
        )
    return None
