"""The settings of a job for its answers, as the page of the report shows them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from fanout.core.model_names import ANY_MODEL
from fanout.core.strict_schema import object_properties
from fanout.inputs.documents.urls import shown_input

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fanout.core.reduces import Reduce
    from fanout.core.spec import RunSpec

__all__ = ["answer_settings", "input_settings"]


def input_settings(spec: RunSpec) -> list[tuple[str, str]]:
    """Return the fields of a job about what prompts have of documents and passages, with their values.

    What has no effect, or was not given and does nothing, is left out.
    """
    return list(_of_input(spec))


def _of_input(spec: RunSpec) -> Iterator[tuple[str, str]]:
    if spec.split == "model":
        yield "split_model", spec.split_model or spec.model
        yield from _given(spec, "split_prompt", "split_max_tokens")
        yield "split_gaps", spec.split_gaps
    if spec.neighbours:
        yield "neighbours", f"{spec.neighbours:,}"
    if spec.retrieval_sources:
        yield "retrieve", ", ".join(map(shown_input, spec.retrieval_sources))
        yield "top_k", f"{spec.top_k:,}"
        yield from _given(spec, "query")
        if spec.has_passage_files:
            yield "passage_tokens", f"{spec.passage_tokens:,}"
            yield from _given(spec, "passage_column")
    yield from _given(spec, "tokenizer", "fence")


def _given(spec: RunSpec, *names: str) -> Iterator[tuple[str, str]]:
    for name in names:
        value = getattr(spec, name)
        if value is not None:
            yield name, ("yes" if value else "no") if isinstance(value, bool) else str(value)


def answer_settings(spec: RunSpec) -> list[tuple[str, str]]:
    """Return the fields of a job about its answers and their aggregate, with their values as text.

    What has no effect, or was not given and does nothing, is left out.
    """
    return list(_settings(spec))


def _settings(spec: RunSpec) -> Iterator[tuple[str, str]]:
    for reduce in spec.reductions:
        for name, value in _of_reduce(reduce):
            yield reduce.field(name), value
    yield from _shapes(spec)
    yield from _unusual(
        spec,
        fold="tree",
        on_rejected="keep",
        on_truncated="fail",
        prompt_order="auto",
        lane="realtime",
    )
    yield from _given(spec, "embed")
    for model, price in spec.price.items():
        name = "price" if model == ANY_MODEL else f"price of {model}"
        yield name, f"${price.input_mtok:g} in and ${price.output_mtok:g} out per million tokens"
    if not spec.cache:
        yield "cache", "no"
    if spec.sources:
        yield "sources", "yes"
    if spec.labels:
        yield (
            "labels",
            ", ".join(
                f"{field}={column}" if field else column for field, column in spec.labels.items()
            ),
        )


def _of_reduce(reduce: Reduce) -> Iterator[tuple[str, str]]:
    if reduce.name:
        yield "reduce", reduce.kind
        if reduce.group_by is not None:
            yield "group_by", reduce.group_by
        if reduce.fold != "tree":
            yield "fold", reduce.fold
    if reduce.by:
        yield "by", ", ".join(reduce.by)
    if reduce.measures:
        yield "measures", ", ".join(reduce.measures)
    if reduce.k is not None:
        yield "k", f"{reduce.k:,}"
    if reduce.judges_pairs:
        if reduce.criteria:
            yield "criteria", "; ".join(reduce.criteria)
        yield "judge_model", reduce.model
    if reduce.name and reduce.max_tokens is not None:
        yield "aggregate_max_tokens", f"{reduce.max_tokens:,}"


def _shapes(spec: RunSpec) -> Iterator[tuple[str, str]]:
    """Yield what answers and the aggregate must be."""
    if spec.answer_schema is not None:
        yield "schema", _shape(spec.answer_schema)
    elif spec.answer_choices:
        yield "choices", ", ".join(spec.answer_choices)
    elif not spec.steps:
        yield "output_format", spec.output_format
    schemas = [
        (reduce.field("aggregate_schema"), reduce.schema)
        for reduce in spec.reductions
        if reduce.schema is not None
    ]
    for name, schema in schemas:
        yield name, _shape(schema)
    has_shape = (
        spec.schema is not None
        or spec.choices
        or spec.output_format == "json"
        or any(step.has_shape for step in spec.steps)
    )
    if has_shape or schemas:
        yield "max_reasks", f"{spec.max_reasks:,} after an answer that does not fit"


def _unusual(spec: RunSpec, **usual: str) -> Iterator[tuple[str, str]]:
    for name, value in usual.items():
        if getattr(spec, name) != value:
            yield name, getattr(spec, name)


def _shape(schema: dict[str, Any]) -> str:
    """Return the fields of an object, or the schema of anything else."""
    fields = object_properties(schema)
    if fields:
        return f"an object with {', '.join(fields)}"
    return json.dumps(schema, ensure_ascii=False)
