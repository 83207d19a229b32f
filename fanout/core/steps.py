"""The steps of a branch: named calls that follow each other, as a job gives them."""

from __future__ import annotations

import keyword
import re
from difflib import get_close_matches
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    Field,
    ValidationInfo,
    model_validator,
)

from fanout.core.answer_fields import Choices, SchemaField
from fanout.core.answer_parts import known_fields, missing_in
from fanout.core.field_words import twice_in
from fanout.core.retrieval_fields import StepRetrieveFields
from fanout.core.spec_fields import NUMBER, PART_CONFIG, Criteria
from fanout.core.step_answers import is_last_way, is_single, possible_values
from fanout.core.step_errors import IN_QUOTES, StepError, unquoted_conditions

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Self

__all__ = [
    "OWN_NAMES",
    "VERDICT_SCHEMA",
    "StepFields",
    "StepSpec",
    "final_steps",
]

_DEFAULT_ROUNDS = 3
# What templates of steps have for other things than answers of steps.
OWN_NAMES = frozenset({
    "input", "document", "index", "aspect", "sample", "pages", "headings", "context", "before", "after",
    "task", "answer", "criteria", "column", "fanout",
})  # fmt: skip
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

# The reasons come first: what is written before the verdict can still change it.
VERDICT_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "reasons": {"type": "string"},
        "pass": {"type": "boolean"},
        "score": {"type": "integer", "minimum": 0, "maximum": 10},
        "feedback": {"type": "string"},
    },
    "required": ["reasons", "pass", "score", "feedback"],
    "additionalProperties": False,
}


def _name(value: object) -> object:
    if not isinstance(value, str):
        return value
    if not _NAME.fullmatch(value) or keyword.iskeyword(value):
        msg = "must be a name of letters, digits and _, which does not begin with a digit"
        if _NAME.fullmatch(value):
            msg = "is a word of Python; choose another one"
        raise ValueError(msg)
    if value in OWN_NAMES:
        msg = f"is a name of fanout's own ({', '.join(sorted(OWN_NAMES))}); choose another one"
        raise ValueError(msg)
    return value


def _function(value: object) -> object:
    if callable(value):
        msg = "must be package.module:function; only ParallelCalls takes a function itself"
        raise ValueError(msg)  # noqa: TRY004 - as pydantic wants it
    if not isinstance(value, str) or value.startswith("callable:"):
        # ParallelCalls has registered a function under such a name.
        return value
    module, _, name = value.partition(":")
    if not name.isidentifier() or not all(part.isidentifier() for part in module.split(".")):
        msg = "must be package.module:function"
        raise ValueError(msg)
    return value


def _conditions(value: object, info: ValidationInfo) -> object:
    """Return the values of each condition as texts, as templates have them."""
    if not isinstance(value, dict):
        return value
    # A run that is stored may have them.
    if not value and info.mode != "json":
        msg = "must not be empty: name an earlier step and its answers, as {kind: bill}, or leave it out"
        raise ValueError(msg)
    return {name: tuple(map(_text, _listed(some))) for name, some in value.items()}


def _listed(value: object) -> list[object]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _text(value: object) -> object:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, (int, float)) else value


