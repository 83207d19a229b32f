"""The answers of steps, as the prompts, conditions and functions of later steps have them."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import msgspec

from fanout.core.cells import cell_text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from fanout.core.records import StepOutcome
    from fanout.core.steps import StepSpec

__all__ = [
    "STEPS",
    "answer_fields",
    "answers_of",
    "child_of",
    "is_last_way",
    "is_single",
    "last_answers",
    "likely_answer",
    "may_not_run",
    "possible_values",
    "step_of",
    "step_text",
    "value_of",
    "whole_text",
]

# What is before the name of a step where an answer is meant that may not be the output.
STEPS = "steps."
_SINGLE = ("string", "integer", "number", "boolean")
# A branch looks at its answers several times, and soon.
_KEPT = 1_024


@lru_cache(maxsize=_KEPT)
def _decoded(answer: str) -> Any:
    return msgspec.json.decode(answer)


def child_of(value: Any, name: str) -> Any:
    """Return a field of a mapping, or the element of a list that a number names.

    Raises:
        KeyError: There is none.
    """
    if isinstance(value, dict) and name in value:
        return value[name]
    if isinstance(value, list) and name.isdecimal() and int(name) < len(value):
        return value[int(name)]
    raise KeyError(name)


def value_of(answer: str, path: str) -> Any:
    """Return a field of an answer in JSON; points separate the steps to a nested one, "" is all of it.

    Raises:
        KeyError: There is no such field, or the answer is no JSON.
    """
    try:
        value = _decoded(answer)
        for name in path.split(".") if path else ():
            value = child_of(value, name)
    except (msgspec.DecodeError, KeyError):
        raise KeyError(path) from None
    return value


def last_answers(done: Sequence[StepOutcome]) -> dict[str, StepOutcome]:
    """Return the steps whose answers count, by name: those that no judge has sent back.

    A step that runs again takes the answers of those behind it along, as they went by its answer.
    """
    found: dict[str, StepOutcome] = {}
    for one in done:
        if one.name in found:
            for name in [*found][[*found].index(one.name) :]:
                del found[name]
        if one.output is not None:
            found[one.name] = one
    return found


def answers_of(done: Sequence[StepOutcome]) -> dict[str, Any]:
    """Return the answer of each step that counts, by name: text, or a JSON value. See last_answers."""
    return {
        name: msgspec.json.decode(one.output) if one.is_json and one.output else one.output
        for name, one in last_answers(done).items()
    }


def step_of(name: str, steps: Sequence[StepSpec]) -> tuple[StepSpec | None, str]:
    """Return the step that ``steps.NAME.field`` is of, or None, and the path of the field."""
    head, _, path = name.removeprefix(STEPS).partition(".")
    return next((step for step in steps if step.name == head), None), path


def step_text(name: str, answers: Mapping[str, StepOutcome]) -> str:
    """Return what a prompt shows for ``STEP`` or ``STEP.field``; empty if the step has not run.

    Raises:
        KeyError: The answer has no such field.
    """
    step, _, path = name.partition(".")
    answer = answers.get(step)
    if answer is None or answer.output is None:
        return ""
    return cell_text(value_of(answer.output, path)) if path else whole_text(answer)


def whole_text(answer: StepOutcome) -> str:
    """Return an answer as text: a string in JSON without its quotes, other JSON as it is."""
    output = answer.output or ""
    if not answer.is_json or not output.startswith('"'):
        return output
    return cell_text(value_of(output, ""))


def answer_fields(step: StepSpec) -> tuple[str, ...]:
    """Return the names of the fields that the answer of a step has; empty if it has none, or any."""
    schema = step.answer_schema or {}
    return tuple(schema.get("properties") or ())


def possible_values(step: StepSpec, path: str) -> tuple[str, ...]:
    """Return the texts of which the answer of a step is one, or a field of it; empty if any may be.

    Args:
        step: The step.
        path: The field, or empty for the answer itself.
    """
    if step.choices:
        return step.choices
    shape: object = step.answer_schema
    for name in path.split(".") if path else ():
        fields = shape.get("properties") if isinstance(shape, dict) else None
        shape = fields.get(name) if isinstance(fields, dict) else None
    if not isinstance(shape, dict):
        return ()
    if isinstance(shape.get("enum"), list):
        return tuple(cell_text(one) for one in shape["enum"])
    return ("true", "false") if shape.get("type") == "boolean" else ()


def is_single(step: StepSpec) -> bool:
    """Say whether the answer of a step is one text, number or boolean, by its schema."""
    schema = step.answer_schema or {}
    kinds = schema.get("type")
    return "enum" in schema or "const" in schema or (isinstance(kinds, str) and kinds in _SINGLE)


def likely_answer(
    group_by: str | None, steps: Sequence[StepSpec], number: int
) -> dict[str, Any] | None:
    """Return an answer of the step that a job groups by, for an estimate; None if it goes by none.

    Args:
        group_by: What the job groups by.
        steps: Its steps.
        number: The number of the document: the labels are taken in turn.
    """
    if not group_by or not steps or not group_by.startswith(STEPS):
        return None
    step, path = step_of(group_by, steps)
    possible = () if step is None else possible_values(step, path)
    if step is None or not possible:
        return {}
    answer: Any = possible[number % len(possible)]
    for name in reversed(path.split(".") if path else ()):
        answer = {name: answer}
    return {step.name: answer}


def may_not_run(step: StepSpec, steps: Sequence[StepSpec]) -> bool:
    """Say whether a branch may go another way than through a step."""
    return bool(step.when) and not is_last_way(step, {one.name: one for one in steps}, {})


def is_last_way(step: StepSpec, steps: Mapping[str, StepSpec], left: dict[str, set[str]]) -> bool:
    """Say whether one of a step and of those after it runs in any case.

    Args:
        step: A step with conditions.
        steps: All steps, by name.
        left: The answers for which none of those after it runs, by the name of a condition.
    """
    [(condition, values), *others] = step.when.items()
    name, _, path = condition.partition(".")
    possible = possible_values(steps[name], path)
    is_there = not path or path in (steps[name].answer_schema or {}).get("required", ())
    if others or not possible or not is_there or steps[name].when:
        return False
    left.setdefault(condition, {*possible}).difference_update(values)
    return not left[condition]
