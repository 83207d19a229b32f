"""The kinds of calls that the branches of a job make: one, or one for each step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from fanout.core.spec import RunSpec
    from fanout.core.steps import StepSpec

__all__ = ["Ask", "asks_of", "first_models"]


class Ask(NamedTuple):
    """A kind of call.

    Attributes:
        step: The step that makes it; None in a job without steps.
        models: The models that are asked first: each branch asks one of them.
        system: The system prompt.
        max_tokens: The longest answer, in tokens; None for no limit.
        schema: The JSON Schema of its answer; None where it is a text or a label.
        choices: The labels of which its answer is one.
    """

    step: StepSpec | None
    models: tuple[str, ...]
    system: str | None
    max_tokens: int | None
    schema: dict[str, Any] | None
    choices: tuple[str, ...]


def asks_of(spec: RunSpec) -> list[Ask]:
    """Return the kinds of calls of a job's branches, in order; a function makes none."""
    first = spec.models or (spec.model,)
    if not spec.steps:
        return [Ask(None, first, spec.system, spec.max_tokens, spec.schema, spec.choices)]
    return [
        Ask(
            step=step,
            models=first if step.model is None else (step.model,),
            system=spec.system if step.system is None else step.system,
            max_tokens=spec.max_tokens if step.max_tokens is None else step.max_tokens,
            schema=step.answer_schema,
            choices=step.choices,
        )
        for step in spec.steps
        if step.function is None
    ]


def first_models(spec: RunSpec) -> tuple[str, ...]:
    """Return the models that branches and the reduce ask first, each once."""
    found = [model for ask in asks_of(spec) for model in ask.models]
    return tuple(dict.fromkeys((*found, *spec.reduce_models)))
