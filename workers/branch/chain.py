"""A branch of several steps: each is asked, written down, and followed by the next one."""

from __future__ import annotations

from copy import deepcopy
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import structs

from fanout.core.errors import LLMError
from fanout.core.function_values import function_text
from fanout.core.lanes import first_lane
from fanout.core.records import NO_CALL, ErrorKind, Outcome, StepOutcome
from fanout.core.step_answers import step_text, value_of
from fanout.core.tokens import utf8_bytes
from fanout.inputs.fences import with_rule
from fanout.inputs.prompt_layout import branch_values
from fanout.inputs.step_prompts import feedback_reply
from fanout.llm.base import LLMRequest, Turn
from fanout.policy.steps import Chain, final_answer, turn_of, verdict_of
from workers.branch.functions import call_function
from workers.branch.late_results import count_unused
from workers.branch.retrieving import RetrievalError, Retriever

if TYPE_CHECKING:
    from fanout.core.records import BranchRef, Chunk, Usage
    from fanout.core.spec import RunSpec
    from fanout.core.steps import StepSpec
    from fanout.llm.callables import CallableLLM
    from fanout.llm.calls import CallResult
    from fanout.policy.prefixes import PromptCache
    from workers.branch.asking import Asking
    from workers.branch.claims import Claim
    from workers.context.run_caches import RunSteps
    from workers.context.worker_context import WorkerContext
    from workers.telemetry.reports import Calls

__all__ = ["ask_steps"]


async def ask_steps(
    claim: Claim,
    context: WorkerContext,
    spec: RunSpec,
    calls: Calls,
    index: int,
    *,
    asking: Asking,
    chunk: Chunk,
    ref: BranchRef,
    around: tuple[str, str] | None = None,
    chunks: int = 1,
) -> Outcome:
    """Return the outcome of a branch whose job has steps.

    Before each further step, the answers so far are written: a branch that is delivered again goes on
    from there.

    Args:
        claim: The right to make the calls.
        context: The context of this worker process.
        spec: The job.
        calls: Has the answers of earlier deliveries, and gets those of this one.
        index: The stage-wide index of the branch.
        asking: Asks models.
        chunk: The chunk of the branch.
        ref: Its model and sample.
        around: The texts before and after the chunk, in a job with ``neighbours``.
        chunks: How many chunks its shard has.

    Raises:
        CallStoppedError: See Claim.checkpoint.
        PromptError: A prompt cannot be rendered.
        StoredDataError: The stored answers are not of these steps.
    """
    chain = Chain(spec.steps, calls.so_far.steps)
    maker = _Steps(
        claim,
        context,
        spec,
        calls,
        asking,
        chunk,
        branch_values(chunk, ref, ref.sample, around),
        ref,
        chain,
        chunks,
    )
    is_written, first = True, ref.model or spec.model
    while (step := chain.next) is not None:
        if chain.rejected_by and spec.on_rejected == "fail":
            break
        if not is_written:
            await claim.checkpoint(msgspec.json.encode(calls.so_far))
        calls.step = turn_of(chain, step)
        one, usage_of = await maker.answer(step)
        calls.so_far = calls.so_far.with_step(one, usage_of)
        if one.kind is not None:
            message = f"step {step.name}: {one.message}"
            return _failed(calls, index, one.kind, message, first=first)
        chain.answered(one)
        has_cost = one.attempts or step.function is not None
        # A batch brings the result of one step: which one that is must not go by the cache. And a branch
        # that may kill its workers shows at which step.
        is_free = not has_cost and spec.lane not in ("batch", "auto") and not claim.is_again
        is_written = is_written and is_free
    return _ended(calls, index, spec, chain, first=first)


