"""Labels: the columns with the right answers, and what of an answer each is compared with."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BeforeValidator

from fanout.core.errors import SpecError
from fanout.core.schema_references import resolved

if TYPE_CHECKING:
    from fanout.core.spec import RunSpec

__all__ = ["WHOLE", "Labels", "is_boolean", "label_columns", "label_problem"]

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


def label_columns(spec: RunSpec) -> dict[str, str]:
    """Return the column of the label for each field of an answer; the whole answer is ``WHOLE``.

    The column of a whole answer that is an object is that of the field of its name, or of the only
    field.

    Raises:
        SpecError: There is no such field, or it is not clear which one is meant.
    """
    fields = _answer_fields(spec)
    found: dict[str, str] = {}
    for name, column in spec.labels.items():
        field = _field(name, column, fields, spec)
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


def _field(name: str, column: str, fields: dict[str, Any] | None, spec: RunSpec) -> str:
    if fields is None:
        # Nothing is known of the answer, or it has no fields.
        if name != WHOLE and not _may_have_fields(spec):
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
        raise SpecError(
            f"the answer has several fields ({listed}): say which one is compared with "
            f"{column!r}, as {next(iter(fields))}={column}, or {{{next(iter(fields))}: {column}}} in a "
            "job file",
            field="labels",
        )
    near = get_close_matches(name, fields, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise SpecError(f"the answer has no field {name!r}{hint} (it has: {listed})", field="labels")


def _answer_fields(spec: RunSpec) -> dict[str, Any] | None:
    """Return the schemas of the fields of an answer; None if it has none, or they are unknown."""
    root = None if spec.answer_schema is None else resolved(spec.answer_schema, spec.answer_schema)
    return (root or {}).get("properties") or None


def _may_have_fields(spec: RunSpec) -> bool:
    if spec.answer_schema is None:
        return spec.output_format == "json" and not spec.answer_choices
    kind = resolved(spec.answer_schema, spec.answer_schema).get("type", "object")
    return kind == "object" or (isinstance(kind, list) and "object" in kind)


def is_boolean(spec: RunSpec, field: str) -> bool:
    """Say whether a field of an answer, or the whole answer, is true, false or null."""
    if spec.answer_schema is None:
        return False
    part = spec.answer_schema if field == WHOLE else (_answer_fields(spec) or {}).get(field)
    one = resolved(part, spec.answer_schema)
    options = one.get("anyOf") or one.get("oneOf") or [one]
    kinds: set[Any] = set()
    for option in options:
        kind = resolved(option, spec.answer_schema).get("type")
        kinds.update(kind if isinstance(kind, list) else [kind])
    return "boolean" in kinds and kinds <= {"boolean", "null"}
