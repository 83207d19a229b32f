"""Which models a job asks, and how they are named in messages."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

from fanout.core.prices import unasked_prices

__all__ = ["JobModels"]


class JobModels:
    """The models that a job asks, by its fields: see RunSpec."""

    if TYPE_CHECKING:
        # Of the fields of a job. With a base of pydantic, type checkers would take all of these for fields.
        model: Any
        models: Any
        fallback: Any
        price: Any
        judges: Any
        functions: Any
        step_models: Any
        split_models: Any
        retrieval_functions: Any
        embed_functions: Any
        has_judge_model: Any

    @property
    def all_models(self) -> tuple[str, ...]:
        """All models that a run may call, each once: those that are asked first, then the others."""
        first = (*(self.models or (self.model,)), *self.step_models, *self.split_models)
        return tuple(dict.fromkeys((*first, *self.judges, *self.fallback)))

    @property
    def all_called(self) -> tuple[str, ...]:
        """All models and functions that a run may call."""
        return (*self.all_models, *self.functions, *self.retrieval_functions, *self.embed_functions)

    @cached_property
    def is_by_model(self) -> bool:
        """Whether the calls of a run go to several models."""
        return bool(self.models or self.fallback or self.step_models or self.has_judge_model)

    @property
    def _single_model(self) -> tuple[str | None, ...]:
        return (None if self.models else self.model,)

    @property
    def named_models(self) -> str:
        """The models as one text: those that are asked first, those of steps, then the fallback."""
        named = {"steps": self.step_models, "fallback": self.fallback}
        others = "; ".join(
            f"{what}: {', '.join(models)}" for what, models in named.items() if models
        )
        return ", ".join(self.models or (self.model,)) + (f" ({others})" if others else "")

    @property
    def asked_models(self) -> str:
        """All models that a run may call, as one text."""
        return ", ".join(self.all_models)

    @property
    def unasked_models(self) -> str:
        """The models that the job gives prices of and does not ask, as one text."""
        return ", ".join(unasked_prices(self.price, self.all_models))
