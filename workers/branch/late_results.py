"""Calls of batches whose branches end before they can use the result."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import structs

from fanout.core.errors import StoredDataError, UnknownRunError
from fanout.core.records import total_usage
from fanout.llm.calls import CallAttempt
from fanout.llm.prices import price_of
from fanout.policy.progress import CallsSoFar
from fanout.policy.steps import Chain, turn_of
from workers.branch.batch_lane import item_of, result_of, used_by
from workers.context.inflight import CallStoppedError

if TYPE_CHECKING:
    from fanout.core.ids import BranchId
    from fanout.core.records import Usage
    from fanout.core.spec import RunSpec
    from fanout.llm.batches.base import BatchResult
    from workers.branch.claims import Claim
    from workers.context.worker_context import WorkerContext
    from workers.telemetry.reports import Calls

__all__ = ["after_abandoned", "count_unused"]


def after_abandoned(
    calls: Calls, model: str, result: BatchResult, usage: Usage, so_far: CallsSoFar | None
) -> CallsSoFar:
    """Count a call of a batch that the branch does not wait for any more, as it makes the call anew.

    Args:
        calls: The calls of the branch; this one is added.
        model: The model.
        result: What the provider has made of it.
        usage: What it has consumed, as far as it is known.
        so_far: The calls to the model before it.
    """
    before = so_far or CallsSoFar()
    used = [usage, before.usage] if before.attempts else [usage]
    calls.ended(model, _attempt(calls, result, usage))
    return structs.replace(before, attempts=before.attempts + 1, usage=total_usage(used))


def _attempt(calls: Calls, result: BatchResult, usage: Usage) -> CallAttempt:
    return CallAttempt(
        number=calls.earlier.attempts + len(calls.attempts) + 1,
        started_at=calls.started_at,
        elapsed_s=0.0,
        kind=None if result.error is None else result.error.kind,
        usage=usage,
    )


async def count_unused(
    claim: Claim, context: WorkerContext, calls: Calls, *, only: str | None = None
) -> Usage | None:
    """Count the call that a branch has gathered, and settle its budget: the branch does not make it any more.

    Without a result the call was not made.

    Args:
        claim: The right to the branch.
        context: The context of this worker process.
        calls: The calls of the branch; that of the batch is added.
        only: The model that it makes no call to; None for none at all.

    Returns:
        What the call has consumed; None if it was not made.
    """
    if not claim.has_checkpoint:
        # It is the first delivery.
        return None
    number = calls.earlier.attempts + len(calls.attempts) + 1
    used = None
    try:
        spec = await context.runs.specs(claim.branch_id.run_id)
        if spec.lane not in ("batch", "auto"):
            return None
        calls.is_batched = True
        prepared = await claim.prepared()
        # One of a number before is counted already.
        result = result_of(prepared.result) if prepared.number == number else None
        step = calls.step or _step_of(spec, calls)
        items = _items(claim.branch_id, spec, number, prepared.since, step)
        for model, item in items.items():
            if only not in (None, model):
                continue
            usage = None
            if result is not None and item == prepared.item:
                used = usage = used_by(result, price_of(model, spec.price))
                calls.ended(model, _attempt(calls, result, usage))
            if context.budgets.applies(spec):
                stage_id = claim.branch_id.shard_id.stage_id
                await context.budgets.unhold(stage_id, spec, model, item, usage)
    except (UnknownRunError, StoredDataError, CallStoppedError):
        pass
    return used


def _step_of(spec: RunSpec, calls: Calls) -> str:
    """Return what names the answer that an earlier delivery has asked for; empty without steps."""
    if not spec.steps:
        return ""
    chain = Chain(spec.steps, calls.so_far.steps)
    return turn_of(chain, chain.next)


def _items(
    branch_id: BranchId, spec: RunSpec, number: int, since: str, step: str
) -> dict[str, str]:
    """Return the ids that a call of a branch may have in a batch, by the model that is asked."""
    places = (spec.model, *spec.all_models)
    models = dict.fromkeys(places if branch_id.stage == 0 else spec.reduce_models)
    return {
        model: item_of(branch_id, model, places.index(model), number, since=since, step=step)
        for model in models
    }
