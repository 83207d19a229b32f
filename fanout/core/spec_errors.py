"""The errors of a job's fields, in plain words."""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING

from fanout.core.errors import SpecError
from fanout.core.field_names import ALIASES, PARTS
from fanout.core.field_words import first_error, shown, wrong_value
from fanout.core.model_names import ANY_MODEL
from fanout.core.reduce_errors import reduce_error
from fanout.core.reduce_fields import ReduceSpec
from fanout.core.step_errors import step_error
from fanout.core.steps import StepSpec

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydantic import BaseModel, ValidationError
    from pydantic_core import ErrorDetails

__all__ = ["spec_error"]


def spec_error(
    error: ValidationError,
    spec: type[BaseModel],
    parts: Mapping[str, type[BaseModel]],
    *,
    part: str | None = None,
    given: Mapping[str, object] | None = None,
) -> SpecError:
    """Return the error of a field.

    Args:
        error: What pydantic says.
        spec: The job's model.
        parts: The models of its fields that have fields of their own.
        part: The field that was given alone, if it is one of these.
        given: The fields of the job as they were given.
    """
    first = first_error(error)
    found = (
        step_error(first, given, StepSpec, spec)
        or reduce_error(first, given, ReduceSpec, spec)
        or _field_error(first, spec, parts, part)
    )
    unquoted = _unquoted(first["input"]) if first["type"] == "string_type" else None
    return found if unquoted is None else SpecError(unquoted, field=found.field)


def _field_error(
    first: ErrorDetails,
    spec: type[BaseModel],
    parts: Mapping[str, type[BaseModel]],
    part: str | None,
) -> SpecError:
    # The price of any model has no name there.
    path = ((part,) if part else ()) + first["loc"]
    field = ".".join(str(name) for name in path if name != ANY_MODEL)
    if first["type"] == "value_error":
        message = first["msg"].removeprefix("Value error, ")
        if field:
            got = "" if "(got " in message else f" (got {shown(first['input'])})"
            return SpecError(message + got, field=field)
        # An error of a model validator, which has the field in its message.
        field, _, message = message.partition(": ")
        return SpecError(message, field=field)
    if first["type"] == "extra_forbidden":
        return SpecError(_unknown_field(field, spec, parts), field=field)
    if first["type"] == "missing":
        return SpecError("is required", field=field)
    return SpecError(f"{wrong_value(first)} (got {shown(first['input'])})", field=field)


_BRACES = (
    "must be text, but YAML reads a value that begins with { as a mapping: put it in quotes, as "
    "'{input}', or in a block after |"
)
_COLON = (
    "must be text, but YAML reads a text with a colon and a space as a mapping: put it in quotes, or "
    "in a block after | (got {value})"
)


def _unquoted(value: object) -> str | None:
    """Return what is wrong with a mapping that YAML reads from a text; None if it is none."""
    if not isinstance(value, dict) or not value:
        return None
    if all(one is None for one in value.values()):
        return _BRACES
    is_text = len(value) == 1 and all(isinstance(one, str) for one in value.values())
    return _COLON.format(value=shown(value)) if is_text else None


# They say what becomes of the answers of one call of the command.
_OPTIONS_OF_RUN = (
    "broker_url",
    "dry_run",
    "force",
    "json",
    "out",
    "out_mode",
    "quiet",
    "report",
    "stream",
    "wide",
    "yes",
)


def _unknown_field(field: str, spec: type[BaseModel], parts: Mapping[str, type[BaseModel]]) -> str:
    option = field.lstrip("-").replace("-", "_")
    if option in _OPTIONS_OF_RUN:
        flag = f"--{option.replace('_', '-')}"
        return f"there is no such field: {flag} is an option of the command `fanout run`"
    known = parts.get(field.partition(".")[0], spec).model_fields
    others = () if "." in field else (*ALIASES, *PARTS)
    near = get_close_matches(field.rpartition(".")[2], [*known, *others], n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"there is no such field{hint} (known: {', '.join(sorted(known))})"
