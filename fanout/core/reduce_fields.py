"""The fields of a job that say what becomes of its outputs: one reduce, or a list of several."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, cast, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, model_validator

from fanout.core.aggregate_fields import AggregateFields
from fanout.core.answer_fields import Schema  # noqa: TC001 - pydantic reads it
from fanout.core.comparison_fields import ComparisonFields
from fanout.core.field_words import twice_in
from fanout.core.fold_fields import RERANK, FoldName
from fanout.core.reduce_errors import ReduceFieldError, canonical_reduce
from fanout.core.reduce_rules import own_problem, problem_in
from fanout.core.reduces import RANKING, Reduce, ReduceKind
from fanout.core.spec_fields import NUMBER, PART_CONFIG, pointed

if TYPE_CHECKING:
    from typing import Self

__all__ = ["ReduceFields", "ReduceSpec"]

_KINDS: tuple[str, ...] = get_args(ReduceKind)
# It is a part of names of files, too.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


def _name(value: object) -> object:
    if isinstance(value, str) and not _NAME.fullmatch(value):
        msg = "must be a name of letters, digits, _ and -, which begins with a letter or digit"
        raise ValueError(msg)
    return value


class ReduceSpec(AggregateFields, ComparisonFields):
    """One reduce of several: see RunSpec for its fields, which are those of a job with one reduce.

    Attributes:
        name: Its name, by which the result has its aggregate.
        reduce: The name of the aggregator.
    """

    model_config = PART_CONFIG

    name: Annotated[str, Field(min_length=1, max_length=64), BeforeValidator(_name)]
    reduce: ReduceKind
    aggregate_prompt: str | None = None
    aggregate_max_tokens: Annotated[int | None, Field(ge=1), NUMBER] = None
    aggregate_schema: Schema = None
    group_by: Annotated[str | None, Field(min_length=1), AfterValidator(pointed)] = None
    fold: FoldName = "tree"

    @model_validator(mode="after")
    def _fields_fit_together(self) -> Self:
        problem = own_problem(self)
        if problem is not None:
            field, reason = problem
            raise ReduceFieldError(self.name, field, reason)
        return self


def _listed(value: object) -> object:
    """Return the reduces of a list in the form in which a run stores them."""
    if not isinstance(value, (list, tuple)):
        return value
    return tuple(
        canonical_reduce(one, number, _KINDS) if isinstance(one, Mapping) else one
        for number, one in enumerate(value, 1)
    )


def _spec(one: object) -> ReduceSpec | None:
    """Return a reduce of a list, also of a job that is not checked yet; None if it cannot be read."""
    if isinstance(one, ReduceSpec):
        return one
    try:
        return ReduceSpec.model_validate(canonical_reduce(cast("Any", one), 1, _KINDS))
    except (ValueError, AttributeError):
        return None


def _distinct(reduces: tuple[ReduceSpec, ...]) -> tuple[ReduceSpec, ...]:
    # Files have their names, and some file systems do not tell a from A.
    twice = twice_in([one.name.casefold() for one in reduces])
    if twice is not None:
        raise ReduceFieldError(
            twice,
            "name",
            "two reduces have this name, in which upper and lower case count as the same: give each one "
            "of its own",
        )
    return reduces


class ReduceFields(BaseModel):
    """The field of a job that has several reduces, and what a job with one or several goes by."""

    reduces: Annotated[
        tuple[ReduceSpec, ...], BeforeValidator(_listed), AfterValidator(_distinct)
    ] = ()

    if TYPE_CHECKING:
        # Of the other fields of a job.
        model: str
        reduce: Any
        aggregate_prompt: str | None
        aggregate_max_tokens: int | None
        aggregate_schema: dict[str, Any] | None
        group_by: str | None
        by: tuple[str, ...]
        measures: tuple[str, ...]
        k: int | None
        criteria: tuple[str, ...]
        judge_model: str | None
        max_pairs: int
        fold: FoldName

    @property
    def reduction(self) -> str:
        """The aggregator of a job without a list: ``reduce``, or what follows from the prompts."""
        given: str | None = self.reduce
        if given is None and self.fold == RERANK:
            return RERANK
        return given or ("llm" if self.aggregate_prompt else "none")

    @property
    def reductions(self) -> tuple[Reduce, ...]:
        """The reduces of the job, in order; the only one of a job without a list has no name."""
        if self.reduces:
            specs = filter(None, map(_spec, self.reduces))
            return tuple(self._made(one, one.reduce, one.name) for one in specs)
        if self.reduction == "none":
            return ()
        return (self._made(self, self.reduction),)

    def _made(self, spec: Any, kind: Any, name: str = "") -> Reduce:
        return Reduce(
            name=name,
            kind=kind,
            model=spec.judge_model or self.model,
            group_by=spec.group_by,
            by=spec.by,
            measures=spec.measures,
            k=spec.k,
            prompt=spec.aggregate_prompt,
            max_tokens=spec.aggregate_max_tokens,
            schema=spec.aggregate_schema,
            criteria=spec.criteria,
            max_pairs=spec.max_pairs,
            fold=spec.fold,
        )

    def reduction_of(self, name: str) -> Reduce:
        """Return a reduce by its name. Raises KeyError."""
        return {one.name: one for one in self.reductions}[name]

    @property
    def called_reductions(self) -> tuple[Reduce, ...]:
        """The reduces whose aggregates calls to a model make."""
        return tuple(one for one in self.reductions if one.makes_calls)

    @property
    def compares(self) -> bool:
        """Whether a model compares the outputs, by two."""
        return any(one.compares for one in self.reductions)

    @property
    def judges_pairs(self) -> bool:
        """Whether a model is asked about pairs of outputs, or of values of these."""
        return any(one.judges_pairs for one in self.reductions)

    @property
    def resolves(self) -> bool:
        """Whether a model says which values of a field are the same."""
        return any(one.resolves for one in self.reductions)

    @property
    def refines(self) -> bool:
        """Whether an LLM aggregate is made by calls that follow each other."""
        return any(one.refines for one in self.reductions)

    @property
    def clusters(self) -> bool:
        """Whether the first calls of an LLM aggregate see answers that are alike."""
        return any(one.clusters for one in self.reductions)

    @property
    def has_grouped_clusters(self) -> bool:
        """Whether answers that are alike are found within each group of a reduce."""
        return any(one.clusters and one.has_partitions for one in self.reductions)

    @property
    def reduces_by_calls(self) -> bool:
        """Whether calls to a model make an aggregate."""
        return bool(self.called_reductions)

    @property
    def ranks_answers(self) -> bool:
        """Whether the only aggregate ranks the outputs, so that each has a rank."""
        return not self.reduces and self.reduction in RANKING

    @property
    def finds_best(self) -> bool:
        """Whether the only aggregate has the best output of each chunk."""
        return not self.reduces and self.reduction == "best"

    @property
    def judges(self) -> tuple[str, ...]:
        """The models that compare outputs or values, each once."""
        return tuple(dict.fromkeys(one.model for one in self.reductions if one.judges_pairs))

    @property
    def reduce_models(self) -> tuple[str, ...]:
        """The models that make aggregates, each once."""
        return tuple(dict.fromkeys(one.model for one in self.called_reductions))

    @property
    def has_judge_model(self) -> bool:
        """Whether a reduce asks another model than that of the job."""
        return bool(self.judge_model) or any(one.judge_model for one in self.reduces)

    @property
    def has_reduce_schema(self) -> bool:
        """Whether the answers of a reduce have a JSON Schema."""
        return any(one.call_schema is not None for one in self.called_reductions)

    @property
    def field_beside_reduces(self) -> str | None:
        """The first field of a single reduce that a job with a list has; None if it has none."""
        own = [name for name in ReduceSpec.model_fields if name not in ("name", "reduce")]
        fields = type(self).model_fields
        given = (name for name in own if getattr(self, name) != fields[name].default)
        return next(given, None) if self.reduces else None

    @property
    def reduce_problem(self) -> str | None:
        """The field of a reduce of a list that does not fit the job, and why; None if all fit."""
        for one in self.reductions if self.reduces else ():
            problem = problem_in(self, one)
            if problem is not None:
                return f"{one.field(problem[0])}: {problem[1]}"
        return None
