"""Decides whether a call of a branch is gathered for a batch, or made now."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fanout.core.gathered import LaneRecord
from fanout.llm.batches.base import batches_of
from workers.branch.batch_lane import GatheredCalls, PreparedModel, used_by
from workers.branch.late_results import after_abandoned

if TYPE_CHECKING:
    from fanout.core.spec import RunSpec
    from fanout.llm.base import LLM
    from fanout.policy.pricing import Price
    from fanout.policy.progress import CallsSoFar
    from workers.branch.claims import Claim
    from workers.context.budgeted_calls import BudgetedCalls
    from workers.context.worker_context import WorkerContext
    from workers.telemetry.reports import Calls

__all__ = ["gathered_calls"]


async def gathered_calls(
    claim: Claim,
    context: WorkerContext,
    spec: RunSpec,
    calls: Calls,
    model: str,
    llm: LLM,
    *,
    budgeted: BudgetedCalls | None,
    price: Price | None,
    so_far: CallsSoFar | None,
) -> tuple[tuple[LLM, GatheredCalls] | None, CallsSoFar | None]:
    """Return what takes the place of a model in the batch lane, and the calls to it so far.

    None for calls that are made now: then a call of a batch that the branch gives up is counted.
    """
    client = batches_of(llm)
    if client is None:
        return None, so_far
    prepared = await claim.prepared()
    gate = GatheredCalls(
        claim,
        client,
        LaneRecord(model=model, account=getattr(llm, "account", "")),
        earlier=calls.earlier.attempts + len(calls.attempts),
        prepared=prepared,
        place=(spec.model, *spec.all_models).index(model),
        step=calls.step,
        price=price,
        budgeted=budgeted,
    )
    if prepared.is_promoted or (
        spec.lane == "auto"
        # It is paid for.
        and not gate.has_reply
        and await context.models.late.is_late(claim.branch_id.run_id)
    ):
        result = await gate.give_up() if claim.has_checkpoint else None
        if result is not None:
            so_far = after_abandoned(calls, model, result, used_by(result, price), so_far)
        return None, so_far
    return (PreparedModel(gate), gate), so_far
