"""The ways that a branch may take through its steps: a pure function of the steps."""

from __future__ import annotations

from collections import Counter
from itertools import product
from math import prod
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from fanout.core.steps import StepSpec

__all__ = ["Route", "Runs", "routes_of", "runs_at_most"]

# With more combinations of answers, there are two ways: all steps run, and those without a condition.
_MOST = 1_024


class Runs(msgspec.Struct, frozen=True):
    """How often a step runs in a branch: at least, likely, and at most."""

    low: float = 1.0
    likely: float = 1.0
    high: float = 1.0


class Route(msgspec.Struct, frozen=True, kw_only=True):
    """One way through the steps.

    Attributes:
        share: How likely it is, if all answers of a condition are as likely.
        runs: How often each step runs, by name; one that does not run is not there.
    """

    share: float
    runs: dict[str, Runs]


def routes_of(steps: Sequence[StepSpec]) -> list[Route]:
    """Return the ways through steps, each once.

    Which share of the branches takes which is not known before they have run.
    """
    answers = _answers(steps)
    if prod(map(len, answers.values())) > _MOST:
        found = Counter({_always(steps): 1, tuple(step.name for step in steps): 1})
    else:
        found = Counter(
            _running(steps, dict(zip(answers, given, strict=True)))
            for given in product(*answers.values())
        )
    return [
        Route(share=count / found.total(), runs=_runs(steps, names))
        for names, count in found.items()
    ]


def _answers(steps: Sequence[StepSpec]) -> dict[str, tuple[str | None, ...]]:
    """Return the answers that conditions tell apart, by what they look at; None is any other one."""
    places = {step.name: step for step in steps}
    found: dict[str, tuple[str | None, ...]] = {}
    for step in steps:
        for name, values in step.when.items():
            choices = places[name.partition(".")[0]].choices
            seen = tuple(one for one in found.get(name, ()) if one is not None)
            found[name] = choices or tuple(dict.fromkeys((*seen, *values, None)))
    return found


def _running(steps: Sequence[StepSpec], answers: Mapping[str, str | None]) -> tuple[str, ...]:
    names: list[str] = []
    for step in steps:
        is_met = all(
            name.partition(".")[0] in names and answers[name] in values
            for name, values in step.when.items()
        )
        if is_met and (step.judge is None or step.judge in names):
            names.append(step.name)
    return tuple(names)


def _always(steps: Sequence[StepSpec]) -> tuple[str, ...]:
    names: list[str] = []
    for step in steps:
        if not step.when and (step.judge is None or step.judge in names):
            names.append(step.name)
    return tuple(names)


def _runs(steps: Sequence[StepSpec], names: Sequence[str]) -> dict[str, Runs]:
    running = [step for step in steps if step.name in names]
    found = {}
    for step in running:
        most = runs_at_most(running, step)
        found[step.name] = Runs(1, (1 + most) / 2, most)
    return found


def runs_at_most(steps: Sequence[StepSpec], step: StepSpec) -> int:
    """Return how often a step runs at most, as judges send answers back."""
    places = {one.name: place for place, one in enumerate(steps)}
    own = places[step.name]
    return 1 + sum(
        judge.rounds - 1
        for judge in steps
        if judge.judge is not None and places[judge.judge] <= own <= places[judge.name]
    )
