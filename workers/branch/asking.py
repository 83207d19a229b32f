"""Asks models for the answer of a branch."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING

import msgspec
from msgspec import structs

from fanout.core.errors import ModelError
from fanout.core.lanes import takes_lane
from fanout.core.model_names import READER_MODEL, takes_seed
from fanout.llm.answers import validate_json
from fanout.llm.base import identity_of
from fanout.llm.calls import CallResult, complete_with_retries
from fanout.llm.error_kinds import ALWAYS
from fanout.llm.prices import price_of
from fanout.llm.registry import known_context_tokens
from fanout.policy.fallback import asked_in_turn, falls_back
from fanout.policy.progress import Lesson, Progress
from fanout.policy.retries import RETRYABLE
from workers.branch.answer_cache import CachedAnswer
from workers.branch.asked_models import ended_model, joined, result_of, within, without_call
from workers.branch.gathering import gathered_calls
from workers.branch.late_results import count_unused
from workers.context.broken_models import unusable
from workers.context.fair_line import Turn

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Sequence
    from typing import Any

    from fanout.core.ids import StageId
    from fanout.core.spec import RetrySpec, RunSpec
    from fanout.llm.base import LLM, LLMRequest
    from fanout.llm.calls import CallAttempt, CallGate
    from fanout.policy.pricing import Price
    from fanout.policy.progress import CallsSoFar
    from workers.branch.batch_lane import GatheredCalls
    from workers.branch.claims import Claim
    from workers.context.budgets import BudgetedCalls
    from workers.context.worker_context import WorkerContext
    from workers.telemetry.reports import Calls

__all__ = ["Asking"]


class Asking:
    """Asks models for the answer of one branch, any number of times.

    ``retries.max_elapsed_s`` holds for all of them together.

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
        self._sample = 0
        # Without the open question: its calls bring their time.
        self._elapsed_s = calls.so_far.elapsed_s
        calls.is_by_model = bool(spec.models or spec.fallback)

    async def answer(self, model: str, request: LLMRequest, sample: int = 0) -> CallResult:
        """Return the answer of a model, or of one of the run's fallback, or why there is none.

        Args:
            model: The model to ask first.
            request: The request.
            sample: The number of the sample: kept answers are those of the same one.

        Raises:
            BranchHandedBack: This worker stops.
            CallStoppedError: The calls were ended early.
            ModelError: This worker cannot use the model.
        """
        spec, retries = self._spec, self._retries()
        self._sample = sample
        begun = self._calls.so_far.question or Progress()
        if not spec.fallback and (not spec.models or self._stage_id.stage):
            result = await self._taught(model, request, retries, Progress(), begun.calls)
            self._calls.stop_after = result.stop_after
        else:
            models = asked_in_turn(model, spec.fallback)
            result = await self._one_of(models, request, retries, begun)
        self._elapsed_s += result.elapsed_s
        is_over = self._elapsed_s >= spec.retries.max_elapsed_s and result.kind in RETRYABLE
        self._calls.is_out_of_time = is_over or result.is_out_of_time
        return result

    def _retries(self) -> RetrySpec:
        retries = self._spec.retries
        if not self._elapsed_s:
            return retries
        return within(retries, retries.max_elapsed_s - self._elapsed_s)

    async def _one_of(
        self, models: Sequence[str], request: LLMRequest, retries: RetrySpec, begun: Progress
    ) -> CallResult:
        """Ask models in turn, until one answers or the last one has not."""
        ended = [(one.model, result_of(one)) for one in begun.ended]
        before, calls = Progress(ended=begun.ended), begun.calls
        left_s = retries.max_elapsed_s - sum(one.elapsed_s for one in begun.ended)
        for number, model in enumerate(models[len(ended) :], len(ended) + 1):
            if ended:
                retries = within(retries, left_s)
            is_last = number == len(models)
            result = await self._alive(model, request, retries, before, calls, gives_up=not is_last)
            ended.append((model, result))
            left_s -= result.elapsed_s
            if is_last or not falls_back(result.kind) or left_s <= 0:
                break
            before, calls = before.with_ended(ended_model(model, result)), None
            if result.attempts:
                await self._keep(before)
        return joined(ended)

    async def _alive(
        self,
        model: str,
        request: LLMRequest,
        retries: RetrySpec,
        before: Progress,
        so_far: CallsSoFar | None,
        *,
        gives_up: bool,
    ) -> CallResult:
        """Ask a model, unless it fails for all branches of the run; note whether it does."""
        broken = self._context.models.broken
        if request.seed is not None and not takes_seed(model):
            # A job is refused only where none of its models takes one.
            request = structs.replace(request, seed=None)
        if not takes_lane(model, request.lane):
            request = structs.replace(request, lane="realtime")
        if self._is_only(model):
            result = await self._taught(model, request, retries, before, so_far, gives_up=gives_up)
            self._calls.stop_after = result.stop_after
            return result
        run_id = self._stage_id.run_id
        problem = await broken.problem(run_id, model)
        if problem is not None:
            return problem
        try:
            result = await self._taught(model, request, retries, before, so_far, gives_up=gives_up)
        except ModelError as error:
            result = unusable(error)
            usage = await count_unused(self._claim, self._context, self._calls, only=model)
            if usage is not None:
                result = structs.replace(result, attempts=1, usage=usage)
        if result.kind is None:
            broken.succeeded(run_id, model)
        elif result.stop_after:
            await broken.failed(run_id, model, result)
            if broken.are_all(run_id, self._spec.models):
                self._calls.stop_after = ALWAYS
        return result

    async def _taught(
        self,
        model: str,
        request: LLMRequest,
        retries: RetrySpec,
        before: Progress,
        so_far: CallsSoFar | None,
        *,
        gives_up: bool = False,
    ) -> CallResult:
        """Ask a model, unless an earlier sample has shown how it ends; learn from the result."""
        lesson = self._calls.so_far.lessons.get(model)
        if lesson is not None and lesson.kind is not None:
            return without_call(lesson.kind, lesson.message)
        if so_far is None and lesson is not None:
            so_far = lesson.calls

        async def keep(calls: CallsSoFar) -> None:
            await self._keep(structs.replace(before, model=model, calls=calls))

        result = await self._ask(model, request, retries, so_far, keep, gives_up=gives_up)
        if self._spec.certainty is not None:
            self._learn(model, result)
        return result

    def _learn(self, model: str, result: CallResult) -> None:
        """Note what further samples of a model have not to find out again."""
        so_far, found = self._calls.so_far, result.lesson
        known = so_far.lessons.get(model)
        if found is None and result.kind is None and known is None:
            found = Lesson()
        # A model that has answered may do so again.
        if found is not None and (found.kind is None or known is None):
            self._calls.so_far = so_far.with_lesson(model, found)

    async def _keep(self, progress: Progress) -> None:
        """Write how far the branch is, before its next call. Raises as Claim.checkpoint does."""
        so_far = structs.replace(self._calls.so_far, question=progress)
        await self._claim.checkpoint(msgspec.json.encode(so_far))

    def _is_only(self, model: str) -> bool:
        """Return whether the run can do nothing without a model."""
        return model == self._spec.model and (not self._spec.models or self._stage_id.stage > 0)

    async def _ask(
        self,
        model: str,
        request: LLMRequest,
        retries: RetrySpec,
        so_far: CallsSoFar | None,
        keep: Callable[[CallsSoFar], Awaitable[None]],
        *,
        gives_up: bool,
    ) -> CallResult:
        spec, models, is_branch = self._spec, self._context.models, self._stage_id.stage == 0
        llm = models.made.get(model) or await self._made(model)
        budgeted = self._budgeted(model, llm)
        gathered, identity = None, identity_of(llm) if spec.cache else None
        price = price_of(model, spec.price)
        if request.lane == "batch":
            gathered, so_far = await gathered_calls(
                self._claim,
                self._context,
                spec,
                self._calls,
                model,
                llm,
                budgeted=budgeted,
                price=price,
                so_far=so_far,
            )
            if gathered is None:
                request = structs.replace(request, lane="realtime")
        self._calls.asks(model, request)
        self._calls.is_batched = gathered is not None
        gate: CallGate
        wait: Callable[[float], Awaitable[None]] = self._claim.rests
        observe: Callable[[CallAttempt], None] = partial(self._calls.ended, model)
        with ExitStack() as gates:
            if budgeted is not None:
                observe = gates.enter_context(budgeted).observing(observe)
            if gathered is not None:
                # The next call waits for its batch anyway.
                (llm, gate), wait = gathered, _at_once
            else:
                limits = models.limiter.gate(
                    model,
                    spec.rate.rates,
                    gives_up=gives_up,
                    timeout_s=spec.timeout_s,
                    turn=Turn(self._stage_id.run_id, spec.priority),
                    on_wait=self._claim.leaves_place,
                )
                # A call that is cancelled does not leave its gate.
                gate = gates.enter_context(limits)
                if budgeted is not None:
                    gate = budgeted.gate(gate)
                compares = not self._calls.is_by_model
                gate = self._claim.gate(gate, spec.timeout_s, compares=compares)
            call = partial(
                self._completing(model, price),
                llm,
                request,
                policy=retries,
                gate=gate,
                observe=observe,
                so_far=so_far,
                keep=keep,
                sleep=wait,
            )
            if identity is None or not self._context.answers.is_on:
                result = call()
            else:
                # What a batch has brought is paid for: it is not to be left for a kept answer.
                calls = None if gathered is None else gathered[1]
                result = self._cached(identity, request, so_far, call, calls)
            return await models.in_flight.call(
                self._stage_id.run_id, result, has_deadline=is_branch
            )

    def _completing(
        self, model: str, price: Price | None
    ) -> Callable[..., Coroutine[Any, Any, CallResult]]:
        """Return ``complete_with_retries`` as the run wants it for a model."""
        spec = self._spec
        return partial(
            complete_with_retries,
            timeout_s=spec.timeout_s,
            max_reasks=spec.max_reasks,
            keeps_cut=spec.on_truncated == "keep",
            window_tokens=self._window(model),
            validate=validate_json if self._wants_json else None,
            # A document may be larger than an answer.
            max_output_kb=None if model == READER_MODEL else self._context.settings.max_output_kb,
            price=price,
        )

    def _budgeted(self, model: str, llm: LLM) -> BudgetedCalls | None:
        """Return the budgets that the calls to a model must fit into; None if there are none."""
        budgets = self._context.budgets
        if not budgets.applies(self._spec):
            return None
        return budgets.calls(self._stage_id, self._spec, model, llm)

    async def _cached(
        self,
        identity: str,
        request: LLMRequest,
        so_far: CallsSoFar | None,
        call: Callable[[], Coroutine[Any, Any, CallResult]],
        gathered: GatheredCalls | None,
    ) -> CallResult:
        """Return a kept answer, or the result of calls, whose answer is kept."""
        cached = CachedAnswer(
            self._context.answers,
            identity,
            request,
            self._spec,
            sample=self._sample,
            wants_json=self._wants_json,
            max_output_kb=self._context.settings.max_output_kb,
            so_far=so_far,
            attempt=partial(self._context.models.broken.attempt, self._stage_id.run_id),
        )

        has_called = False

        async def called() -> CallResult:
            nonlocal has_called
            has_called = True
            await self._claim.takes_place()
            return await call()

        if gathered is not None:
            gathered.key = cached.key.hex()
        if gathered is not None and gathered.has_result:
            # It is paid for: it is not to be left for a kept answer.
            result = await cached.keep(call)
        else:
            result = await cached.get(
                called,
                self._claim.waits_for_answer,
                gathers=gathered is not None,
                # An earlier delivery may have followed the call of another branch.
                has_waited=gathered is not None and self._claim.has_checkpoint,
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

    @property
    def _wants_json(self) -> bool:
        return self._stage_id.stage == 0 and self._spec.output_format == "json"

    def _window(self, model: str) -> int | None:
        # What the job says of its model need not hold for another one.
        own = self._spec.context_tokens if model == self._spec.model else None
        return own or known_context_tokens(model)

    async def _made(self, model: str) -> LLM:
        # Loading a model may take long; the calls then report progress.
        self._claim.waits()
        return await self._context.models.get(model)


async def _at_once(_seconds: float) -> None:
    """Wait for nothing."""
