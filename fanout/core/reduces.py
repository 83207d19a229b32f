"""A reduce of a job: how the outputs become one aggregate. A job may have several."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import msgspec

from fanout.core.own_schemas import COMPARISON_SCHEMA, RESOLUTION_SCHEMA

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fanout.core.cells import Cell

__all__ = ["RANKING", "Reduce", "ReduceKind", "reduce_name"]

ReduceKind = Literal[
    "concat",
    "merge",
    "vote",
    "rank",
    "top",
    "table",
    "llm",
    "best",
    "pairwise",
    "resolve",
]

_COMPARING = ("best", "pairwise")
RANKING = ("rank", "top", "pairwise")
_MODEL_GROUPS = ("model", "fanout.model")
# The column of a branch of a reduce that names it.
_COLUMN = "reduce"


class Reduce(msgspec.Struct, frozen=True, kw_only=True):
    """All that one reduce goes by.

    Attributes:
        kind: The name of the aggregator.
        model: The model that makes the aggregate, if calls do.
        name: Its name in a list of several; empty for the only one of a job without a list.
        group_by: What makes the groups of which each has an aggregate; None for a single one.
        by: What it goes by: see ``fanout.core.answer_parts``.
        measures: What a table has of each group.
        k: How many answers a ranking has; None is all, or 10 for ``top``.
        prompt: The template of an aggregate by calls; None of others.
        max_tokens: The longest answer of its calls, in tokens; None for no limit.
        schema: The JSON Schema of the aggregate, as the user gave it.
        criteria: What outputs are compared by.
        max_pairs: The most pairs of values that ``resolve`` asks a model about.
        fold: How an aggregate by calls is made of answers that do not fit one prompt.
    """

    kind: ReduceKind | Literal["map_rerank"]
    model: str
    name: str = ""
    group_by: str | None = None
    by: tuple[str, ...] = ()
    measures: tuple[str, ...] = ()
    k: int | None = None
    prompt: str | None = None
    max_tokens: int | None = None
    schema: dict[str, Any] | None = None
    criteria: tuple[str, ...] = ()
    fold: str = "tree"
    max_pairs: int = 10_000

    @property
    def compares(self) -> bool:
        """Whether a model compares the outputs, by two."""
        return self.kind in _COMPARING

    @property
    def resolves(self) -> bool:
        """Whether a model says which values of a field are the same."""
        return self.kind == "resolve"

    @property
    def judges_pairs(self) -> bool:
        """Whether a model is asked about pairs of outputs, or of values of these."""
        return self.compares or self.resolves

    @property
    def refines(self) -> bool:
        """Whether it is made by calls that follow each other."""
        return self.kind == "llm" and self.fold == "refine"

    @property
    def clusters(self) -> bool:
        """Whether the first calls of its tree see answers that are alike."""
        return self.kind == "llm" and self.fold == "cluster"

    @property
    def ranks_answers(self) -> bool:
        """Whether the aggregate ranks the outputs."""
        return self.kind in RANKING

    @property
    def makes_calls(self) -> bool:
        """Whether calls to a model make the aggregate."""
        return self.kind == "llm" or self.judges_pairs

    @property
    def has_frontier(self) -> bool:
        """Whether its calls begin before the branches have ended."""
        return self.kind == "llm" and self.group_by is None

    @property
    def has_partitions(self) -> bool:
        """Whether calls make an aggregate for each of its groups, of which there may be very many."""
        return self.kind == "llm" and self.group_by is not None

    @property
    def is_by_model(self) -> bool:
        """Whether it has a group for each model."""
        return self.group_by in _MODEL_GROUPS

    @property
    def call_schema(self) -> dict[str, Any] | None:
        """The JSON Schema of the answers of its calls; None is any text."""
        if self.resolves:
            return RESOLUTION_SCHEMA
        return COMPARISON_SCHEMA if self.compares else self.schema

    @property
    def columns(self) -> dict[str, Cell]:
        """The columns by which its branches name it."""
        return {_COLUMN: self.name} if self.name else {}

    def field(self, name: str) -> str:
        """Return where a job has a field of this reduce, for messages."""
        return f"reduce.{self.name}.{name}" if self.name else name

    @property
    def words(self) -> str:
        """What messages call it."""
        return f"reduce {self.name}" if self.name else "the reduce"


def reduce_name(columns: Mapping[str, Cell]) -> str:
    """Return the name of the reduce that a branch of a reduce stage belongs to."""
    return str(columns.get(_COLUMN, ""))