class StepSpec(SchemaField, StepRetrieveFields):
    """One step of a branch.

    Attributes:
        name: Its name, by which later prompts have its answer: ``{NAME}`` or ``{NAME.field}``.
        prompt: The template of its prompt; a step with ``judge`` has one of its own.
        function: ``package.module:function`` in place of a prompt: it takes a mapping of ``input``,
            ``document``, the columns and the earlier answers, and returns the answer. ``ParallelCalls``
            also takes a function itself.
        model: The model that it asks; None is that of the branch.
        system: The system prompt; None is that of the job.
        temperature: Sampling temperature; None is that of the job.
        max_tokens: The longest answer, in tokens; None is that of the job.
        schema: The JSON Schema of its answer, or in Python a type.
        choices: The labels of which its answer is one.
        when: It runs only if the answers of earlier steps are among these values, by the name of the
            step, or by ``STEP.field``.
        judge: The earlier step that it judges; an answer that does not pass goes back to that step with
            the feedback.
        criteria: What the judge goes by.
        max_rounds: How often an answer is made and judged, at most; None is 3.
        retrieve: Where the passages of its ``{context}`` come from; None is as the job says.
        top_k: The most passages; None is as the job says.
        query: The template of what is looked for, which may have earlier answers; None is as the job
            says.
    """

    model_config = PART_CONFIG

    name: Annotated[str, Field(max_length=128), BeforeValidator(_name)]
    prompt: Annotated[str | None, Field(min_length=1)] = None
    function: Annotated[str | None, BeforeValidator(_function)] = None
    model: Annotated[str | None, Field(min_length=1, max_length=512)] = None
    system: str | None = None
    temperature: Annotated[float | None, Field(ge=0, le=2), NUMBER] = None
    max_tokens: Annotated[int | None, Field(ge=1), NUMBER] = None
    choices: Choices = ()
    when: Annotated[dict[str, tuple[str, ...]], BeforeValidator(_conditions)] = Field(
        # None are not stored: they cannot be given.
        default_factory=dict,
        exclude_if=lambda when: not when,
    )
    judge: str | None = None
    criteria: Criteria = ()
    max_rounds: Annotated[int | None, Field(ge=1, le=20), NUMBER] = None

    @model_validator(mode="after")
    def _fields_fit_together(self) -> Self:
        for problem in (*self._problems(), *self.retrieval_problems):
            field, _, reason = problem.rpartition(": ")
            raise StepError(self.name, field, reason)
        return self

    def _problems(self) -> Iterator[str]:
        if self.judge is None:
            if not self.prompt and not self.function:
                yield "needs a prompt, a function, or judge with criteria"
            if self.criteria:
                yield "criteria: has no effect without judge, which names the step to judge"
            if self.max_rounds is not None:
                yield "max_rounds: has no effect without judge, which names the step to judge"
        else:
            if not self.criteria and not self.prompt:
                yield "criteria: is required for a step with judge (or a prompt of its own)"
            if self.schema or self.choices:
                name = "schema" if self.schema else "choices"
                yield f"{name}: a judge answers with reasons, pass, score and feedback; leave it out"
        if self.function and (self.prompt or self.judge):
            yield "function: give a function, or a prompt or judge, and not both"
        asked = ("model", "system", "temperature", "max_tokens")
        given = [name for name in asked if getattr(self, name) is not None]
        if self.function and given:
            yield f"{given[0]}: has no effect on a function; leave it out"
        if self.schema and self.choices:
            yield "choices: give either schema or choices, and not both"

    @property
    def answer_schema(self) -> dict[str, Any] | None:
        """The JSON Schema of its answer; None where it is a text or a label."""
        return VERDICT_SCHEMA if self.judge is not None else self.schema

    @property
    def has_shape(self) -> bool:
        """Whether its answer is a label, or has a schema."""
        return bool(self.choices) or self.answer_schema is not None

    @property
    def is_text(self) -> bool:
        """Whether its answer is any text of a model."""
        return not self.has_shape and self.function is None

    @property
    def rounds(self) -> int:
        """How often an answer is made and judged, at most."""
        return self.max_rounds or _DEFAULT_ROUNDS

    @property
    def is_json(self) -> bool:
        """Whether its answer is stored as JSON."""
        return self.answer_schema is not None


def _steps(value: object) -> object:
    if not isinstance(value, (list, tuple)):
        return value
    twice = twice_in([_value_of(one, "name") for one in value])
    if twice is not None:
        raise StepError(twice, "name", "is the name of two steps; each has one of its own")
    unquoted_conditions(value)
    return value


def _value_of(one: object, name: str) -> object:
    """Return a field of a step, which may not be validated yet."""
    return one.get(name) if isinstance(one, dict) else getattr(one, name, None)


def _values(name: str, steps: Sequence[object]) -> tuple[str, ...]:
    found = (_value_of(step, name) for step in steps)
    return tuple(dict.fromkeys(one for one in found if isinstance(one, str)))


def _in_order(steps: tuple[StepSpec, ...]) -> tuple[StepSpec, ...]:
    earlier: dict[str, StepSpec] = {}
    for step in steps:
        _require_conditions(step, earlier)
        _require_judged(step, earlier)
        earlier[step.name] = step
    return steps


