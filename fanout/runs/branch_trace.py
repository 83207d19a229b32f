"""One branch of a run from end to end: what was asked, what was answered, and what that took."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import structs

from fanout.core.errors import PromptError, StoredDataError
from fanout.core.lanes import first_lane
from fanout.core.neighbours import around_in
from fanout.core.records import Usage  # noqa: TC001 - dataclasses read the annotation
from fanout.core.step_answers import step_text
from fanout.inputs.fences import OwnText, with_rule
from fanout.inputs.prompt_layout import branch_values
from fanout.inputs.prompts import Template
from fanout.inputs.retrieval_prompts import has_context
from fanout.inputs.step_prompts import StepPrompts, context_of, feedback_reply
from fanout.llm.prompt_plans import plan_of
from fanout.llm.step_plans import step_plan_of
from fanout.policy.packing import shard_chunk
from fanout.policy.steps import Chain, SentBack
from fanout.retrieval.context import NO_PASSAGE
from fanout.runs.outputs import output_of
from fanout.runs.result_values import ResultValues
from fanout.runs.status import StoredResult
from fanout.runs.traced_comparisons import TracedComparison  # noqa: TC001 - as above

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from fanout.core.passage_uses import PassageUse
    from fanout.core.records import BranchRef, Chunk, ErrorKind, Outcome, Shard, StepOutcome
    from fanout.core.reduces import Reduce
    from fanout.core.spec import RunSpec
    from fanout.core.steps import StepSpec
    from fanout.runs.branch_output import Output

__all__ = ["BranchTrace", "TracedCall", "trace_of"]

_STANDING = ("rank", "wins", "comparisons")
_NO_RESULT = ResultValues(StoredResult())


@dataclass(frozen=True, kw_only=True, slots=True)
class TracedCall:
    """One question of a branch, and its answer.

    Attributes:
        step: The name of its step; None in a job with a single prompt.
        round: The number of the step's answer, from 1.
        judges: The step that it judges, or None.
        function: The function that was called in place of a model, or None.
        model: The model that answered, or was asked; None for a function.
        system: The system prompt, or None.
        prompt: The prompt, made anew from the job and the stored input; None for a function, or if that
            is not possible.
        passages: The passages that were found for the prompt, best first, without their texts, which are
            not kept with a branch; None where none were looked for, or it may not have come to that.
        turns: Earlier answers to the same prompt, each with what the model was told of it: those that a
            judge has sent back, and of a call that failed, those that were invalid, perhaps cut. The last
            one has an empty text where the model was not asked again.
        answer: The answer: text, or a JSON value where it has a schema; None if there is none.
        kind: Why there is none, or None.
        message: One line about that, or None.
        attempts: Calls made.
        usage: Their usage.
        elapsed_s: Seconds from the first call to the end, waits included.
        finish_reason: Why the answer ended, in the provider's words, or None.
        cached: Whether the answer came from the cache.
    """

    step: str | None
    round: int
    judges: str | None
    function: str | None
    model: str | None
    system: str | None
    prompt: str | None
    passages: tuple[PassageUse, ...] | None
    turns: tuple[tuple[str, str], ...]
    answer: Any
    kind: ErrorKind | None
    message: str | None
    attempts: int
    usage: Usage
    elapsed_s: float
    finish_reason: str | None
    cached: bool

    def to_dict(self) -> dict[str, Any]:
        """Return all fields as JSON values."""
        return {
            **{name: getattr(self, name) for name in self.__slots__},
            "kind": None if self.kind is None else self.kind.value,
            "passages": msgspec.to_builtins(self.passages),
            "turns": [{"answer": answer, "reply": reply} for answer, reply in self.turns],
            "usage": self.usage.to_dict(),
            "elapsed_s": round(self.elapsed_s, 4),
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class BranchTrace:
    """One branch from end to end.

    Attributes:
        branch: The branch, with the text of its chunk.
        calls: Its questions in the order in which they were asked.
        standing: What comparisons have found, as the aggregate has it: ``rank``, or ``wins`` and
            ``comparisons``; empty if the aggregate does not have the branch.
        standings: The same by the name of the reduce, where the job has a list of them.
        compared: The calls that compared its answer with others, in the order of the rounds.
    """

    branch: Output[Any]
    calls: tuple[TracedCall, ...]
    standing: Mapping[str, int] = field(default_factory=dict)
    compared: tuple[TracedComparison, ...] = ()
    standings: Mapping[str, Mapping[str, int]] = field(default_factory=dict)


def trace_of(
    spec: RunSpec,
    shard: Shard,
    outcome: Outcome,
    *,
    values: ResultValues = _NO_RESULT,
    comparisons: Iterable[TracedComparison] = (),
) -> BranchTrace:
    """Return a branch from end to end.

    Args:
        spec: The job.
        shard: The shard of the branch.
        outcome: Its outcome.
        values: What its reduces have found so far.
        comparisons: Those of the branch.

    Raises:
        StoredDataError: What is stored does not fit the job.
    """
    variants = spec.variants
    ref = variants.ref(outcome.index)
    chunk = shard_chunk(shard, outcome.index, variants.count)
    if spec.neighbours:
        chunk = structs.replace(chunk, around=around_in(shard, ref.chunk, spec.neighbours))
    rows = {
        one.name: list(_compared(values.of(one.name), one))
        for one in spec.reductions
        if one.compares
    }
    is_decided = spec.finds_best and any(True for _ in values.aggregates())
    best = frozenset(row["index"] for row in rows[""]) if is_decided else None
    branch = output_of(spec, shard, outcome, with_text=True, best=best)
    if spec.steps:
        calls = tuple(_steps(spec, chunk, ref, outcome, len(shard.chunks)))
    else:
        calls = (_single(spec, chunk, ref, branch, len(shard.chunks), outcome.refused),)
    found = {name: _standing(some, outcome.index) for name, some in rows.items()}
    return BranchTrace(
        branch=branch,
        calls=calls,
        standing=found.pop("", {}),
        standings={name: one for name, one in found.items() if one},
        compared=tuple(comparisons),
    )


def _compared(values: ResultValues, reduce: Reduce) -> Iterator[dict[str, Any]]:
    """Yield the rows of the answers that the aggregates of comparisons have."""
    for _, one in values.aggregates():
        yield from values.value(one).values() if reduce.kind == "best" else values.rows(one)


def _standing(rows: list[dict[str, Any]], index: int) -> dict[str, int]:
    own = next((row for row in rows if row["index"] == index), {})
    return {name: own[name] for name in _STANDING if name in own}


def _listed(uses: Iterable[PassageUse], kind: ErrorKind | None) -> OwnText:
    """Return what stands for passages, which are not kept with a branch: their ids and sources.

    Where there are none, the prompt says so; of a call that failed, it may not have come to that.
    """
    each = [f"[{one.id}] {one.source}".rstrip() for one in uses if one.share > 0]
    if not each:
        return OwnText(NO_PASSAGE if kind is None else "[passages]")
    return OwnText(f"[passages: {', '.join(each)}]")


def _found(uses: tuple[PassageUse, ...], kind: ErrorKind | None) -> tuple[PassageUse, ...] | None:
    return None if kind is not None and not uses else uses


def _single(
    spec: RunSpec,
    chunk: Chunk,
    ref: BranchRef,
    branch: Output[Any],
    chunks: int,
    refused: tuple[tuple[str, str], ...],
) -> TracedCall:
    model = ref.model or spec.model
    return TracedCall(
        step=None,
        round=1,
        judges=None,
        function=None,
        model=branch.model or model,
        system=with_rule(spec, model, spec.system),
        prompt=_prompt(
            spec, chunk, ref, model, chunks, _listed(branch.passages or (), branch.kind)
        ),
        passages=None if branch.passages is None else _found(branch.passages, branch.kind),
        turns=refused,
        answer=branch.value,
        kind=branch.kind,
        message=branch.message,
        attempts=branch.attempts,
        usage=branch.usage,
        elapsed_s=branch.elapsed_s,
        finish_reason=branch.finish_reason,
        cached=branch.cached,
    )


def _prompt(
    spec: RunSpec,
    chunk: Chunk,
    ref: BranchRef,
    model: str,
    chunks: int,
    passages: OwnText,
) -> str | None:
    values = branch_values(chunk, ref, ref.sample, chunk.around)
    values["context"] = passages
    plan = plan_of(spec)
    try:
        if plan is None:
            template = Template.parse(spec.prompts[ref.aspect])
            return template.render(values, chunk.columns, is_fenced=spec.is_fenced(model))
        lane = first_lane(spec.lane)
        return plan.prompt(chunk, ref, values, model=model, chunks=chunks, lane=lane)[0]
    except PromptError:
        # The branch has failed for the same reason.
        return None


def _steps(
    spec: RunSpec, chunk: Chunk, ref: BranchRef, outcome: Outcome, chunks: int
) -> Iterator[TracedCall]:
    prompts, chain, plan = StepPrompts(spec.steps), Chain(spec.steps), step_plan_of(spec)
    values = branch_values(chunk, ref, ref.sample, chunk.around)
    values |= {context_of(one.name): _listed(one.passages, one.kind) for one in outcome.steps}
    looking = {name for name, one in prompts.templates.items() if has_context(one)}
    for one in outcome.steps:
        step = chain.next
        if step is None or step.name != one.name:
            raise StoredDataError(f"the store has an answer of step {one.name!r} out of its order")
        prompt = None
        if step.function is None:
            try:
                model = one.model or step.model or ref.model or spec.model
                is_fenced = spec.is_fenced(model)
                text_of = partial(step_text, answers=chain.answers)
                own = prompts.values_of(step, values, chunk.columns, text_of, is_fenced=is_fenced)
                if plan is None:
                    template = prompts.templates[step.name]
                    prompt = template.render(own, chunk.columns, is_fenced=is_fenced)
                else:
                    lane = first_lane(spec.lane)
                    prompt, _ = plan.prompt(
                        step, chunk, ref, own, model=model, chunks=chunks, lane=lane
                    )
            except PromptError:
                prompt = None
        looks = step.name in looking
        yield _step(spec, ref, step, one, prompt, chain.turns(step), looks=looks)
        if one.kind is None:
            chain.answered(one)


def _step(
    spec: RunSpec,
    ref: BranchRef,
    step: StepSpec,
    one: StepOutcome,
    prompt: str | None,
    turns: tuple[SentBack, ...],
    *,
    looks: bool,
) -> TracedCall:
    asked = None if step.function else one.model or step.model or ref.model or spec.model
    system = spec.system if step.system is None else step.system
    is_fenced = asked is not None and spec.is_fenced(asked)
    has_value = one.is_json and one.output is not None
    return TracedCall(
        step=step.name,
        round=one.round,
        judges=step.judge,
        function=step.function,
        model=asked,
        system=None if asked is None else with_rule(spec, asked, system),
        prompt=prompt,
        passages=_found(one.passages, one.kind) if looks else None,
        turns=(
            *(
                (one.answer, feedback_reply(one.feedback, one.criteria, is_fenced=is_fenced))
                for one in turns
            ),
            *one.refused,
        ),
        answer=msgspec.json.decode(one.output or "") if has_value else one.output,
        kind=one.kind,
        message=one.message,
        attempts=one.attempts,
        usage=one.usage,
        elapsed_s=one.elapsed_s,
        finish_reason=one.finish_reason,
        cached=one.saved.calls > 0,
    )
