"""Whether the branches of a run that wait for batches would be late for its deadline."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fanout.core.ids import StageId
from fanout.core.queue_names import BRANCHES_QUEUE
from fanout.policy.lanes import is_late

if TYPE_CHECKING:
    from fanout.core.state import RunRecord
    from fanout.stores import RedisStore

__all__ = ["run_is_late"]

# Of a call without a measurement.
_CALL_S = 20.0


def run_is_late(store: RedisStore, run: RunRecord, *, is_submitted: bool) -> bool:
    """Return whether branches of a run must be called now.

    Args:
        store: Has the counts of the run, and the workers.
        run: The run.
        is_submitted: Whether the provider has the batch that the branches wait for.

    Raises:
        BrokerError: The server does not answer.
    """
    if run.deadline_at is None:
        return False
    stage = store.stage(StageId(run.run_id, run.stage))
    workers = [worker for worker in store.workers() if BRANCHES_QUEUE in worker.queues]
    return is_late(
        left_s=run.deadline_at - run.read_at,
        span_s=run.deadline_at - run.created_at,
        branches=max(1, stage.total - stage.done),
        concurrency=sum(worker.concurrency for worker in workers),
        call_s=_CALL_S,
        is_submitted=is_submitted,
    )
