"""What is wrong with a step, by its name and field, and the values that YAML reads as something else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date
from difflib import get_close_matches
from typing import TYPE_CHECKING

from fanout.core.errors import SpecError
from fanout.core.field_names import ALIASES
from fanout.core.field_words import shown, wrong_value
from fanout.core.item_errors import ItemError, ItemWords, item_error, item_path

if TYPE_CHECKING:
    from pydantic import BaseModel
    from pydantic_core import ErrorDetails

__all__ = ["IN_QUOTES", "StepError", "is_unquoted", "step_error", "unquoted_conditions"]

IN_QUOTES = (
    "put it in quotes, as YAML reads yes, no, on, off, null, 1.50 and 2026-01-31 as other values"
)
_STEPS = "steps"


class StepError(ItemError):
    """A field of a step is wrong."""


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
        return SpecError(cause.reason, field=item_path(_STEPS, cause.item, cause.field))
    words = ItemWords(
        one="step",
        field=_STEPS,
        names=(_STEPS,),
        example="name and prompt",
        is_name=str.isidentifier,
        of_all=_of_all,
        unknown=lambda field: _unknown(field, step, job),
        wrong=_wrong_field,
        inner=_inner,
    )
    return item_error(first, fields, words)


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
    return message


def _inner(where: tuple[int | str, ...]) -> tuple[int | str, ...]:
    """Return the place in a step; one value of a condition has no number."""
    return where[:2] if where[:1] == ("when",) else where


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
