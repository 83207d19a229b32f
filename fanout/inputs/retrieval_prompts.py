"""Checks of ``{context}`` and of what passages are looked for, against the prompts of a job."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fanout.core.cells import OWN
from fanout.core.errors import PromptError
from fanout.inputs.prompts import Template
from fanout.inputs.step_prompts import StepPrompts

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fanout.core.spec import RunSpec

__all__ = [
    "CONTEXT_NAMES",
    "context_names",
    "has_context",
    "query_template",
    "query_templates",
    "require_context",
    "step_prompts_of",
]

CONTEXT_NAMES = ("context",)  # the passages that were found
_BOTH = frozenset({*CONTEXT_NAMES, *(f"{OWN}{name}" for name in CONTEXT_NAMES)})


def context_names(spec: RunSpec) -> tuple[str, ...]:
    """Return the names that prompts of a job may have for passages."""
    return CONTEXT_NAMES if spec.retrieval_sources else ()


def has_context(template: Template) -> bool:
    """Say whether a prompt has passages, in a job that retrieves some."""
    return not _BOTH.isdisjoint(template.names)


def query_template(spec: RunSpec) -> Template | None:
    """Return the template of what passages are looked for, of a job without steps; None without one.

    Raises:
        PromptError: It has a misplaced brace.
    """
    retrieval = None if spec.steps else spec.retrieval()
    return None if retrieval is None else Template.parse(retrieval.query, field="query")


def step_prompts_of(spec: RunSpec) -> StepPrompts:
    """Return the prompts of a job's steps, with what passages are looked for. Raises PromptError."""
    found = ((step, spec.retrieval(step)) for step in spec.steps if not step.function)
    return StepPrompts(spec.steps, {step.name: one.query for step, one in found if one is not None})


def query_templates(spec: RunSpec) -> list[Template]:
    """Return the templates of what passages are looked for. Raises PromptError."""
    own = query_template(spec)
    return step_prompts_of(spec).own_queries if own is None else [own]


def require_context(spec: RunSpec, templates: Mapping[Any, Template]) -> None:
    """Check that a prompt has passages where they are to be found, and only there.

    Args:
        spec: The job.
        templates: Its prompts; those of steps by name.

    Raises:
        PromptError: None has, or one of a step does for which there are none.
    """
    if not spec.retrieval_sources:
        return
    with_context = {name for name, template in templates.items() if has_context(template)}
    for step in spec.steps:
        if step.name in with_context and spec.retrieval(step) is None:
            raise PromptError(
                "there is no {context}: give the step retrieve, or the job",
                field=f"steps.{step.name}.prompt",
            )
        if step.retrieve is not None and step.name not in with_context:
            raise PromptError(
                "has no effect: the prompt of the step has no {context}, where passages go in",
                field=f"steps.{step.name}.retrieve",
            )
    if not with_context:
        raise PromptError(
            "has no effect: no prompt has {context}, where passages go in", field="retrieve"
        )
