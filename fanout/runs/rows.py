"""Branches as rows of JSON: the columns of the input, then what fanout adds.

A name of fanout's own always means fanout's: a column of the input with such a name is written as
``column.NAME``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from fanout.core.cells import COLUMN
from fanout.core.records import ErrorKind
from fanout.core.step_answers import last_answers
from fanout.core.strict_schema import object_properties
from fanout.core.usage import rounded_usd
from fanout.inputs.plan_answers import wants_subtasks

if TYPE_CHECKING:
    from collections.abc import Container, Sequence

    from fanout.core.cells import Cell
    from fanout.core.passage_uses import PassageUse
    from fanout.core.spec import RunSpec
    from fanout.core.steps import StepSpec
    from fanout.runs.branch_output import Output
    from fanout.runs.status import ReduceError

__all__ = [
    "OWN_KEYS",
    "RowLayout",
    "StepRow",
    "call_row",
    "ending",
    "error_row",
    "free_name",
    "full_row",
    "layout_of",
    "output_row",
    "part_cells",
    "place",
    "source_cells",
    "stream_row",
]

_PLACE = (
    "index", "document", "chunk", "position", "start", "end", "aspect", "model", "sample"
)  # fmt: skip
# What fanout calls its own in rows of JSON.
OWN_KEYS = frozenset(
    {*_PLACE, "asked_model", "pages", "headings", "output", "attempts", "elapsed_s", "usage", "kind",
     "message", "error_kind", "error", "finish_reason", "cached", "saved_usd"}
)  # fmt: skip
# The same in runs whose branches ask for several answers.
_VOTE_KEYS = frozenset({"votes", "share", "samples"})


class StepRow(msgspec.Struct, frozen=True, kw_only=True):
    """What the rows of a run have of a step.

    Attributes:
        name: The name of the step.
        fields: The fields of its answers, by their schema.
        is_open: Whether its answers may be anything, as those of a function.
        is_final: Whether its answer may be the output, which is in the columns of the output then.
    """

    name: str
    fields: tuple[str, ...] = ()
    is_open: bool = False
    is_final: bool = False


class RowLayout(msgspec.Struct, frozen=True, kw_only=True):
    """What the rows of a run have beside the columns of its input.

    Attributes:
        has_fields: Whether answers are JSON: the fields of an object become columns.
        is_typed: Whether answers are JSON values, as a schema makes them.
        fields: The fields that an object has by the schema, in its order.
        aspects: The names of its prompts; empty if it has a single one.
        models: The models that each prompt goes to; empty if it is a single one.
        samples: Answers for each chunk, aspect and model.
        has_fallback: Whether another model may answer in place of the one that is asked first.
        has_votes: Whether a branch asks for several answers until their majority is certain.
        has_confidence: Whether answers are labels, which may have a confidence.
        keeps_cut: Whether answers that were cut off are kept, so that tables must mark them.
        has_lane: Whether the job says how calls are bought, so that tables say how each one was.
        steps: The steps, with columns of their own for answers that are not the output.
        has_judge: Whether a step judges answers, so that tables mark those that it rejected.
        has_best: Whether the job finds the best answer of each chunk.
        has_rank: Whether the job ranks answers.
        has_titles: Whether a model splits documents, so that chunks have titles.
        has_subtasks: Whether it splits the work, so that chunks have subtasks, too.
        has_passages: Whether prompts have passages.
    """

    has_fields: bool = False
    is_typed: bool = False
    fields: tuple[str, ...] = ()
    aspects: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    samples: int = 1
    has_fallback: bool = False
    has_votes: bool = False
    has_confidence: bool = False
    keeps_cut: bool = False
    has_lane: bool = False
    steps: tuple[StepRow, ...] = ()
    has_judge: bool = False
    has_best: bool = False
    has_rank: bool = False
    has_titles: bool = False
    has_subtasks: bool = False
    has_passages: bool = False

    @property
    def variants(self) -> int:
        """The branches of each chunk."""
        return max(1, len(self.aspects)) * max(1, len(self.models)) * self.samples

    @property
    def has_variants(self) -> bool:
        """Whether a chunk has several branches."""
        return self.variants > 1


def layout_of(spec: RunSpec) -> RowLayout:
    """Return the layout of the rows of a job."""
    final = spec.final_steps
    # A step that others go by is of use even where its answer may be the output.
    routes = {name.partition(".")[0] for step in spec.steps for name in step.when}
    has_objects = any(step.is_json or step.function is not None for step in final)
    schemas = [step.answer_schema for step in final] if final else [spec.schema]
    fields = [name for schema in schemas for name in object_properties(schema or {})]
    return RowLayout(
        has_fields=spec.output_format == "json" or spec.schema is not None or has_objects,
        # Answers of steps are values, whichever step gave them.
        is_typed=spec.schema is not None or bool(final),
        fields=tuple(dict.fromkeys(fields)),
        aspects=tuple(spec.aspects),
        # A consensus has the answers of all models in one branch.
        models=() if spec.certainty is not None else spec.models,
        has_fallback=bool(spec.fallback),
        samples=spec.variants.samples,
        has_votes=spec.certainty is not None,
        has_confidence=bool(spec.answer_choices) and spec.certainty is None,
        keeps_cut=spec.on_truncated == "keep",
        has_lane=spec.lane != "realtime",
        steps=tuple(
            _step_row(step, is_final=step in final and step.name not in routes)
            for step in spec.steps
        ),
        has_judge=spec.has_judge,
        has_best=spec.finds_best,
        has_rank=spec.ranks_answers,
        has_titles=spec.split == "model",
        has_subtasks=spec.split == "model" and wants_subtasks(spec),
        has_passages=bool(spec.retrieval_sources),
    )


def _step_row(step: StepSpec, *, is_final: bool) -> StepRow:
    fields = object_properties(step.answer_schema or {})
    is_open = step.function is not None
    return StepRow(name=step.name, fields=fields, is_open=is_open, is_final=is_final)


def part_cells(branch: Output[Any], layout: RowLayout) -> dict[str, Cell]:
    """Return what a model called the part of a branch, and the passages of its prompt, by column."""
    cells: dict[str, Cell] = {}
    if layout.has_titles:
        cells["title"] = branch.title or None
    if layout.has_subtasks:
        cells["subtask"] = branch.subtask or None
    if layout.has_passages:
        cells["passages"] = None if branch.passages is None else _passages(branch)
    return cells


def source_cells(branch: Output[Any]) -> dict[str, Cell]:
    """Return the columns of a branch's row in the input, in their order, with the text's.

    The text is that of the chunk; None where the document cannot be used. Empty if the document is
    no row.
    """
    if branch.text_at is None:
        return branch.columns
    cells = list(branch.columns.items())
    cells.insert(branch.text_at, (branch.text_column or "text", branch.text))
    return dict(cells)


def free_name(name: str, taken: Container[str], prefix: str = COLUMN) -> str:
    """Return a column's name, with a prefix if fanout has a column of that name.

    Two columns never get the same name: one that has such a name with the prefix gets one more.
    """
    bare = name
    while bare.startswith(prefix):
        bare = bare[len(prefix) :]
    return prefix + name if bare in taken else name


def output_row(branch: Output[Any]) -> dict[str, Any]:
    """Return a branch with an output as a row of ``outputs.jsonl``."""
    return {
        **_columns(branch),
        **place(branch),
        "output": branch.value,
        **ending(branch),
        **_figures(branch),
    }


def error_row(branch: Output[Any]) -> dict[str, Any]:
    """Return a failed branch as a row of ``errors.jsonl``."""
    return {
        **_columns(branch),
        **place(branch),
        "kind": (branch.kind or ErrorKind.INTERNAL).value,
        "message": branch.message or "",
        "attempts": branch.attempts,
        "finish_reason": branch.finish_reason,
        **_steps(branch),
        **_votes(branch),
    }


def call_row(error: ReduceError) -> dict[str, Any]:
    """Return a failed call of a reduce as a row of ``errors.jsonl``: it has no ``index``."""
    return {
        "index": None,
        "reduce": error.reduce,
        "group": error.group,
        "kind": error.kind.value,
        "message": error.message,
        "attempts": error.attempts,
    }


def stream_row(branch: Output[Any]) -> dict[str, Any]:
    """Return a branch as a line of ``--stream``: a failed one has ``error_kind`` and ``error``."""
    if branch.kind is None:
        return output_row(branch)
    return {
        **_columns(branch),
        **place(branch),
        "output": None,
        "error_kind": branch.kind.value,
        "error": branch.message or "",
        **ending(branch),
        **_figures(branch),
    }


def full_row(branch: Output[Any]) -> dict[str, Any]:
    """Return a branch, failed or not, as a row of ``Result.to_dict``."""
    return {
        **place(branch),
        "output": branch.value,
        **ending(branch),
        **_figures(branch),
        "kind": None if branch.kind is None else branch.kind.value,
        "message": branch.message,
        "columns": branch.columns,
    }


def _columns(branch: Output[Any]) -> dict[str, Cell]:
    taken = OWN_KEYS if branch.samples is None else OWN_KEYS | _VOTE_KEYS
    if branch.confidence is not None:
        taken |= {"confidence"}
    if branch.lane is not None:
        taken |= {"lane"}
    if branch.title is not None:
        taken |= {"title", "subtask"}
    taken |= _steps(branch).keys()
    return {free_name(name, taken): cell for name, cell in source_cells(branch).items()}


def place(branch: Output[Any]) -> dict[str, Any]:
    """Return where a branch is in the input, as the first keys of fanout's in its row."""
    fields = {name: getattr(branch, name) for name in _PLACE}
    if branch.has_fallback:
        fields["asked_model"] = branch.asked_model
    if branch.pages:
        fields["pages"] = branch.pages
    if branch.headings:
        fields["headings"] = branch.headings
    if branch.title is not None:
        fields["title"] = branch.title
        if branch.subtask:
            fields["subtask"] = branch.subtask
    return fields


