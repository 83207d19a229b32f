"""The outputs of a run: its branches with their place in the input and their outcomes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from fanout.core.answer_types import UNTYPED, NotOfTypeError
from fanout.core.records import ErrorKind
from fanout.core.units import plural
from fanout.inputs.documents.rows import DEFAULT_TEXT_COLUMN, EMPTY
from fanout.policy.packing import shard_chunk
from fanout.policy.steps import output_step
from fanout.runs.branch_output import Output

if TYPE_CHECKING:
    from collections.abc import Container, Sequence

    from fanout.core.answer_types import AnswerType, AnswerTypes
    from fanout.core.lanes import Lane
    from fanout.core.records import Chunk, Outcome, Shard
    from fanout.core.spec import RunSpec

__all__ = ["output_of", "refused_note", "typed_value"]


def output_of(
    spec: RunSpec,
    shard: Shard,
    outcome: Outcome,
    *,
    with_text: bool,
    types: AnswerTypes = UNTYPED,
    best: Container[int] | None = None,
    ranks: Sequence[int] | None = None,
) -> Output[Any]:
    """Return the branch of an outcome.

    Args:
        spec: The job.
        shard: The shard of the branch.
        outcome: Its outcome.
        with_text: Whether it has the text of its chunk; a cell of a row it has in any case.
        types: What answers with a schema become; JSON values without a type.
        best: The indices of the best outputs; None if the job has none, or none yet.
        ranks: The rank of each output by index, or 0; None if the job has none, or none yet.
    """
    variants = spec.variants
    ref = variants.ref(outcome.index)
    chunk = shard_chunk(shard, outcome.index, variants.count)
    answer = _answer(spec, outcome, types)
    return Output(
        index=outcome.index,
        document=chunk.document,
        document_index=chunk.document_index,
        chunk=ref.chunk,
        position=chunk.position,
        start=chunk.start,
        end=chunk.end,
        aspect=ref.aspect,
        model=outcome.model or ref.model,
        asked_model=ref.model,
        has_fallback=bool(spec.fallback),
        sample=ref.sample,
        **answer,
        attempts=outcome.attempts,
        usage=outcome.usage,
        saved=outcome.saved,
        elapsed_s=outcome.elapsed_s,
        ended_at=outcome.ended_at,
        finish_reason=outcome.finish_reason,
        lane=_lane(spec, outcome),
        is_cut=outcome.is_cut,
        confidence=outcome.confidence,
        votes=outcome.votes,
        samples=None if spec.certainty is None else outcome.samples,
        usage_of=outcome.usage_of,
        columns=chunk.columns,
        text_at=chunk.text_at,
        text_column=_text_column(spec, chunk),
        pages=chunk.pages,
        headings=chunk.headings,
        title=chunk.title,
        subtask=chunk.subtask,
        text=_text(chunk, with_text=with_text),
        step_records=outcome.steps,
        is_rejected=outcome.is_rejected if spec.has_judge else None,
        is_best=None if best is None else outcome.index in best,
        has_rank=spec.ranks_answers,
        rank=None if ranks is None else ranks[outcome.index] or None,
        passages=outcome.passages if spec.retrieval_sources else None,
    )


def _lane(spec: RunSpec, outcome: Outcome) -> Lane | None:
    """Return how the answer of an outcome was bought, in a job that says how calls are bought."""
    is_bought = spec.lane != "realtime" and outcome.output is not None and outcome.attempts > 0
    return outcome.lane or ("realtime" if is_bought else None)


def _answer(spec: RunSpec, outcome: Outcome, types: AnswerTypes) -> dict[str, Any]:
    """Return the answer of an outcome, or why there is none."""
    failure = {"kind": outcome.kind, "message": outcome.message}
    step = output_step(spec, outcome.steps) if spec.steps else None
    is_json = spec.schema is not None if step is None else step.is_json
    if outcome.output is None or not is_json:
        return {"output": outcome.output, **failure}
    answer_type = types.of(None if step is None else step.name)
    try:
        value = msgspec.json.decode(outcome.output)
    except msgspec.DecodeError:
        # Of another version, which stored something else.
        return {"output": outcome.output, **failure}
    if answer_type is None:
        return {"output": value, **failure}
    try:
        return {"output": answer_type.instance(outcome.output), "json": value, **failure}
    except NotOfTypeError as error:
        return {"output": None, "kind": ErrorKind.INVALID_OUTPUT, "message": str(error)}


def typed_value(of_type: AnswerType, value: Any, name: str) -> tuple[Any, list[str]]:
    """Return the instance of a JSON value with no note, or None and the reason."""
    if value is None:
        return None, []
    try:
        return of_type.instance(msgspec.json.encode(value)), []
    except NotOfTypeError as error:
        return None, [f"{name} is no {of_type.name}: {error}"]


def refused_note(of_type: AnswerType, count: int) -> str:
    """Return a note on answers that only their reader refuses, but that an aggregate counts."""
    answers = plural(count, "answer is", "answers are")
    return (
        f"{answers} no {of_type.name}, by a check that only Python makes, when a result is read: the "
        "aggregate counts them"
    )


def _text(chunk: Chunk, *, with_text: bool) -> str | None:
    """Return the text of a chunk; None where a row has none, or if nobody wants it."""
    if chunk.text_at is None:
        return chunk.text if with_text else None
    return chunk.text if chunk.error in {None, EMPTY} else None


def _text_column(spec: RunSpec, chunk: Chunk) -> str | None:
    """Return the name of the column that has the text of a row."""
    if chunk.text_at is None:
        return None
    return chunk.text_column or spec.text_column or DEFAULT_TEXT_COLUMN
