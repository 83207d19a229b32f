"""Whether the branches of a run that wait for batches would be late for its deadline."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fanout.core.ids import StageId
from fanout.core.queue_names import BRANCHES_QUEUE
from fanout.policy.lanes import CALL_S, late_steps

if TYPE_CHECKING:
    from fanout.core.state import RunRecord
    from fanout.policy.lanes import BatchStep
    from fanout.stores import RedisStore

__all__ = ["late_steps_of"]


def late_steps_of(store: RedisStore, run: RunRecord, *, wait_s: float) -> frozenset[BatchStep]:
    """Return which branches of a run must be called now, by how far their calls for a batch are.

    Args:
        store: Has the counts of the run, and the workers.
        run: The run.
        wait_s: Seconds for which gathered calls wait for further ones.

    Raises:
        BrokerError: The server does not answer.
    """
    if run.deadline_at is None:
        return frozenset()
    stage = store.stage(StageId(run.run_id, run.stage))
    workers = [worker for worker in store.workers() if BRANCHES_QUEUE in worker.queues]
    return late_steps(
        left_s=run.deadline_at - run.read_at,
        span_s=run.deadline_at - run.created_at,
        branches=max(1, stage.total - stage.done),
        concurrency=sum(worker.concurrency for worker in workers),
        call_s=CALL_S,
        wait_s=wait_s,
    )
