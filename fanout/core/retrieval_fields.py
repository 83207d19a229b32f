"""The fields of a job that say where passages for ``{context}`` come from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, BeforeValidator, Field

from fanout.core.retrieval import Retrieval, is_retrieval_function
from fanout.core.spec_fields import NUMBER

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["RetrieveFields", "StepRetrieveFields"]

_MOST_PASSAGES = 1_000
_QUERY = "{input}"


def _query(value: object) -> object:
    if isinstance(value, str) and not value.strip():
        msg = "must not be empty"
        raise ValueError(msg)
    return value


Source = Annotated[str | None, Field(min_length=1, max_length=4_096)]
TopK = Annotated[int | None, Field(ge=1, le=_MOST_PASSAGES), NUMBER]
Query = Annotated[str | None, BeforeValidator(_query)]


class StepRetrieveFields(BaseModel):
    """The fields of a step that take the place of those of its job: see StepSpec."""

    retrieve: Source = None
    top_k: TopK = None
    query: Query = None

    @property
    def retrieval_problems(self) -> list[str]:
        """The fields of these that have no effect on this step, each with the reason."""
        if not getattr(self, "function", None):
            return []
        given = [name for name in ("retrieve", "top_k", "query") if getattr(self, name) is not None]
        return [f"{name}: has no effect on a function; leave it out" for name in given]


class RetrieveFields(BaseModel):
    """The fields of a job that say where passages come from: see RunSpec."""

    retrieve: Source = None
    top_k: Annotated[int, Field(ge=1, le=_MOST_PASSAGES), NUMBER] = 5
    query: Query = None
    passage_tokens: Annotated[int, Field(ge=1), NUMBER] = 200
    passage_column: Annotated[str | None, Field(min_length=1)] = None

    def retrieval(self, step: StepRetrieveFields | None = None) -> Retrieval | None:
        """Return what the ``{context}`` of a step, or of the prompts, is made of; None without one."""
        if step is None:
            source, top_k, query = self.retrieve, None, None
        else:
            source, top_k, query = step.retrieve or self.retrieve, step.top_k, step.query
        if source is None:
            return None
        return Retrieval(source, top_k or self.top_k, query or self.query or _QUERY)

    @property
    def retrieval_sources(self) -> tuple[str, ...]:
        """Where the passages of all prompts come from, each once."""
        # A job whose steps have their own has no use for that of the job.
        found = (self.retrieval(step) for step in self._retrieving)
        return tuple(dict.fromkeys(one.source for one in found if one is not None))

    @property
    def retrieval_functions(self) -> tuple[str, ...]:
        """The functions among them."""
        return tuple(filter(is_retrieval_function, self.retrieval_sources))

    @property
    def has_passage_files(self) -> bool:
        """Whether passages come from files."""
        return len(self.retrieval_functions) < len(self.retrieval_sources)

    @property
    def _retrieving(self) -> Sequence[StepRetrieveFields | None]:
        steps: Any = getattr(self, "steps", ())
        return [one for one in steps if not one.function] if steps else [None]

    @property
    def step_retrieval_problem(self) -> str | None:
        """Why a field of a step about passages has no effect; None if all have one."""
        return next(self._step_problems(), None)

    def _step_problems(self) -> Iterator[str]:
        steps: Any = getattr(self, "steps", ())
        for step in steps:
            for name in ("top_k", "query"):
                if getattr(step, name) is not None and self.retrieval(step) is None:
                    yield f"step {step.name!r}: {name}: has no effect without retrieve"