def _ended(calls: Calls, index: int, spec: RunSpec, chain: Chain, *, first: str) -> Outcome:
    """Return the outcome of a branch that has no further step."""
    if chain.rejected_by and spec.on_rejected == "fail":
        advice = verdict_of(chain.answers[chain.rejected_by].output).advice
        message = (
            f"step {chain.rejected_by} did not pass the answer: {advice or 'it gives no reason'}"
        )
        rejected = _failed(calls, index, ErrorKind.INVALID_OUTPUT, message, first=first)
        return structs.replace(rejected, is_rejected=True)
    last = chain.output(spec.output)
    if last is None:
        message = f"step {spec.output}, whose answer is the output, did not run"
        return _failed(calls, index, ErrorKind.INVALID_OUTPUT, message, first=first)
    return structs.replace(
        calls.so_far.of_steps(index, first=first),
        output=last.output,
        model=last.model if last.model != first else None,
        finish_reason=last.finish_reason,
        lane=last.lane,
        is_cut=last.is_cut,
        confidence=last.confidence,
        is_rejected=bool(chain.rejected_by),
    )


def _failed(calls: Calls, index: int, kind: ErrorKind, message: str, *, first: str) -> Outcome:
    return structs.replace(calls.so_far.of_steps(index, first=first), kind=kind, message=message)


