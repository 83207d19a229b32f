"""The field of a job that says how its aggregate folds many answers into one: ``fold``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, Field

from fanout.core.own_schemas import SCORED_SCHEMA
from fanout.core.retrieval import is_retrieval_function
from fanout.core.strict_schema import object_properties

__all__ = ["RERANK", "FoldFields", "FoldName", "with_scores"]

FoldName = Literal["tree", "refine", "cluster", "map_rerank"]

RERANK = "map_rerank"
_SCORE = "score"
_SHAPES = ("schema", "choices", "steps", "output_format")


def with_scores(fields: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a job whose answers have scores, if it folds by these, with a schema of such."""
    if fields.get("fold") != RERANK or any(fields.get(name) for name in _SHAPES):
        return fields
    return {**fields, "schema": SCORED_SCHEMA}


def _function(path: str | None) -> str | None:
    if path is not None and not is_retrieval_function(path):
        msg = "must be 'package.module:function' (in Python also the function itself)"
        raise ValueError(msg)
    return path


class FoldFields(BaseModel):
    """The field of a job that says how answers are folded: see RunSpec."""

    fold: FoldName = "tree"
    embed: Annotated[
        str | None, Field(min_length=1, max_length=4_096), AfterValidator(_function)
    ] = None

    @property
    def embed_functions(self) -> tuple[str, ...]:
        """The function that makes vectors of answers, if there is one."""
        return (self.embed,) if self.embed else ()

    if TYPE_CHECKING:
        # Of the other fields of a job.
        by: tuple[str, ...]
        choices: tuple[str, ...]

        @property
        def answer_schema(self) -> dict[str, Any] | None:
            """The JSON Schema of outputs."""

    @property
    def score_problem(self) -> str | None:
        """Why the answers of a job have no score by which the best is found, or None."""
        if self.fold != RERANK or self.by:
            return None
        if self.choices:
            return "choices: are labels, which have no score for fold 'map_rerank'; leave them out"
        fields = object_properties(self.answer_schema or {})
        if fields and _SCORE not in fields:
            listed = ", ".join(fields)
            return f"by: fold 'map_rerank' needs a score: name its field (the schema has {listed})"
        return None
