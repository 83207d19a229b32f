"""What a job does, stage by stage, as a drawing in text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fanout.core.field_effects import SIZED_SPLITS
from fanout.core.strict_schema import object_properties
from fanout.core.units import plural
from fanout.inputs.documents.urls import shown_input
from fanout.inputs.plan_answers import wants_subtasks
from fanout.inputs.retrieval_prompts import has_context
from fanout.inputs.step_prompts import StepPrompts

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any

    from fanout.core.reduces import Reduce
    from fanout.core.retrieval import Retrieval
    from fanout.core.spec import RunSpec
    from fanout.core.steps import StepSpec

__all__ = ["job_drawing"]

_ARROW = "▼"
_BAR = "│"
_SHOWN = 6
_SHOWN_CHARS = 60
_FOLDS = {
    "tree": "a tree of calls",
    "refine": "calls in turn, each refines the answer so far",
    "cluster": "a tree of calls, the first of which see answers that are alike",
}


def job_drawing(spec: RunSpec) -> list[str]:
    """Return the stages of a job from its documents to its aggregate, a line each, the steps below."""
    lines = [_documents(spec), *_below(_chunks(spec)), _ARROW]
    lines += [_map(spec), *_below(_branch(spec))]
    if spec.reductions:
        lines += [_ARROW, *(_reduce(spec, one) for one in spec.reductions)]
        lines += [f"   {line}" for line in _terms(spec)]
    return lines


def _below(details: Iterator[str]) -> Iterator[str]:
    return (f"{_BAR}  {line}" for line in details)


def _documents(spec: RunSpec) -> str:
    return (
        f"documents: {_listed(tuple(map(shown_input, spec.inputs)))}"
        if spec.inputs
        else "documents"
    )


def _chunks(spec: RunSpec) -> Iterator[str]:
    if spec.where is not None:
        yield f"those that meet {_cut(spec.where)}"
    if spec.split == "none":
        yield "each is one chunk"
    elif spec.split == "model":
        what = "subtasks" if wants_subtasks(spec) else "parts"
        yield f"{spec.split_model or spec.model} splits each into {what}, and fanout checks them"
    elif spec.split in SIZED_SPLITS:
        yield f"chunks by {spec.split}, {spec.chunk_tokens:,} tokens at most"
    else:
        yield f"chunks by {spec.split}"
    if spec.neighbours:
        yield f"with {plural(spec.neighbours, 'chunk', 'chunks')} before and after each"


def _map(spec: RunSpec) -> str:
    parts = []
    if spec.aspects:
        parts.append(plural(len(spec.aspects), "aspect", "aspects"))
    if spec.certainty is None:
        if len(spec.models) > 1:
            parts.append(plural(len(spec.models), "model", "models"))
        if spec.samples > 1:
            parts.append(plural(spec.samples, "sample", "samples"))
    count = spec.branches_per_chunk
    made = f" ({' x '.join(parts)})" if parts else ""
    return f"map: {plural(count, 'branch', 'branches')} for each chunk{made}"


def _branch(spec: RunSpec) -> Iterator[str]:
    if spec.steps:
        yield from _table(spec)
    else:
        retrieval = spec.retrieval()
        if retrieval is not None:
            yield f"finds {_passages(retrieval)}"
        yield f"asks {spec.named_models} for {_shape(spec.schema, spec.choices)}"
    if spec.certainty is not None:
        most = spec.samples * max(1, len(spec.models))
        yield f"again, {most:,} times at most, until a majority is {spec.certainty:g} certain"
    if spec.has_judge:
        kept = "kept, and marked" if spec.on_rejected == "keep" else "a failure"
        yield f"what no round of a judge passes is {kept}"
    if spec.lane != "realtime":
        yield f"in the lane {spec.lane}"


def _table(spec: RunSpec) -> Iterator[str]:
    """Yield the steps, in columns."""
    templates = StepPrompts(spec.steps).templates
    with_context = {name for name, one in templates.items() if has_context(one)}
    rows = [
        _row(number, step, spec, has_passages=step.name in with_context)
        for number, step in enumerate(spec.steps, 1)
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        yield "  ".join(cells).rstrip()
    if spec.fallback:
        yield f"where a model fails: {_listed(spec.fallback)}"
    if spec.output is not None:
        yield f"the output is the answer of {spec.output}"


def _row(number: int, step: StepSpec, spec: RunSpec, *, has_passages: bool) -> tuple[str, ...]:
    if step.function is not None:
        answer = "a value"
    elif step.judge is not None:
        rounds = plural(step.rounds, "round", "rounds")
        answer = f"judges {step.judge}, which is asked again: {rounds} at most"
    else:
        answer = _shape(step.schema, step.choices)
    asked = step.function or step.model or _model(spec)
    retrieval = spec.retrieval(step) if has_passages else None
    passages = "" if retrieval is None else f"with {_passages(retrieval)}"
    more = ", ".join(filter(None, (passages, _when(step.when))))
    return f"{number}. {step.name}", asked, answer, more


def _passages(retrieval: Retrieval) -> str:
    count = plural(retrieval.top_k, "passage", "passages")
    return f"{count} of {_cut(shown_input(retrieval.source))} for {_cut(' '.join(retrieval.query.split()))}"


def _model(spec: RunSpec) -> str:
    return spec.model if len(spec.models) < 2 else "each model"  # noqa: PLR2004 - several


def _when(when: Mapping[str, tuple[str, ...]]) -> str:
    if not when:
        return ""
    parts = (f"{name} is {' or '.join(values)}" for name, values in when.items())
    return f"only if {' and '.join(parts)}"


def _shape(schema: dict[str, Any] | None, choices: tuple[str, ...]) -> str:
    if choices:
        return f"one of {_listed(choices)}"
    if schema is None:
        return "a text"
    fields = object_properties(schema)
    return f"JSON with {_listed(fields)}" if fields else "JSON"


def _reduce(spec: RunSpec, reduce: Reduce) -> str:
    how = reduce.kind + (f" by {', '.join(reduce.by)}" if reduce.by else "")
    if reduce.makes_calls:
        rounds = f"{reduce.model} compares answers by two, in rounds"
        if reduce.resolves:
            rounds = f"{reduce.model} says which of up to {reduce.max_pairs:,} pairs are the same"
        how += f", {rounds if reduce.judges_pairs else _FOLDS[reduce.fold]}"
        how += f" by vectors of {_cut(spec.embed)}" if reduce.clusters and spec.embed else ""
    elif reduce.kind == "map_rerank":
        how += ", the answer with the highest score"
    groups = f", for each {reduce.group_by}" if reduce.group_by else ""
    return f"reduce{f' {reduce.name}' if reduce.name else ''}: {how}{groups}"


def _terms(spec: RunSpec) -> Iterator[str]:
    """Yield what the aggregates must be like, of which some may come to none."""
    if spec.sources:
        again = "is asked for once more, then marked" if spec.max_reasks else "is marked"
        yield f"{_citing(spec)} sources; a citation or quote that is not real {again}"
    if spec.min_group_success:
        what = "a group" if any(one.group_by for one in spec.reductions) else "a run"
        least = f"{spec.min_group_success:.4g}"
        yield f"{what} with answers of less than {least} of its branches gets no aggregate"


def _citing(spec: RunSpec) -> str:
    """Return which reduces cite: no table does, and in a list the words stand below all."""
    names = [one.name for one in spec.reductions if one.makes_calls and not one.judges_pairs]
    if len(spec.reductions) == 1:
        return "it cites the ids of its"
    return f"{_listed(tuple(names))} {'cites the ids of its' if len(names) == 1 else 'cite the ids of their'}"


def _listed(names: tuple[str, ...]) -> str:
    more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    return ", ".join(map(_cut, names[:_SHOWN])) + more


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}..."
