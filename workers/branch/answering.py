"""Puts the prompt of a branch to its models."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
from msgspec import structs

from fanout.core.errors import (
    LostDataError,
    ModelError,
    PromptError,
    StoredDataError,
    UnknownRunError,
)
from fanout.core.neighbours import around_in
from fanout.core.plan_runs import is_plan
from fanout.core.records import ErrorKind, Outcome, Variants
from fanout.inputs.plan_answers import PlanShape
from fanout.inputs.prompt_layout import branch_values
from fanout.llm.error_kinds import FEW, MANY
from fanout.policy.packing import shard_chunk
from fanout.policy.retries import STOPS_RUN
from workers.branch.asking import Asking
from workers.branch.chain import ask_steps
from workers.branch.consensus import ask_until_certain
from workers.branch.delivery_ends import BranchHandedBack
from workers.branch.late_results import count_unused
from workers.branch.outcomes import outcome_of, unanswered
from workers.branch.reducing import ask_reduce
from workers.branch.retrieving import RetrievalError, Retriever
from workers.context.inflight import BEFORE_CALL, CallStoppedError, StopReason, run_ending

if TYPE_CHECKING:
    from fanout.core.ids import ShardId
    from fanout.core.records import BranchRef, Chunk
    from fanout.core.spec import RunSpec
    from fanout.llm.base import LLMRequest
    from workers.branch.claims import Claim
    from workers.context.worker_context import WorkerContext
    from workers.telemetry.reports import Calls

__all__ = ["LOST", "answer"]

# The branches of a reduce stage: one for each chunk.
_SINGLE = Variants()
LOST = "the server has lost the input of this branch"


async def answer(
    claim: Claim, context: WorkerContext, shard_id: ShardId, index: int, calls: Calls
) -> Outcome:
    """Return the outcome of a branch from the calls to its models.

    Raises:
        BranchHandedBack: This worker stops, or the run is paused.
        LostDataError: Its input is not here.
    """
    try:
        return await _call(claim, context, shard_id, index, calls)
    except CallStoppedError as stopped:
        if stopped.reason in (StopReason.HANDED_BACK, StopReason.PAUSED):
            raise BranchHandedBack from None
        # A call that was cancelled has ended, too.
        has_called = calls.attempts or calls.earlier.attempts
        when = "during the call" if has_called else BEFORE_CALL
        kind, message = run_ending(stopped.reason, when=when)
        return unanswered(index, kind, _of_step(calls, message), calls)
    except LostDataError:
        raise
    except UnknownRunError:
        return unanswered(index, ErrorKind.LOST, LOST, calls)
    except (PromptError, StoredDataError) as error:
        await count_unused(claim, context, calls)
        return unanswered(index, ErrorKind.BAD_REQUEST, _of_step(calls, error), calls)
    except ModelError as error:
        kind = error.kind or ErrorKind.BAD_REQUEST
        # Another worker may have the model that this one lacks.
        calls.stop_after = FEW if kind in STOPS_RUN else MANY
        await count_unused(claim, context, calls)
        return unanswered(index, kind, _of_step(calls, error), calls)


def _of_step(calls: Calls, error: Exception | str) -> str:
    """Return the message of an error, with the step that it struck."""
    name = calls.step.partition(" ")[0]
    return f"step {name}: {str(error).removeprefix(f'steps.{name}.')}" if name else str(error)


async def _call(
    claim: Claim, context: WorkerContext, shard_id: ShardId, index: int, calls: Calls
) -> Outcome:
    run_id, stage = shard_id.run_id, shard_id.stage
    runs = context.runs
    spec = runs.specs.ready(run_id) or await runs.specs(run_id)
    shard = runs.shards.ready(shard_id) or await runs.shards(shard_id)
    variants = spec.variants if stage == 0 else _SINGLE
    ref = variants.ref(index)
    chunk = shard_chunk(shard, index, variants.count)
    if chunk.error is not None:
        return Outcome(index=index, kind=ErrorKind.BAD_REQUEST, message=chunk.error)
    asking = Asking(claim, context, shard_id.stage_id, spec, calls)
    if stage > 0:
        return await ask_reduce(context, run_id, spec, asking, ref, chunk)
    around = around_in(shard, ref.chunk, spec.neighbours) if spec.neighbours else None
    if spec.steps:
        return await ask_steps(
            claim,
            context,
            spec,
            calls,
            index,
            asking=asking,
            chunk=chunk,
            ref=ref,
            around=around,
            chunks=len(shard.chunks),
        )
    read = _Read(spec, chunk, ref, around, len(shard.chunks))
    return await _prompted(claim, context, index, calls, asking, read)


class _Read(msgspec.Struct, frozen=True):
    """What a branch asks about."""

    spec: RunSpec
    chunk: Chunk
    ref: BranchRef
    around: tuple[str, str] | None
    # How many chunks its shard has.
    chunks: int


async def _prompted(
    claim: Claim,
    context: WorkerContext,
    index: int,
    calls: Calls,
    asking: Asking,
    read: _Read,
) -> Outcome:
    """Return the outcome of a branch with a single prompt."""
    spec, chunk, ref, around = read.spec, read.chunk, read.ref, read.around
    run_id, runs, first = claim.branch_id.run_id, context.runs, ref.model or spec.model
    frame = runs.frame(run_id, ref.aspect, first)
    shape = frame.request.shape
    if shape is not None and is_plan(run_id):
        shape = PlanShape(shape, chunk.text)
    plan = runs.plan(run_id)
    retriever = Retriever(claim, context, spec, calls) if frame.has_passages else None
    passages: dict[str, str] = {}

    def made(model: str, sample: int) -> LLMRequest:
        values, cache = branch_values(chunk, ref, sample, around), None
        if passages:
            values |= passages
        own = frame if model == first else runs.frame(run_id, ref.aspect, model)
        if plan is None:
            prompt = own.rendered(values, chunk.columns)
        else:
            lane = own.request.lane
            prompt, cache = plan.prompt(
                chunk, ref, values, model=model, chunks=read.chunks, lane=lane
            )
        return own.asks(prompt, sample=sample, shape=shape, cache=cache)

    if retriever is None and spec.certainty is None:
        # Most branches ask once, and for no passages.
        sample = ref.sample
        result = await asking.answer(first, lambda model: made(model, sample), sample)
        return outcome_of(index, result)

    async def ask(model: str, sample: int) -> Outcome:
        if retriever is not None:
            values = branch_values(chunk, ref, sample, around)
            passages["context"] = await retriever.of_prompt(
                frame.template, values, chunk.columns, model=model
            )
        result = await asking.answer(model, lambda one: made(one, sample), sample)
        return outcome_of(index, result)

    try:
        if spec.certainty is None:
            outcome = await ask(first, ref.sample)
        else:
            outcome = await ask_until_certain(ask, claim, spec, calls, index)
    except RetrievalError as error:
        calls.stop_after = error.stop_after
        await count_unused(claim, context, calls)
        outcome = unanswered(index, error.kind, str(error), calls)
    return outcome if retriever is None else structs.replace(outcome, passages=retriever.uses)
