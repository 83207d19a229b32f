"""Makes the calls of a branch to one model: now or in a batch, within budgets, or from kept answers."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import msgspec
from msgspec import structs

from workers.branch.answer_cache import CachedAnswer
from workers.branch.gathering import gathered_calls

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine
    from typing import Any

    from fanout.core.ids import StageId
    from fanout.core.spec import RetrySpec, RunSpec
    from fanout.llm.base import LLM, LLMRequest
    from fanout.llm.calls import CallAttempt, CallGate, CallResult
    from fanout.policy.progress import CallsSoFar
    from fanout.policy.tree_budgets import CallsAbove
    from workers.branch.batch_lane import GatheredCalls
    from workers.branch.claims import Claim
    from workers.context.budgeted_calls import BudgetedCalls
    from workers.context.call_plans import CallPlan
    from workers.context.model_gate import ModelGate
    from workers.context.worker_context import WorkerContext
    from workers.telemetry.reports import Calls

__all__ = ["ModelCalls", "Question"]


class Question(msgspec.Struct):
    """A request to one model, and how to ask it.

    Attributes:
        request: The request.
        retries: The limits of its calls.
        so_far: The calls of earlier deliveries; None for none.
        keep: Gets the calls so far before each further one.
        sample: The number of the sample: kept answers are those of the same one.
        gives_up: Whether another model is asked if this one fails for all branches.
    """

    request: LLMRequest
    retries: RetrySpec
    so_far: CallsSoFar | None
    keep: Callable[[CallsSoFar], Awaitable[None]]
    sample: int
    gives_up: bool


class ModelCalls:
    """Makes the calls of one delivery of a branch.

    What the calls of its stage have in common is in their CallPlan; a branch does here only what the
    job makes use of.

    Args:
        claim: The right to make the calls.
        context: The context of this worker process.
        stage_id: The stage of the branch.
        spec: The run's spec.
        calls: Records each call.
    """

    def __init__(
        self, claim: Claim, context: WorkerContext, stage_id: StageId, spec: RunSpec, calls: Calls
    ) -> None:
        self._claim = claim
        self._context = context
        self._stage_id = stage_id
        self._spec = spec
        self._calls = calls
        # The calls above it in its tree, for which it leaves room in a budget.
        self.above: CallsAbove | None = None

    async def ask(self, model: str, question: Question) -> CallResult:
        """Return the result of the calls to a model.

        Raises:
            BranchHandedBack: This worker stops.
            CallStoppedError: The calls were ended early.
            ModelError: This worker cannot use the model.
        """
        context, spec, stage_id = self._context, self._spec, self._stage_id
        llm = context.models.made.get(model)
        if llm is None:
            # Loading a model may take long; the calls then report progress.
            self._claim.waits()
            llm = await context.models.get(model)
        plan = context.call_plans.plan(stage_id, model, llm, spec)
        budgeted = None
        if plan.budget is not None:
            max_tokens = question.request.max_tokens
            budgeted = context.budgets.calls(plan.budget, max_tokens=max_tokens, above=self.above)
        gathered = None
        if question.request.lane == "batch":
            gathered, question.so_far = await gathered_calls(
                self._claim,
                context,
                spec,
                self._calls,
                model,
                llm,
                budgeted=budgeted,
                price=plan.price,
                so_far=question.so_far,
            )
            if gathered is None:
                question.request = structs.replace(question.request, lane="realtime")
        self._calls.asks(model, question.request)
        self._calls.is_batched = gathered is not None
        result, limits = self._result(plan, question, gathered, budgeted)
        try:
            if budgeted is None:
                return await result
            with budgeted:
                return await result
        finally:
            if limits is not None and limits.has_place:
                # A call that is cancelled does not leave its gate.
                limits.close()

    def _result(
        self,
        plan: CallPlan,
        question: Question,
        gathered: tuple[LLM, GatheredCalls] | None,
        budgeted: BudgetedCalls | None,
    ) -> tuple[Coroutine[Any, Any, CallResult], ModelGate | None]:
        """Return what makes the calls, and their gate to the model, which has to be closed then."""
        spec, models, stage_id = self._spec, self._context.models, self._stage_id
        observe: Callable[[CallAttempt], None] = partial(self._calls.ended, plan.model)
        if budgeted is not None:
            observe = budgeted.observing(observe)
        limits, from_batch = None, None
        llm: LLM
        gate: CallGate
        if gathered is not None:
            llm, gate = gathered
            from_batch = gathered[1]
        else:
            llm = plan.llm
            gate = limits = models.limiter.gate(
                plan.model,
                plan.rates,
                gives_up=question.gives_up,
                timeout_s=spec.timeout_s,
                turn=plan.turn,
                place=self._claim,
            )
            begins: Callable[[LLMRequest], bool] = limits.begins
            if budgeted is not None:
                gate = fitting = budgeted.gate(limits, self._claim, begins)
                begins = fitting.begins
            gate = self._claim.gate(
                gate,
                spec.timeout_s,
                compares=not self._calls.is_by_model,
                begins=begins,
            )
        calls = partial(
            plan.complete,
            llm,
            question.request,
            policy=question.retries,
            gate=gate,
            observe=observe,
            so_far=question.so_far,
            keep=question.keep,
            # In a batch, the next call waits for its own one anyway.
            sleep=self._claim.rests if gathered is None else _at_once,
        )
        if plan.identity is None or not self._context.answers.is_on:
            result = calls()
        else:
            result = self._cached(plan, plan.identity, question, calls, from_batch)
        in_flight = models.in_flight.call(stage_id.run_id, result, has_deadline=stage_id.stage == 0)
        return in_flight, limits

    async def _cached(
        self,
        plan: CallPlan,
        identity: str,
        question: Question,
        calls: Callable[[], Coroutine[Any, Any, CallResult]],
        gathered: GatheredCalls | None,
    ) -> CallResult:
        """Return a kept answer, or the result of calls, whose answer is kept."""
        attempt = partial(self._context.models.broken.attempt, self._stage_id.run_id)
        cached = CachedAnswer(
            self._context.answers,
            identity,
            question.request,
            self._spec,
            sample=question.sample,
            wants_json=plan.wants_json,
            max_output_kb=self._context.settings.max_output_kb,
            so_far=question.so_far,
            attempt=attempt,
            anew=await attempt() if self._calls.so_far.asks_anew else "",
        )

        has_called = False

        def called() -> Coroutine[Any, Any, CallResult]:
            nonlocal has_called
            has_called = True
            return calls() if self._claim.has_place else self._back_in_place(calls)

        if gathered is not None:
            gathered.key = cached.key.hex()
        if gathered is not None and gathered.has_result:
            # It is paid for: it is not to be left for a kept answer.
            result = await cached.keep(calls)
        else:
            result = await cached.get(
                called,
                self._claim.waits_for_answer,
                gathers=gathered is not None,
                has_waited=gathered is not None and gathered.has_followed,
            )
            if gathered is not None and self._claim.has_checkpoint and not has_called:
                # An earlier delivery may have reserved for its call.
                await gathered.give_up()
        if result.kind is not None:
            # It may have failed as another one, and ask the next model.
            await self._claim.takes_place()
        if cached.settling is not None:
            self._calls.settling.append(cached.settling)
        return result

    async def _back_in_place(
        self, calls: Callable[[], Coroutine[Any, Any, CallResult]]
    ) -> CallResult:
        """Make calls after a wait without a place."""
        await self._claim.takes_place()
        return await calls()


async def _at_once(_seconds: float) -> None:
    """Wait for nothing."""
