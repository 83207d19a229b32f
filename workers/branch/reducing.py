"""Puts the prompt of a branch of a reduce to its model: a node of a tree, or a comparison."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import structs

from fanout.aggregators import CITING_RULE, decode_places, shown_texts
from fanout.core.errors import FanoutError
from fanout.core.lanes import first_lane
from fanout.core.reduces import reduce_name
from fanout.inputs.cited_answers import CitedAnswers
from fanout.inputs.fences import with_rule
from fanout.inputs.prompt_layout import branch_values
from fanout.llm.base import LLMRequest
from fanout.policy.tree_budgets import above_of
from workers.branch.outcomes import outcome_of
from workers.context.branch_texts import texts_of_branch

if TYPE_CHECKING:
    from fanout.core.answer_shape import AnswerShape
    from fanout.core.records import BranchRef, Chunk, Outcome
    from fanout.core.reduces import Reduce
    from fanout.core.spec import RunSpec
    from workers.branch.asking import Asking
    from workers.context.worker_context import WorkerContext

__all__ = ["ask_reduce"]


async def ask_reduce(
    context: WorkerContext,
    run_id: str,
    spec: RunSpec,
    asking: Asking,
    ref: BranchRef,
    chunk: Chunk,
) -> Outcome:
    """Return the outcome of a branch of a reduce.

    Args:
        context: The worker's process.
        run_id: The run.
        spec: Its job.
        asking: Makes the calls.
        ref: The branch.
        chunk: Its chunk, whose columns name the reduce.

    Raises:
        StoredDataError: The job has no such reduce.
    """
    name, runs = reduce_name(chunk.columns), context.runs
    shape = runs.reduce_shape(run_id, name)
    reduce = spec.reduction_of(name)
    if reduce.judges_pairs:
        request = _comparison(spec, reduce, chunk.text, shape)
        return outcome_of(ref.chunk, await asking.answer(reduce.model, lambda _model: request))
    asking.leaves_room(above_of(chunk.columns))
    values = branch_values(chunk, ref, ref.sample)
    review = _review(context, run_id, spec, chunk, shape)

    def made(model: str) -> LLMRequest:
        frame = runs.reduce_frame(run_id, name, model)
        prompt = frame.rendered(values, chunk.columns)
        if review is not None:
            prompt = f"{prompt}\n\n{CITING_RULE}"
        request = frame.asks(prompt, sample=ref.sample, shape=shape)
        return request if review is None else structs.replace(request, review=review)

    return outcome_of(ref.chunk, await asking.answer(reduce.model, made))


def _review(
    context: WorkerContext, run_id: str, spec: RunSpec, chunk: Chunk, shape: AnswerShape | None
) -> CitedAnswers | None:
    """Return what checks the citations of an answer of the reduce; None if it is to cite nothing."""
    shown = chunk.columns.get("sources")
    if shown is None:
        return None
    places = decode_places(str(shown))
    texts = shown_texts(chunk.text, places)
    if "level" not in chunk.columns:
        return CitedAnswers(texts, shape, shown=chunk.text)

    def look_up(one: str) -> list[str] | None:
        """Return the texts of a source of which the prompt shows only what partial results say of it."""
        try:
            return texts_of_branch(context, run_id, spec, places[one].index)
        except FanoutError:
            # The quote is checked again when the run ends.
            return None

    return CitedAnswers(texts, shape, shown=chunk.text, look_up=look_up)


def _comparison(
    spec: RunSpec, reduce: Reduce, prompt: str, shape: AnswerShape | None
) -> LLMRequest:
    """Return the request of a comparison: what the job says of its answers is not for the judge."""
    return LLMRequest(
        prompt=prompt,
        system=with_rule(spec, reduce.model, None),
        max_tokens=reduce.max_tokens,
        seed=spec.seed,
        shape=shape,
        lane=first_lane(spec.lane),
    )
