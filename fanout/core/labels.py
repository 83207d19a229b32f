"""Labels: the columns with the right answers, and what of an answer each is compared with."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from pydantic import BeforeValidator

from fanout.core.errors import SpecError
from fanout.core.schema_references import resolved
from fanout.core.step_answers import STEPS, step_of

if TYPE_CHECKING:
    from fanout.core.spec import RunSpec

__all__ = [
    "WHOLE",
    "Compared",
    "Labels",
    "compared",
    "is_boolean",
    "label_columns",
    "label_problem",
]

# The name of an answer as a whole among its fields.
WHOLE = ""


def _labels(value: object) -> object:
    """Return the columns of labels by field; a single column is that of the whole answer."""
    if value is None:
        return {}
    if isinstance(value, str):
        value = {WHOLE: value}
    if isinstance(value, Mapping) and "" in value.values():
        msg = "must be the name of a column, or a mapping of fields to columns"
        raise ValueError(msg)
    return value


Labels = Annotated[dict[str, str], BeforeValidator(_labels)]


class Compared(NamedTuple):
    """What a label is compared with.

    Attributes:
        step: The step of whose answer it is; None is the output.
        field: The field of the answer, or ``WHOLE``.
        schema: The JSON Schema of the answer.
        choices: The labels of which the answer is one.
    """

    step: str | None
    field: str
    schema: dict[str, Any] | None
    choices: tuple[str, ...]


def compared(spec: RunSpec, name: str) -> Compared:
    """Return what a label is compared with, by the name of the field: see ``label_columns``."""
    step, path = step_of(name, spec.steps) if name.startswith(STEPS) else (None, "")
    if step is None:
        return Compared(None, name, spec.answer_schema, spec.answer_choices)
    return Compared(step.name, path or WHOLE, step.answer_schema, step.choices)


def label_columns(spec: RunSpec) -> dict[str, str]:
    """Return the column of the label for each field of an answer; the whole answer is ``WHOLE``.

    The column of a whole answer that is an object is that of the field of its name, or of the only
    field. In a job with steps, ``steps.NAME`` is the answer of a step.

    Raises:
        SpecError: There is no such field, or it is not clear which one is meant.
    """
    found: dict[str, str] = {}
    for name, column in spec.labels.items():
        field = _name(name, column, spec)
        if field in found:
            raise SpecError(f"gives the field {field!r} twice", field="labels")
        found[field] = column
    return found


def label_problem(spec: RunSpec) -> str | None:
    """Return why the labels of a job do not fit its answers; None if they do."""
    try:
        label_columns(spec)
    except SpecError as error:
        return error.reason
    return None


def _name(name: str, column: str, spec: RunSpec) -> str:
    """Return the name of a field, with that of its step if it has one."""
    of = compared(spec, name)
    if of.step is None:
        if spec.steps and name.startswith(STEPS):
            known = ", ".join(STEPS + one for one in spec.step_names)
            raise SpecError(f"there is no step {name!r} (known: {known})", field="labels")
        is_open = any(step.function is not None or step.is_json for step in spec.final_steps)
        is_open = is_open or spec.output_format == "json"
        fields = _answer_fields(of.schema)
        is_known = fields is not None or not _may_have_fields(of, is_open=is_open)
        if name.partition(".")[0] in spec.step_names and is_known and name not in (fields or {}):
            raise SpecError(
                f"the output has no field {name!r}; did you mean {STEPS}{name}?", field="labels"
            )
        return _field(of, column, is_open=is_open)
    is_open = next(step.function is not None for step in spec.steps if step.name == of.step)
    field = _field(of, column, is_open=is_open)
    return f"{STEPS}{of.step}" + (f".{field}" if field else "")


def _field(of: Compared, column: str, *, is_open: bool) -> str:
    name, fields = of.field, _answer_fields(of.schema)
    if fields is None:
        # Nothing is known of the answer, or it has no fields.
        if name != WHOLE and not _may_have_fields(of, is_open=is_open):
            raise SpecError(
                f"answers have no fields, and so no {name!r}: give the column alone, {column!r}, or a "
                "schema of an object",
                field="labels",
            )
        return name
    if name == WHOLE:
        name = column if column in fields or len(fields) != 1 else next(iter(fields))
    if name in fields:
        return name
    listed = ", ".join(fields)
    if name == column:
        first = next(iter(fields)) if of.step is None else f"{STEPS}{of.step}.{next(iter(fields))}"
        raise SpecError(
            f"the answer has several fields ({listed}): say which one is compared with "
            f"{column!r}, as {first}={column}, or {{{first}: {column}}} in a job file",
            field="labels",
        )
    near = get_close_matches(name, fields, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise SpecError(f"the answer has no field {name!r}{hint} (it has: {listed})", field="labels")


def _answer_fields(schema: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return the schemas of the fields of an answer; None if it has none, or they are unknown."""
    root = None if schema is None else resolved(schema, schema)
    return (root or {}).get("properties") or None


def _may_have_fields(of: Compared, *, is_open: bool) -> bool:
    if of.schema is None:
        return is_open and not of.choices
    kind = resolved(of.schema, of.schema).get("type", "object")
    return kind == "object" or (isinstance(kind, list) and "object" in kind)


def is_boolean(of: Compared) -> bool:
    """Say whether a field of an answer, or the whole answer, is true, false or null."""
    schema = of.schema
    if schema is None:
        return False
    part = schema if of.field == WHOLE else (_answer_fields(schema) or {}).get(of.field)
    one = resolved(part, schema)
    options = one.get("anyOf") or one.get("oneOf") or [one]
    kinds: set[Any] = set()
    for option in options:
        kind = resolved(option, schema).get("type")
        kinds.update(kind if isinstance(kind, list) else [kind])
    return "boolean" in kinds and kinds <= {"boolean", "null"}
