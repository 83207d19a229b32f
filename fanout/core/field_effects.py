"""The rules about the fields of a job that need other fields, or exclude them.

A field without effect is refused and not ignored. Only fields that the user gave are checked for an
effect, including those that have their default value. The fields of a stored run are not checked
again: another version may have written them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from fanout.core.errors import SpecError
from fanout.core.lanes import takes_lane
from fanout.core.model_names import takes_seed
from fanout.core.reduce_rules import BY_ONE
from fanout.core.schema_places import has_text

if TYPE_CHECKING:
    from collections.abc import Callable

    from fanout.core.spec import RunSpec

__all__ = [
    "CONFLICTS",
    "FUNCTION_RULES",
    "READING",
    "RULES",
    "SIZED_SPLITS",
    "FieldRule",
    "conflict",
    "require_used",
]

# The fields that say how to read the inputs. They need an effect on these: see fanout.inputs.reading_fields.
READING = frozenset({
    "base_dir", "delimiter", "encoding", "id_column", "parse_timeout_s", "sheet", "text_column",
    "where",
})  # fmt: skip

# The splitters that fill chunks up to a size; a model leaves its gaps to one of them.
SIZED_SPLITS = ("tokens", "markdown", "sentences", "model")

# What the reason of a rule about the kind of reduce has.
_OF_REDUCE = "{spec.reduction!r}"
# What these advise, which a list of reduces does not take.
_BY_MODEL = "give an aggregate prompt, for a reduce by the model"


class FieldRule(NamedTuple):
    """A condition for fields of a job.

    Attributes:
        fields: Their names; a field of a part with the part's name, as ``retries.base_wait_s``.
        deciding: The fields that decide it. If an option gives one of these, and not the field, the
            field of a job file is ignored.
        is_met: Returns whether the fields have an effect, or do not exclude each other.
        reason: Why not, for the error message: a format string for ``spec``.
    """

    fields: tuple[str, ...]
    deciding: tuple[str, ...]
    is_met: Callable[[RunSpec], bool]
    reason: str


# Every job meets these, with any fields. The reason names the field.
CONFLICTS = (
    FieldRule(("prompt", "aspects"), ("prompt", "aspects"),
              lambda spec: not (spec.prompt and spec.aspects),
              "prompt: give either prompt or aspects, and not both"),
    FieldRule((), (), lambda spec: bool(spec.prompt or spec.aspects or spec.steps),
              "prompt: is required: what to ask of each chunk (or several, named, as aspects; or steps)"),
    FieldRule(("prompt", "aspects", "steps"), ("prompt", "aspects"),
              lambda spec: not (spec.steps and (spec.prompt or spec.aspects)),
              "steps: give either steps, or prompt or aspects, and not both"),
    FieldRule((), (), lambda spec: not spec.step_problem, "output: {spec.step_problem}"),
    FieldRule((), (), lambda spec: not spec.steps or not (spec.schema or spec.choices),
              "schema: has no effect with steps; give schema or choices to a step"),
    FieldRule((), (), lambda spec: not spec.steps or spec.output_format == "text",
              "output_format: has no effect with steps; give a schema to a step"),
    FieldRule((), (), lambda spec: not spec.steps or spec.certainty is None,
              "certainty: asks one question until a majority is certain, and this job has steps; leave "
              "one of them out"),
    FieldRule((), (), lambda spec: not spec.step_retrieval_problem,
              "steps: {spec.step_retrieval_problem}"),
    FieldRule(("fold",), ("reduce", "aggregate_prompt"),
              lambda spec: spec.fold != "map_rerank" or not (spec.reduce or spec.aggregate_prompt),
              "fold: 'map_rerank' takes the answer with the highest score, and asks nothing more; leave it "
              "out, or leave reduce and aggregate_prompt out (reduce top keeps several answers)"),
    FieldRule((), (), lambda spec: not spec.score_problem, "{spec.score_problem}"),
    FieldRule(("reduces",), ("reduce", "aggregate_prompt"),
              lambda spec: not spec.reduces or not (spec.reduce or spec.aggregate_prompt),
              "reduce: give either a list of reduces, or one with its aggregate_prompt, and not both"),
    FieldRule((), (), lambda spec: not spec.field_beside_reduces,
              "{spec.field_beside_reduces}: has no effect beside a list of reduces; give it to one of "
              "them"),
    FieldRule((), (), lambda spec: not spec.reduce_problem, "{spec.reduce_problem}"),
    FieldRule((), (), lambda spec: spec.reduce != "llm" or bool(spec.aggregate_prompt),
              "aggregate_prompt: reduce 'llm' needs an aggregate prompt"),
    FieldRule(("reduce", "aggregate_prompt"), ("reduce", "aggregate_prompt"),
              lambda spec: not spec.aggregate_prompt or spec.reduce in (None, "llm"),
              "reduce: {spec.reduce!r} does not use an aggregate prompt; leave it out, or leave "
              "aggregate_prompt out"),
    FieldRule(("group_by",), ("reduce", "aggregate_prompt"),
              lambda spec: not spec.group_by or spec.reduction != "none",
              "group_by: needs a reduce (concat, merge, vote, rank, top, table, llm, pairwise or "
              "resolve)"),
    FieldRule((), (), lambda spec: not spec.group_by or spec.reduction != "best",
              "group_by: has no effect with reduce 'best', which finds the best answer of each chunk; "
              "leave it out, or choose another reduce"),
    FieldRule((), (), lambda spec: not spec.group_by or not spec.refines,
              "group_by: fold 'refine' makes one aggregate of all answers; leave it out, or choose fold "
              "tree or cluster"),
    FieldRule((), (), lambda spec: not spec.embed or not spec.has_grouped_clusters,
              "embed: makes no vectors with group_by, where answers are compared by their words; leave one "
              "of the two out"),
    FieldRule((), (), lambda spec: not spec.refines or spec.lane not in ("batch", "auto"),
              "lane: {spec.lane!r} may take a day for each call, and with fold 'refine' one follows the "
              "other; choose another lane, or fold tree"),
    FieldRule((), (), lambda spec: bool(spec.reduces or spec.criteria) or not spec.compares,
              "criteria: reduce {spec.reduction!r} needs criteria: what makes one answer better than "
              "another"),
    FieldRule((), ("samples", "model"), lambda spec: spec.reduce != "best" or spec.branches_per_chunk > 1,
              "reduce: 'best' needs several answers to choose from: give samples (more than 1), several "
              "models, or aspects"),
    FieldRule((), (), lambda spec: spec.reduce != "best" or spec.certainty is None,
              "certainty: makes one answer of all, and reduce 'best' needs several to choose from; leave "
              "one of them out"),
    FieldRule((), (), lambda spec: spec.reduce != "table" or bool(spec.by or spec.measures),
              "by: reduce 'table' needs by or measures"),
    FieldRule((), (), lambda spec: spec.reduce != "resolve" or bool(spec.by),
              "by: reduce 'resolve' needs by: the field whose values are resolved"),
    FieldRule((), (), lambda spec: len(spec.by) <= 1 or spec.reduction not in BY_ONE,
              "by: reduce {spec.reduction!r} goes by one field (got {spec.by!r}); only a table goes "
              "by several"),
    FieldRule((), (), lambda spec: spec.reduce != "table" or not {*spec.by} & {*spec.measures},
              "by: a name is also a measure (got {spec.by!r}); write output.NAME or column.NAME"),
    FieldRule(("group_by",), ("prompt",),
              lambda spec: spec.group_by not in ("aspect", "fanout.aspect") or bool(spec.aspects),
              "group_by: 'aspect' needs aspects, and there are none (a column of this name is "
              "column.aspect)"),
    FieldRule(("group_by",), ("model",),
              lambda spec: spec.group_by not in ("model", "fanout.model") or bool(spec.models),
              "group_by: 'model' needs several models, and there is one (a column of this name is "
              "column.model)"),
    FieldRule((), (),
              lambda spec: spec.group_by not in ("model", "fanout.model")
              or spec.certainty is None or not spec.models,
              "group_by: 'model' makes no groups with certainty: the answers of all models are one "
              "branch; leave one of them out"),
    FieldRule(("fallback",), ("model",),
              lambda spec: not set(spec.fallback) & {spec.model} or len(spec.models) > 1
              or bool(set(spec.step_models) - {spec.model}),
              "fallback: {spec.model!r} is the model itself; leave it out, or give another one"),
    FieldRule((), (),
              lambda spec: all(takes_lane(one, spec.lane)
                               for one in (*(spec.models or (spec.model,)), *spec.step_models,
                                            *spec.judges, *spec.split_models)),
              "lane: {spec.named_models} has no lane {spec.lane!r}; leave it out, or choose another "
              "one or another model (batch and auto: openai/, anthropic/, gemini/; flex: openai/, "
              "gemini/)"),
    FieldRule((), (),
              lambda spec: spec.lane != "auto" or spec.deadline_s is not None,
              "lane: 'auto' needs deadline_s, which says when a call is late; give it, or choose "
              "another lane"),
    FieldRule(("schema", "choices"), ("schema", "choices"),
              lambda spec: not (spec.schema and spec.choices),
              "choices: give either schema or choices, and not both"),
    FieldRule(("price",), ("model",),
              lambda spec: not spec.unasked_models,
              "price: has a model that the job does not ask (got {spec.unasked_models}; it asks "
              "{spec.asked_models})"),
    FieldRule((), (), lambda spec: not spec.label_problem, "labels: {spec.label_problem}"),
    FieldRule((), (), lambda spec: spec.chunk_overlap_tokens < spec.chunk_tokens,
              "chunk_overlap_tokens: {spec.chunk_overlap_tokens} must be smaller than chunk_tokens "
              "({spec.chunk_tokens})"),
)  # fmt: skip

RULES = (
    FieldRule(("chunk_tokens", "chunk_overlap_tokens"), ("split",),
              lambda spec: spec.split in SIZED_SPLITS,
              "has no effect with split {spec.split!r}; leave it out, or choose another split "
              f"({', '.join(SIZED_SPLITS)})"),
    FieldRule(("split_prompt", "split_model", "split_gaps", "split_max_tokens"), ("split",),
              lambda spec: spec.split == "model",
              "has no effect with split {spec.split!r}; leave it out, or choose split model"),
    FieldRule(("neighbours",), ("split",), lambda spec: spec.split != "none",
              "has no effect with split 'none', where a document is one chunk; leave it out, or choose "
              "another split"),
    FieldRule(("context_tokens",), ("reduce", "aggregate_prompt", "split", "retrieve"),
              lambda spec: (spec.reduces_by_calls or spec.split == "model"
                            or bool(spec.retrieval_sources)),
              "has no effect with reduce {spec.reduction!r}; leave it out, or give an aggregate "
              "prompt, for a reduce by the model"),
    FieldRule(("aggregate_max_tokens",), ("reduce", "aggregate_prompt"),
              lambda spec: spec.reduces_by_calls,
              "has no effect with reduce {spec.reduction!r}; leave it out, or give an aggregate "
              "prompt, for a reduce by the model"),
    FieldRule(("fold",), ("reduce", "aggregate_prompt"), lambda spec: spec.reduction in ("llm", "map_rerank"),
              "has no effect with reduce {spec.reduction!r}; leave it out, or give an aggregate "
              "prompt, for a reduce by the model"),
    FieldRule(("embed",), ("fold", "reduce", "aggregate_prompt"), lambda spec: spec.clusters,
              "has no effect without fold cluster; leave it out, or give an aggregate prompt and fold "
              "cluster"),
    FieldRule(("criteria", "judge_model"), ("reduce", "aggregate_prompt"), lambda spec: spec.judges_pairs,
              "has no effect with reduce {spec.reduction!r}; leave it out, or choose a reduce that "
              "compares answers (best, pairwise or resolve)"),
    FieldRule(("max_pairs",), ("reduce", "aggregate_prompt"), lambda spec: spec.resolves,
              "has no effect with reduce {spec.reduction!r}; leave it out, or choose reduce resolve"),
    FieldRule(("top_k", "query"), ("retrieve",), lambda spec: bool(spec.retrieval_sources),
              "has no effect without retrieve; leave it out, or say where passages come from"),
    FieldRule(("passage_tokens", "passage_column"), ("retrieve",),
              lambda spec: spec.has_passage_files,
              "has no effect without files of passages; leave it out, or give files as retrieve"),
    FieldRule(("aggregate_schema",), ("reduce", "aggregate_prompt"),
              lambda spec: spec.reduction == "llm",
              "has no effect with reduce {spec.reduction!r}; leave it out, or give an aggregate "
              "prompt, for a reduce by the model"),
    FieldRule(("on_rejected",), (),
              lambda spec: spec.has_judge,
              "has no effect without a step that judges; leave it out, or give a step judge and criteria"),
    FieldRule(("output",), (), lambda spec: bool(spec.steps),
              "has no effect without steps; leave it out"),
    FieldRule(("certainty",), ("samples", "model"),
              lambda spec: spec.samples > 1 or len(spec.models) > 1,
              "has no effect on a single answer for each chunk; leave it out, or give samples "
              "(more than 1) or several models"),
    FieldRule(("by",), ("reduce", "aggregate_prompt"),
              lambda spec: spec.reduction in (*BY_ONE, "table"),
              "has no effect with reduce {spec.reduction!r}; leave it out, or choose another reduce "
              "(vote, rank, top, merge or table)"),
    FieldRule(("measures",), ("reduce", "aggregate_prompt"), lambda spec: spec.reduction == "table",
              "has no effect with reduce {spec.reduction!r}; leave it out, or choose reduce table"),
    FieldRule(("k",), ("reduce", "aggregate_prompt"),
              lambda spec: spec.ranks_answers,
              "has no effect with reduce {spec.reduction!r}; leave it out, or choose another reduce "
              "(top, rank or pairwise)"),
    FieldRule(("sources",), ("reduce", "aggregate_prompt"),
              lambda spec: any(one.kind == "llm" for one in spec.reductions),
              "has no effect with reduce {spec.reduction!r}; leave it out, or give an aggregate "
              "prompt, for a reduce by the model"),
    FieldRule(("sources",), ("reduce", "aggregate_prompt"),
              lambda spec: any(one.kind == "llm" and has_text(one.schema or {})
                               for one in spec.reductions),
              "has no effect: the schema of the aggregate has no place for a text that cites; give it a "
              "field of type string"),
    FieldRule(("min_group_success",), ("reduce", "aggregate_prompt"), lambda spec: bool(spec.reductions),
              "has no effect without a reduce; leave it out, or give one"),
    FieldRule(("output_format",), ("schema", "choices"),
              lambda spec: not (spec.schema or spec.choices),
              "has no effect with schema or choices, which say more; leave it out"),
    FieldRule(("max_reasks",), ("schema", "choices", "aggregate_schema", "reduce"),
              lambda spec: bool(spec.schema or spec.choices or spec.has_reduce_schema or spec.sources
                                or any(step.has_shape for step in spec.steps)),
              "has no effect without schema or choices; leave it out, or give one"),
    FieldRule(("retries.base_wait_s", "retries.max_wait_s"), ("max_attempts",),
              lambda spec: spec.retries.max_attempts > 1,
              "has no effect with max_attempts 1, as no call is made again; leave it out, or allow "
              "more attempts"),
    FieldRule(("retries.base_wait_s",), (),
              lambda spec: spec.retries.base_wait_s <= spec.retries.max_wait_s,
              "{spec.retries.base_wait_s} must not be greater than max_wait_s "
              "({spec.retries.max_wait_s})"),
    FieldRule(("seed",), (),
              lambda spec: any(map(takes_seed, spec.all_models)),
              "has no effect: {spec.model} takes no seed; leave it out"),
)  # fmt: skip

_PROMPT_ONLY = "has no effect: a model is a function that takes the prompt only"
# Further rules for a model that is a function with the prompt as its only argument.
FUNCTION_RULES = (
    FieldRule(("system", "temperature", "seed", "stop"), (), lambda _spec: False, _PROMPT_ONLY),
    # The rate limiter books these tokens for each call.
    FieldRule(
        ("max_tokens",), (), lambda spec: spec.rate.tokens_per_minute is not None, _PROMPT_ONLY
    ),
)


def conflict(spec: RunSpec) -> str | None:
    """Return the field of a job that does not fit the others, and why; None if all fit."""
    broken = (rule.reason for rule in CONFLICTS if not rule.is_met(spec))
    return next(broken, "").format(spec=spec) or None


def require_used(spec: RunSpec, *, is_function: bool = False) -> None:
    """Check that all fields that the user gave have an effect; a function takes a prompt only.

    Raises:
        SpecError: A field has no effect; the message has its name and the reason.
    """
    for rule in (*RULES, *FUNCTION_RULES) if is_function else RULES:
        field = next((field for field in rule.fields if _is_given(spec, field)), None)
        if field is not None and not rule.is_met(spec):
            raise SpecError(_reason(rule, spec), field=field)


def _reason(rule: FieldRule, spec: RunSpec) -> str:
    if spec.reduction == "map_rerank" and _OF_REDUCE in rule.reason:
        # No reduce of that name can be chosen, and none beside the fold that makes it.
        return "has no effect with fold 'map_rerank'; leave one of the two out"
    if spec.reduces and _OF_REDUCE in rule.reason:
        kinds = ", ".join(dict.fromkeys(one.kind for one in spec.reductions))
        reason = rule.reason.replace(f"reduce {_OF_REDUCE}", f"the reduces of the list ({kinds})")
        return reason.replace(_BY_MODEL, "add one with llm to the list")
    return rule.reason.format(spec=spec)


def _is_given(spec: RunSpec, field: str) -> bool:
    part, _, inner = field.rpartition(".")
    if part and part not in spec.model_fields_set:
        return False
    holder = getattr(spec, part) if part else spec
    # None selects the default, and an empty list requests nothing.
    return inner in holder.model_fields_set and getattr(holder, inner) not in (None, ())
