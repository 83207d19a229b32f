"""What is wrong with a step, by its name and field, and the values that YAML reads as something else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date
from difflib import get_close_matches
from typing import TYPE_CHECKING

from fanout.core.errors import SpecError
from fanout.core.field_names import ALIASES
from fanout.core.field_words import shown, wrong_value

if TYPE_CHECKING:
    from pydantic import BaseModel
    from pydantic_core import ErrorDetails

__all__ = ["IN_QUOTES", "StepError", "is_unquoted", "step_error", "unquoted_conditions"]

IN_QUOTES = (
    "put it in quotes, as YAML reads yes, no, on, off, null, 1.50 and 2026-01-31 as other values"
)
_STEPS = "steps"


class StepError(ValueError):
    """A field of a step is wrong.

    Args:
        step: The name of the step.
        field: Its field, or empty.
        reason: What is wrong.
    """

    def __init__(self, step: str, field: str, reason: str) -> None:
        super().__init__(
            f"step {step!r}: {field}: {reason}" if field else f"step {step!r}: {reason}"
        )
        self.step = step
        self.field = field
        self.reason = reason


def step_error(
    first: ErrorDetails, fields: Mapping[str, object] | None, step: type[BaseModel],
    job: type[BaseModel],
) -> SpecError | None:  # fmt: skip
    """Return the error of a field of a step; None if the error is of another kind.

    Args:
        first: What pydantic says.
        fields: The fields of the job as they were given.
        step: The model of steps.
        job: The model of the job.
    """
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, StepError):
        return SpecError(cause.reason, field=_path(cause.step, cause.field))
    where = first["loc"]
    if where[:1] != (_STEPS,):
        return None
    if len(where) == 1:
        return SpecError(_of_all(first), field=_STEPS)
    given = (fields or {}).get(_STEPS)
    number = where[1] if isinstance(where[1], int) else 0
    name = _name(given, number)
    field = _path(name or str(number + 1), *map(str, _inner(where[2:])))
    note = "" if name else f" (step {number + 1} of the list)"
    return SpecError(_of_one(first, step, job) + note, field=field)


def _of_one(first: ErrorDetails, step: type[BaseModel], job: type[BaseModel]) -> str:
    where = first["loc"]
    if first["type"] == "extra_forbidden":
        return _unknown(str(where[-1]), step, job)
    if first["type"] == "missing":
        return "is required"
    if len(where) == 2:  # noqa: PLR2004 - the step itself
        return f"must be a mapping of fields, such as name and prompt (got {shown(first['input'])})"
    return _wrong_field(first)


def _of_all(first: ErrorDetails) -> str:
    if first["type"] == "value_error":
        return first["msg"].removeprefix("Value error, ")
    kind = "a mapping" if isinstance(first["input"], Mapping) else type(first["input"]).__name__
    return f"must be a list of steps, each a mapping with a name of its own (got {kind})"


def _wrong_field(first: ErrorDetails) -> str:
    value = first["input"]
    if first["type"] == "string_type" and is_unquoted(value):
        return f"must be text (got {shown(value)}): {IN_QUOTES}"
    message = wrong_value(first)
    if first["type"] == "dict_type" and first["loc"][2:] == ("when",):
        message = "must be a mapping of earlier steps to answers, as {kind: bill}"
    return message if "(got " in message else f"{message} (got {shown(value)})"


def _path(*parts: str) -> str:
    return ".".join([_STEPS, *filter(None, parts)])


def _inner(where: tuple[int | str, ...]) -> tuple[int | str, ...]:
    """Return the place in a step; one value of a condition has no number."""
    return where[:2] if where[:1] == ("when",) else where


def _name(steps: object, number: int) -> str | None:
    if not isinstance(steps, Sequence) or isinstance(steps, str) or number >= len(steps):
        return None
    one = steps[number]
    name = one.get("name") if isinstance(one, Mapping) else getattr(one, "name", None)
    return name if isinstance(name, str) and name.isidentifier() else None


def _unknown(field: str, step: type[BaseModel], job: type[BaseModel]) -> str:
    name, known = field.replace("-", "_"), [*step.model_fields]
    alias = ALIASES.get(name)
    listed = f"(known: {', '.join(sorted(known))})"
    near = [alias] if alias in known else get_close_matches(name, known, n=1)
    is_of_job = name in job.model_fields and name not in known
    if is_of_job or (alias in job.model_fields and not near):
        return f"is a field of the job, and not of a step {listed}"
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"a step has no such field{hint} {listed}"


def is_unquoted(value: object) -> bool:
    """Say whether a value is what YAML makes of some texts without quotes."""
    return value is None or isinstance(value, (bool, float, date))


def unquoted_conditions(steps: Sequence[object]) -> None:
    """Check that no condition on a text or a label is a boolean, as YAML makes of ``yes``.

    Args:
        steps: The steps as they were given.

    Raises:
        StepError: One is.
    """
    shaped = set[object]()
    for one in steps:
        if not isinstance(one, Mapping):
            continue
        when = one.get("when")
        for name, values in when.items() if isinstance(when, Mapping) else ():
            if "." in str(name) or name in shaped:
                # A field, and what a function returns, may be a boolean, or a schema says what it is.
                continue
            listed = values if isinstance(values, (list, tuple)) else [values]
            wrong = [value for value in listed if isinstance(value, bool)]
            if wrong:
                reason = f"must be text (got {wrong[0]!r}): {IN_QUOTES}"
                raise StepError(str(one.get("name")), f"when.{name}", reason)
        if one.get("function") is not None or one.get("schema") is not None:
            shaped.add(one.get("name"))