def _require_conditions(step: StepSpec, earlier: dict[str, StepSpec]) -> None:
    for condition, values in step.when.items():
        name, _, path = condition.partition(".")
        _require_earlier(step, name, earlier, "when")
        problem = _condition_problem(earlier[name], name, path, values)
        if problem is not None:
            raise StepError(step.name, f"when.{condition}", problem)


def _condition_problem(
    other: StepSpec, name: str, path: str, values: tuple[str, ...]
) -> str | None:
    """Return why a condition on the answer of a step never holds; None if it may."""
    if not values:
        return "has no values"
    if other.choices and path:
        return f"step {name!r} answers with a label, which has no field {path!r}"
    missing = missing_in(other.answer_schema, path)
    if missing:
        listed = ", ".join(known_fields(other.answer_schema or {})) or "none"
        return f"the answer of step {name!r} has no field {missing!r} (its fields: {listed})"
    if not path and other.is_json and not is_single(other):
        return f"step {name!r} answers with JSON: name a field of it, as {name}.FIELD"
    possible = possible_values(other, path)
    unknown = [one for one in values if possible and one not in possible]
    if not unknown:
        return None
    quotes = f"; {IN_QUOTES}" if unknown[0] in ("true", "false") else ""
    what = "its choices" if other.choices else path or "its answers"
    return f"step {name!r} never answers {unknown[0]!r} ({what}: {', '.join(possible)}){quotes}"


def _require_judged(step: StepSpec, earlier: dict[str, StepSpec]) -> None:
    if step.judge is None:
        return
    _require_earlier(step, step.judge, earlier, "judge")
    judged = earlier[step.judge]
    if judged.judge is not None or judged.function is not None:
        what = (
            "a judge itself" if judged.judge is not None else "a function, which takes no feedback"
        )
        raise StepError(step.name, "judge", f"step {judged.name!r} is {what}")


def _require_earlier(step: StepSpec, name: str, earlier: dict[str, StepSpec], field: str) -> None:
    if name not in earlier:
        known = ", ".join(earlier) or "none"
        near = get_close_matches(name, earlier, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise StepError(
            step.name, field, f"there is no earlier step {name!r}{hint} (earlier: {known})"
        )


class StepFields(BaseModel):
    """The fields of a job that say which calls a branch makes: ``steps``, ``output``, ``on_rejected``."""

    steps: Annotated[tuple[StepSpec, ...], BeforeValidator(_steps), AfterValidator(_in_order)] = ()
    output: Annotated[str | None, Field(min_length=1, max_length=128)] = None
    on_rejected: Literal["keep", "fail"] = "keep"

    @property
    def step_problem(self) -> str | None:
        """Why the steps do not fit ``output``; None if they do."""
        if self.output is None or not self.steps:
            return None
        found = {step.name: step for step in self.steps}.get(self.output)
        if found is None:
            known = ", ".join(step.name for step in self.steps if step.judge is None) or "none"
            return f"there is no step {self.output!r} (known: {known})"
        if found.judge is not None:
            return f"step {self.output!r} is a judge; name the step that it judges, {found.judge!r}"
        return None

    @property
    def has_judge(self) -> bool:
        """Whether a step judges the answers of another one."""
        return any(step.judge is not None for step in self.steps)

    @property
    def step_names(self) -> tuple[str, ...]:
        """The names of the steps, in their order."""
        return tuple(step.name for step in self.steps)

    @property
    def functions(self) -> tuple[str, ...]:
        """The functions of steps, each once."""
        return _values("function", self.steps)

    @property
    def step_models(self) -> tuple[str, ...]:
        """The models of steps that have their own, each once."""
        return _values("model", self.steps) if self.steps else ()

    @cached_property
    def final_steps(self) -> list[StepSpec]:
        """The steps of which one gives the output of a branch; empty if there are no steps."""
        return final_steps(self.steps, self.output)


def final_steps(steps: Sequence[StepSpec], output: str | None) -> list[StepSpec]:
    """Return the steps of which one gives the output of a branch.

    Args:
        steps: The steps of the job.
        output: The step that the job names, or None.
    """
    if output is not None:
        return [step for step in steps if step.name == output]
    found: list[StepSpec] = []
    by_name = {step.name: step for step in steps}
    left: dict[str, set[str]] = {}
    for step in reversed(steps):
        if step.judge is not None:
            continue
        found.append(step)
        if not step.when or is_last_way(step, by_name, left):
            break
    return found[::-1]
