"""The fields of a job whose outputs a model compares: ``criteria`` and ``judge_model``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from fanout.core.fold_fields import RERANK, FoldFields
from fanout.core.spec_fields import NUMBER, Criteria

__all__ = ["COMPARISON_SCHEMA", "RESOLUTION_SCHEMA", "ComparisonFields"]

# The reasons come first: what is written before the verdict can still change it.
COMPARISON_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "reasons": {"type": "string"},
        "winner": {"type": "string", "enum": ["A", "B", "tie"]},
    },
    "required": ["reasons", "winner"],
    "additionalProperties": False,
}
RESOLUTION_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"reasons": {"type": "string"}, "same": {"type": "boolean"}},
    "required": ["reasons", "same"],
    "additionalProperties": False,
}
_COMPARING = ("best", "pairwise")
_RANKING = ("rank", "top", "pairwise")


class ComparisonFields(FoldFields):
    """The fields of a job that say how outputs are compared: see RunSpec."""

    criteria: Criteria = ()
    judge_model: Annotated[str | None, Field(min_length=1, max_length=512)] = None
    max_pairs: Annotated[int, Field(ge=1, le=1_000_000), NUMBER] = 10_000

    if TYPE_CHECKING:
        # Of the other fields of a job.
        model: str
        reduce: Any
        aggregate_prompt: str | None
        aggregate_schema: dict[str, Any] | None

    @property
    def reduction(self) -> str:
        """The name of the aggregator: ``reduce``, or the one that follows from the prompts."""
        given: str | None = self.reduce
        if given is None and self.fold == RERANK:
            return RERANK
        return given or ("llm" if self.aggregate_prompt else "none")

    @property
    def compares(self) -> bool:
        """Whether a model compares the outputs, by two."""
        return self.reduction in _COMPARING

    @property
    def resolves(self) -> bool:
        """Whether a model says which values of a field are the same."""
        return self.reduction == "resolve"

    @property
    def judges_pairs(self) -> bool:
        """Whether a model is asked about pairs of outputs, or of values of these."""
        return self.compares or self.resolves

    @property
    def ranks_answers(self) -> bool:
        """Whether the aggregate ranks the outputs."""
        return self.reduction in _RANKING

    @property
    def reduces_by_calls(self) -> bool:
        """Whether calls to a model make the aggregate."""
        return self.reduction == "llm" or self.judges_pairs

    @property
    def judges(self) -> tuple[str, ...]:
        """The model that compares outputs, or values; none if none does."""
        return (self.reduce_model,) if self.judges_pairs else ()

    @property
    def reduce_model(self) -> str:
        """The model that makes the aggregate, if calls do."""
        return self.judge_model or self.model

    @property
    def reduce_schema(self) -> dict[str, Any] | None:
        """The JSON Schema of the answers of the reduce; None is any text."""
        if self.resolves:
            return RESOLUTION_SCHEMA
        return COMPARISON_SCHEMA if self.compares else self.aggregate_schema
