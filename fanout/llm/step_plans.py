"""The layout of the prompts of steps: what several steps of a chunk share comes first where that is cheaper.

A provider's cache begins with the schema and the system prompt, so only steps that have the same ones, and
the same model, share what comes after them: the text of the chunk.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from msgspec import structs

from fanout.core.answer_shape import shape_of
from fanout.core.asks import asks_of
from fanout.inputs.prompt_layout import has_input
from fanout.inputs.step_prompts import StepPrompts
from fanout.llm.prices import price_of
from fanout.llm.prompt_plans import PromptPlan
from fanout.policy.prefixes import cache_rules
from fanout.policy.routes import runs_at_most

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from fanout.core.asks import Ask
    from fanout.core.lanes import Lane
    from fanout.core.records import BranchRef, Chunk
    from fanout.core.spec import RunSpec
    from fanout.core.steps import StepSpec
    from fanout.inputs.prompts import Template
    from fanout.policy.prefixes import CacheRules, PromptCache

__all__ = ["StepPlan", "step_plan_of"]


class StepPlan:
    """The prompts of the steps of one run.

    Args:
        spec: The run's spec.
        prompts: The prompts of its steps.
        rules: How the providers of its models cache prompts, as far as that is known, by model.
    """

    def __init__(
        self, spec: RunSpec, prompts: StepPrompts, rules: Mapping[str, CacheRules]
    ) -> None:
        self._first = spec.steps[0]
        self._plans: dict[str, PromptPlan] = {}
        for asks in _groups(spec, prompts):
            steps = [ask.step for ask in asks if ask.step is not None]
            plan = PromptPlan(
                spec,
                _templates(prompts, steps),
                {model: rules[model] for model in asks[0].models if model in rules},
                system=asks[0].system or "",
                order=spec.prompt_order if _shares(asks[0], prompts) else "as_written",
                varying=frozenset().union(*(prompts.answer_names(step) for step in steps)),
                in_turn=_calls_of(steps),
                rounds=sum(runs_at_most(spec.steps, step) - 1 for step in steps),
            )
            self._plans.update(dict.fromkeys((step.name for step in steps), plan))

    def prompt(
        self,
        step: StepSpec,
        chunk: Chunk,
        ref: BranchRef,
        values: Mapping[str, str],
        *,
        model: str,
        chunks: int,
        lane: Lane,
    ) -> tuple[str, PromptCache | None]:
        """Return the prompt of a step, and what to tell its provider of the cache.

        Args:
            step: The step, which has a prompt.
            chunk: The chunk of the branch.
            ref: Its sample.
            values: The value of each name of the prompt that is no column.
            model: The model that is asked.
            chunks: How many chunks the prompts of about the same time have.
            lane: How the call is bought.

        Raises:
            PromptError: A name has no value.
        """
        of_step = structs.replace(ref, aspect=step.name)
        return self._plans[step.name].prompt(
            chunk, of_step, values, model=model, chunks=chunks, lane=lane
        )

    def families(
        self, chunk: Chunk, ref: BranchRef, *, model: str, chunks: int, lane: Lane
    ) -> tuple[str, ...]:
        """Return names of the prefixes of which one first call should be ahead of the others."""
        step = self._first
        plan = self._plans.get(step.name)
        if plan is None:
            return ()
        of_step = structs.replace(ref, aspect=step.name)
        asked = step.model or model
        return plan.families(chunk, of_step, model=asked, chunks=chunks, lane=lane)


def _groups(spec: RunSpec, prompts: StepPrompts) -> list[list[Ask]]:
    """Return the calls whose prompts may begin alike, and each other call by itself."""
    found: dict[tuple[object, ...], list[Ask]] = {}
    for ask in asks_of(spec):
        shape = shape_of(ask.schema, ask.choices)
        own = None if _shares(ask, prompts) else ask.step
        key = (
            ask.models,
            ask.system,
            None if shape is None else shape.text,
            None if own is None else own.name,
        )
        found.setdefault(key, []).append(ask)
    return list(found.values())


def _shares(ask: Ask, prompts: StepPrompts) -> bool:
    """Say whether a call has the text of the chunk as that of other steps, and is no judge's."""
    step = ask.step
    if step is None or step.judge is not None:
        return False
    template = prompts.templates[step.name]
    return has_input(template, len(template.parts))


def _templates(prompts: StepPrompts, steps: Sequence[StepSpec]) -> dict[str | None, Template]:
    return {step.name: prompts.templates[step.name] for step in steps}


def _calls_of(steps: Sequence[StepSpec]) -> int:
    """Return how many of some steps a branch runs, if it runs one that all branches need not."""
    routes = Counter(frozenset(step.when.items()) for step in steps)
    always = routes.pop(frozenset(), 0)
    return always + max(routes.values(), default=0)


def step_plan_of(spec: RunSpec) -> StepPlan | None:
    """Return the plan of a run with steps; None if its prompts are as their templates are written.

    Raises:
        PromptError: A template is wrong.
        SettingsError: The file of ``FANOUT_PRICES`` cannot be used.
    """
    if not spec.steps:
        return None
    models = dict.fromkeys(model for ask in asks_of(spec) for model in ask.models)
    found = {model: cache_rules(model, price_of(model, spec.price)) for model in models}
    rules = {model: own for model, own in found.items() if own is not None}
    if not rules and spec.prompt_order != "document_first":
        return None
    return StepPlan(spec, StepPrompts(spec.steps), rules)