class _Steps:
    """Asks for the answers of the steps of one branch."""

    def __init__(
        self,
        claim: Claim,
        context: WorkerContext,
        spec: RunSpec,
        calls: Calls,
        asking: Asking,
        chunk: Chunk,
        values: dict[str, str],
        ref: BranchRef,
        chain: Chain,
        chunks: int,
    ) -> None:
        self._claim = claim
        self._context = context
        self._spec = spec
        self._calls = calls
        self._asking = asking
        self._chunk = chunk
        self._ref = ref
        self._chain = chain
        self._chunks = chunks
        self._run: RunSteps = context.runs.steps(claim.branch_id.run_id)
        self._values = values
        self._retriever: Retriever | None = None
        if spec.retrieval_sources:
            self._retriever = Retriever(claim, context, spec, calls)

    def _model(self, step: StepSpec) -> str:
        return step.model or self._ref.model or self._spec.model

    async def answer(self, step: StepSpec) -> tuple[StepOutcome, dict[str, Usage]]:
        """Return the answer of a step, or why there is none, and the usage of its calls by model.

        Raises as ``ask_steps`` does.
        """
        if step.function is not None:
            return await self._called(step, step.function), {}
        model = self._model(step)
        try:
            contexts = await self._contexts(step, model)
        except RetrievalError as error:
            one = await self._unasked(step, error)
            return one, dict.fromkeys(self._calls.models[-1:], one.usage)
        result = await self._asking.answer(
            model, lambda one: self._request(step, one, contexts), self._ref.sample, step=step
        )
        one = self._outcome(step, result, model=result.model or model, is_json=step.is_json)
        return one, result.usage_of or {model: result.usage}

    async def _contexts(self, step: StepSpec, model: str) -> dict[str, str]:
        """Return the passages for the prompt of a step. Raises RetrievalError."""
        if self._retriever is None:
            return {}
        return await self._retriever.of_step(
            self._run.prompts,
            step,
            self._values,
            self._chunk.columns,
            self._chain.answers,
            model=model,
            sent_bytes=sum(
                utf8_bytes(one.answer) + utf8_bytes(one.reply) for one in self._turns(step, model)
            ),
        )

    def _turns(self, step: StepSpec, model: str) -> tuple[Turn, ...]:
        is_fenced = self._spec.is_fenced(model)
        return tuple(
            Turn(answer, feedback_reply(feedback, criteria, is_fenced=is_fenced))
            for answer, feedback, criteria in self._chain.turns(step)
        )

    async def _unasked(self, step: StepSpec, error: RetrievalError) -> StepOutcome:
        """Return the outcome of a step for which no passages could be looked for."""
        calls = self._calls
        calls.stop_after = error.stop_after
        used = await count_unused(self._claim, self._context, calls)
        # An earlier delivery may have called for it.
        calls.so_far = calls.so_far.with_calls()
        one = StepOutcome(
            name=step.name, round=self._chain.round(step), kind=error.kind, message=str(error)
        )
        return one if used is None else structs.replace(one, attempts=1, usage=used)

    def _request(self, step: StepSpec, model: str, contexts: dict[str, str]) -> LLMRequest:
        spec, sample = self._spec, self._ref.sample
        prompt, cache = self._prompt(step, model, contexts)
        system = spec.system if step.system is None else step.system
        return LLMRequest(
            prompt=prompt,
            system=with_rule(spec, model, system),
            temperature=spec.temperature if step.temperature is None else step.temperature,
            max_tokens=spec.max_tokens if step.max_tokens is None else step.max_tokens,
            seed=None if spec.seed is None else spec.seed + sample,
            stop=spec.stop,
            shape=self._run.shapes[step.name],
            turns=self._turns(step, model),
            lane=first_lane(spec.lane),
            cache=cache,
        )

    def _prompt(
        self, step: StepSpec, model: str, contexts: dict[str, str]
    ) -> tuple[str, PromptCache | None]:
        prompts, plan, chunk = self._run.prompts, self._run.plan, self._chunk
        answers, is_fenced = self._chain.answers, self._spec.is_fenced(model)
        given = {**self._values, **contexts}
        if plan is None:
            prompt = prompts.render(step, given, chunk.columns, answers, is_fenced=is_fenced)
            return prompt, None
        text_of = partial(step_text, answers=answers)
        values = prompts.values_of(step, given, chunk.columns, text_of, is_fenced=is_fenced)
        lane = first_lane(self._spec.lane)
        return plan.prompt(
            step, chunk, self._ref, values, model=model, chunks=self._chunks, lane=lane
        )

    async def _called(self, step: StepSpec, path: str) -> StepOutcome:
        """Return what a function of the user returns. It is called again as a model is."""
        given, is_json = self._argument(), False
        max_kb = self._context.settings.max_output_kb

        def text_of(value: object) -> tuple[str, bool]:
            try:
                return function_text(value, max_kb=max_kb), not isinstance(value, str)
            except ValueError as error:
                message = f"the function returned {error}"
                raise LLMError(ErrorKind.INVALID_OUTPUT, message) from None

        async def ask(llm: CallableLLM) -> str:
            nonlocal is_json
            text: str
            # It may change what it gets, which its next call and other branches get as well.
            text, is_json = await llm.call(deepcopy(given), then=text_of)
            return text

        result = await call_function(
            self._claim,
            self._context,
            self._spec,
            path,
            ask,
            instead=": give it as the model of a step",
        )
        self._calls.stop_after = result.stop_after
        # A function is no call of a model.
        result = structs.replace(result, attempts=0, usage=NO_CALL)
        return self._outcome(step, result, model=None, is_json=is_json)

    def _argument(self) -> dict[str, Any]:
        answers = self._chain.answers
        return {
            **self._chunk.columns,
            **self._values,
            # Prompts have texts, and functions what fanout counts.
            **{name: int(self._values[name]) for name in ("index", "sample")},
            **{name: _value(one) for name, one in answers.items()},
        }

    def _outcome(
        self, step: StepSpec, result: CallResult, *, model: str | None, is_json: bool
    ) -> StepOutcome:
        is_function = step.function is not None
        return StepOutcome(
            name=step.name,
            output=final_answer(step, result.output),
            round=self._chain.round(step),
            kind=result.kind,
            message=result.message,
            attempts=result.attempts,
            usage=result.usage,
            elapsed_s=result.elapsed_s,
            model=model,
            finish_reason=result.finish_reason,
            lane=result.lane,
            is_cut=result.is_cut,
            confidence=result.confidence,
            saved=result.saved,
            is_json=is_json,
            refused=result.refused,
            passages=() if is_function or self._retriever is None else self._retriever.uses,
        )


def _value(one: StepOutcome) -> Any:
    """Return the answer of a step as functions get it."""
    return value_of(one.output or "", "") if one.is_json else one.output