def ending(branch: Output[Any]) -> dict[str, Any]:
    """Return why the answer of a branch ended, and how sure the model was, where that is known."""
    fields: dict[str, Any] = {"finish_reason": branch.finish_reason}
    if branch.lane is not None:
        fields["lane"] = branch.lane
    if branch.confidence is not None:
        fields["confidence"] = branch.confidence
    return fields | _steps(branch)


def _steps(branch: Output[Any]) -> dict[str, Any]:
    fields: dict[str, Any] = {"steps": branch.steps} if branch.step_records else {}
    if branch.is_rejected is not None:
        fields["rejected"] = branch.is_rejected
    if branch.is_best is not None:
        fields["is_best"] = branch.is_best
    if branch.has_rank:
        fields["rank"] = branch.rank
    if branch.passages is not None:
        fields["passages"] = _passages(branch)
    return fields


def _passages(branch: Output[Any]) -> Any:
    """Return the passages of a branch as JSON, by step if it has steps."""
    if not branch.step_records:
        return _listed(branch.passages or ())
    counts = last_answers(branch.step_records)
    return {
        one.name: _listed(one.passages)
        for one in branch.step_records
        if one.passages and (one.name in counts or one.output is None)
    }


def _listed(passages: Sequence[PassageUse]) -> list[Any]:
    return [msgspec.to_builtins(one) for one in passages]


def _figures(branch: Output[Any]) -> dict[str, Any]:
    return {
        "attempts": branch.attempts,
        "elapsed_s": round(branch.elapsed_s, 4),
        "usage": branch.usage.to_dict(),
        "cached": branch.cached,
        "saved_usd": rounded_usd(branch.saved_usd),
        **_votes(branch),
    }


def _votes(branch: Output[Any]) -> dict[str, Any]:
    if branch.samples is None:
        return {}
    return {"votes": branch.votes, "share": branch.share, "samples": branch.samples}
