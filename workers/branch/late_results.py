"""Calls of batches whose branches end before they can use the result."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fanout.core.errors import StoredDataError, UnknownRunError
from fanout.llm.calls import CallAttempt
from fanout.llm.prices import price_of
from workers.branch.batch_lane import item_of, result_of, used_by
from workers.context.inflight import CallStoppedError

if TYPE_CHECKING:
    from fanout.core.ids import BranchId
    from fanout.core.spec import RunSpec
    from workers.branch.claims import Claim
    from workers.context.worker_context import WorkerContext
    from workers.telemetry.reports import Calls

__all__ = ["count_unused"]


async def count_unused(claim: Claim, context: WorkerContext, calls: Calls) -> None:
    """Count the call that a branch has gathered, and settle its budget: the branch makes no call any more.

    Without a result the call was not made.

    Args:
        claim: The right to the branch.
        context: The context of this worker process.
        calls: The calls of the branch; that of the batch is added.
    """
    if not claim.has_checkpoint:
        # It is the first delivery.
        return
    number = calls.earlier.attempts + 1
    try:
        spec = await context.runs.specs(claim.branch_id.run_id)
        if spec.lane not in ("batch", "auto"):
            return
        calls.is_batched = True
        prepared = await claim.prepared()
        # One of a number before is counted already.
        result = result_of(prepared.result) if prepared.number == number else None
        items = _items(claim.branch_id, spec, number, prepared.since)
        for model, item in items.items():
            usage = None
            if result is not None and item == prepared.item:
                usage = used_by(result, price_of(model, spec.price))
                kind = None if result.error is None else result.error.kind
                call = CallAttempt(
                    number=number,
                    started_at=calls.started_at,
                    elapsed_s=0.0,
                    kind=kind,
                    usage=usage,
                )
                calls.ended(model, call)
            if context.budgets.applies(spec):
                stage_id = claim.branch_id.shard_id.stage_id
                await context.budgets.unhold(stage_id, spec, model, item, usage)
    except (UnknownRunError, StoredDataError, CallStoppedError):
        return


def _items(branch_id: BranchId, spec: RunSpec, number: int, since: str) -> dict[str, str]:
    """Return the ids that a call of a branch may have in a batch, by the model that is asked."""
    places = (spec.model, *spec.all_models)
    models = dict.fromkeys(places if branch_id.stage == 0 else places[:1])
    return {
        model: item_of(branch_id, model, places.index(model), number, since=since)
        for model in models
    }
