"""The rules about the fields of one reduce of several: which its aggregator reads, and which it needs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

    from fanout.core.reduces import Reduce

__all__ = ["BY_ONE", "own_problem", "problem_in"]

# The reduces that go by one field.
BY_ONE = ("vote", "rank", "top", "merge", "map_rerank", "resolve")

_OF_LLM = ("aggregate_prompt", "aggregate_max_tokens", "aggregate_schema", "group_by", "fold")
_OF_COMPARISONS = ("criteria", "judge_model", "aggregate_max_tokens")
# The fields that each aggregator reads.
_READS: dict[str, tuple[str, ...]] = {
    "concat": ("group_by",),
    "merge": ("by", "group_by"),
    "vote": ("by", "group_by"),
    "rank": ("by", "k", "group_by"),
    "top": ("by", "k", "group_by"),
    "table": ("by", "measures", "group_by"),
    "llm": _OF_LLM,
    "best": _OF_COMPARISONS,
    "pairwise": (*_OF_COMPARISONS, "k", "group_by"),
    "resolve": (*_OF_COMPARISONS, "by", "max_pairs", "group_by"),
}
_FIELDS = tuple(dict.fromkeys(field for some in _READS.values() for field in some))
_ASPECTS = ("aspect", "fanout.aspect")


class _Rule(NamedTuple):
    """What a field of a reduce must meet: ``is_met`` takes the reduce, then the job if there is one."""

    field: str
    is_met: Callable[..., bool]
    reason: str


# Of a ReduceSpec. The reasons are format strings for it.
_OWN_RULES = (
    _Rule("aggregate_prompt", lambda one: one.reduce != "llm" or bool(one.aggregate_prompt),
          "is required: what to ask of all the answers; {{input}} is them"),
    _Rule("fold", lambda one: one.fold != "map_rerank",
          "'map_rerank' gives all answers of a job a score, and is for a job without a list; in a list, top "
          "with by and k: 1 takes the best one"),
    _Rule("group_by", lambda one: not one.group_by or one.fold != "refine",
          "fold 'refine' makes one aggregate of all answers; leave it out, or choose fold tree or cluster"),
    _Rule("criteria", lambda one: one.reduce not in ("best", "pairwise") or bool(one.criteria),
          "{one.reduce} needs criteria: what makes one answer better than another"),
    _Rule("by", lambda one: one.reduce != "resolve" or bool(one.by),
          "resolve needs by: the field whose values are resolved"),
    _Rule("by", lambda one: one.reduce != "table" or bool(one.by or one.measures),
          "a table needs by or measures"),
    _Rule("by", lambda one: one.reduce not in BY_ONE or len(one.by) <= 1,
          "{one.reduce} goes by one field (got {one.by!r}); only a table goes by several"),
    _Rule("by", lambda one: not {*one.by} & {*one.measures},
          "a name is also a measure (got {one.by!r}); write output.NAME or column.NAME"),
)  # fmt: skip

# Of a Reduce in a RunSpec.
_RULES_IN_JOB = (
    _Rule("reduce", lambda one, spec: one.kind != "best" or spec.certainty is None,
          "best needs several answers to choose from, and certainty makes one of all"),
    _Rule("reduce", lambda one, spec: one.kind != "best" or spec.branches_per_chunk > 1,
          "best needs several answers to choose from: give samples (more than 1), several models, or "
          "aspects"),
    _Rule("group_by", lambda one, spec: one.group_by not in _ASPECTS or bool(spec.aspects),
          "'aspect' needs aspects, and there are none (a column of this name is column.aspect)"),
    _Rule("group_by", lambda one, spec: not one.is_by_model or bool(spec.models),
          "'model' needs several models, and there is one (a column of this name is column.model)"),
    _Rule("group_by", lambda one, spec: not one.is_by_model or spec.certainty is None,
          "'model' makes no groups with certainty: the answers of all models are one branch"),
)  # fmt: skip


def own_problem(given: Any) -> tuple[str, str] | None:
    """Return the field of a reduce that its aggregator does not read, or lacks, and why; or None.

    Args:
        given: The reduce, as a ReduceSpec.
    """
    read = _READS[given.reduce]
    for field in _FIELDS:
        if field not in read and getattr(given, field) != type(given).model_fields[field].default:
            return field, f"has no effect with {given.reduce}, which reads {', '.join(read)}"
    broken = (rule for rule in _OWN_RULES if not rule.is_met(given))
    return next(((rule.field, rule.reason.format(one=given)) for rule in broken), None)


def problem_in(spec: Any, reduce: Reduce) -> tuple[str, str] | None:
    """Return the field of a reduce that does not fit the job, and why; None if all fit.

    Args:
        spec: The job, as a RunSpec.
        reduce: One of its reduces.
    """
    broken = (rule for rule in _RULES_IN_JOB if not rule.is_met(reduce, spec))
    return next(((rule.field, rule.reason) for rule in broken), None)
