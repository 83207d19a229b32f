"""Lets a branch wait for a sibling that fills its provider's prompt cache."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING

from fanout.core.errors import FanoutError
from fanout.core.lanes import first_lane
from fanout.policy.packing import shard_chunk
from workers.branch.delivery_ends import BranchHandedBack
from workers.context.admission import AdmissionClosedError

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from fanout.core.ids import BranchId
    from fanout.core.spec import RunSpec
    from fanout.llm.prompt_plans import PromptPlan
    from fanout.llm.step_plans import StepPlan
    from workers.context.leads import Lead
    from workers.context.progress import TrackedBranch
    from workers.context.run_caches import RunCaches
    from workers.context.worker_context import WorkerContext

__all__ = ["has_no_siblings", "wait_for_sibling"]

_ALONE = nullcontext()


def has_no_siblings(context: WorkerContext, branch_id: BranchId) -> bool:
    """Return whether it is known at once that a branch waits for no other one: for most it is."""
    runs, run_id = context.runs, branch_id.run_id
    if branch_id.stage > 0:
        return True
    spec = runs.specs.known(run_id)
    if spec is None or spec.steps:
        return spec is not None and _plan_of(runs, spec, run_id) is None
    return runs.plan(run_id) is None


def _plan_of(runs: RunCaches, spec: RunSpec, run_id: str) -> PromptPlan | StepPlan | None:
    return runs.steps(run_id).plan if spec.steps else runs.plan(run_id)


async def wait_for_sibling(
    context: WorkerContext, branch: TrackedBranch
) -> AbstractContextManager[Lead | None]:
    """Wait until a branch may call, where that saves money.

    Returns:
        Its part among its siblings, to be entered until its call has ended.

    Raises:
        BranchHandedBack: This worker stops.
    """
    names = () if branch.branch_id.stage else await _prefixes(context, branch)
    if not names:
        return _ALONE
    branch.moves("waits for a call with the same text")
    try:
        return await context.leads.enter(names)
    except AdmissionClosedError:
        raise BranchHandedBack from None
    finally:
        branch.moves("waits for a place")


async def _prefixes(context: WorkerContext, branch: TrackedBranch) -> tuple[str, ...]:
    """Return the prefixes of a branch's prompt that it shares with other branches."""
    runs, shard_id = context.runs, branch.branch_id.shard_id
    try:
        spec = await runs.specs(shard_id.run_id)
        plan = _plan_of(runs, spec, shard_id.run_id)
        if plan is None:
            return ()
        indices = await runs.indices(shard_id)
        shard = await runs.shards(shard_id)
    except FanoutError:
        # The call finds it out.
        return ()
    ref = spec.variants.ref(indices[branch.branch_id.position])
    chunk = shard_chunk(shard, indices[branch.branch_id.position], spec.variants.count)
    if chunk.error is not None:
        return ()
    names = plan.families(
        chunk,
        ref,
        model=ref.model or spec.model,
        chunks=len(shard.chunks),
        lane=first_lane(spec.lane),
    )
    return tuple(f"{shard_id.run_id}/{name}" for name in names)
