"""Asks models for the answer of a branch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
from msgspec import structs

from fanout.core.errors import ModelError
from fanout.core.lanes import takes_lane
from fanout.core.model_names import takes_seed
from fanout.llm.error_kinds import ALWAYS
from fanout.policy.fallback import asked_in_turn, falls_back
from fanout.policy.progress import Lesson, Progress
from fanout.policy.retries import RETRYABLE
from workers.branch.asked_models import ended_model, joined, result_of, within, without_call
from workers.branch.calling import ModelCalls, Question
from workers.branch.late_results import count_unused
from workers.context.broken_models import unusable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from fanout.core.ids import StageId
    from fanout.core.spec import RetrySpec, RunSpec
    from fanout.core.steps import StepSpec
    from fanout.llm.base import LLMRequest
    from fanout.llm.calls import CallResult
    from fanout.policy.progress import CallsSoFar
    from fanout.policy.tree_budgets import CallsAbove
    from workers.branch.claims import Claim
    from workers.context.worker_context import WorkerContext
    from workers.telemetry.reports import Calls

__all__ = ["Asking"]

_NO_PROGRESS = Progress()


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
        self._model_calls = ModelCalls(claim, context, stage_id, spec, calls)
        self._sample = 0
        self._step: StepSpec | None = None
        # Without the open question: its calls bring their time.
        self._elapsed_s = calls.so_far.elapsed_s
        calls.is_by_model = spec.is_by_model

    def leaves_room(self, above: CallsAbove | None) -> None:
        """Leave room in a budget for the calls above the branch in its tree."""
        self._model_calls.above = above

    async def answer(
        self,
        model: str,
        make: Callable[[str], LLMRequest],
        sample: int = 0,
        *,
        step: StepSpec | None = None,
    ) -> CallResult:
        """Return the answer of a model, or of one of the run's fallback, or why there is none.

        Args:
            model: The model to ask first.
            make: Returns the request to a model.
            sample: The number of the sample: kept answers are those of the same one.
            step: The step that asks; None without steps.

        Raises:
            BranchHandedBack: This worker stops.
            CallStoppedError: The calls were ended early.
            ModelError: This worker cannot use the model.
        """
        spec, retries = self._spec, self._retries()
        self._step = step
        self._sample = sample
        begun = self._calls.so_far.question or _NO_PROGRESS
        if not spec.fallback and self._is_only(model):
            request = make(model)
            if request.seed is not None or request.lane != "realtime":
                request = _taken(model, request)
            result = await self._taught(model, request, retries, _NO_PROGRESS, begun.calls)
            self._calls.stop_after = result.stop_after
        else:
            models = asked_in_turn(model, spec.fallback)
            result = await self._one_of(models, make, retries, begun)
            if result.kind is None:
                # That of a model whose place another one has taken.
                self._calls.stop_after = 0
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
        self,
        models: Sequence[str],
        make: Callable[[str], LLMRequest],
        retries: RetrySpec,
        begun: Progress,
    ) -> CallResult:
        """Ask models in turn, until one answers or the last one has not."""
        ended = [(one.model, result_of(one)) for one in begun.ended]
        before, calls = Progress(ended=begun.ended), begun.calls
        left_s = retries.max_elapsed_s - sum(one.elapsed_s for one in begun.ended)
        for number, model in enumerate(models[len(ended) :], len(ended) + 1):
            if ended:
                retries = within(retries, left_s)
            is_last = number == len(models)
            request = make(model)
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
        broken, request = self._context.models.broken, _taken(model, request)
        if self._is_only(model):
            result = await self._taught(model, request, retries, before, so_far, gives_up=gives_up)
            self._calls.stop_after = result.stop_after
            return result
        opening = (self._stage_id.run_id, self._claim.opening)
        problem = broken.problem(opening, model)
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
            broken.succeeded(opening, model)
        elif result.stop_after:
            broken.failed(opening, model, result)
            if broken.are_all(opening, self._spec.models):
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

        question = Question(request, retries, so_far, keep, self._sample, gives_up)
        result = await self._model_calls.ask(model, question)
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
        step = self._step
        if step is not None and step.model == model and not step.when:
            return True
        if self._stage_id.stage > 0:
            return {model} == {*self._spec.reduce_models}
        return model == self._spec.model and not self._spec.models


def _taken(model: str, request: LLMRequest) -> LLMRequest:
    """Return a request without what a model does not take: a job is refused only where none of its does."""
    if request.seed is not None and not takes_seed(model):
        request = structs.replace(request, seed=None)
    if not takes_lane(model, request.lane):
        request = structs.replace(request, lane="realtime")
    return request
